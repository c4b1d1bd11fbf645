import contextlib
import shutil
import threading
import time
from dataclasses import fields

import numpy as np
import psutil
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from terrafm.config import DataConfig
from terrafm.data.samples.loader import BatchBuilder
from terrafm.data.samples.plan import Plan
from terrafm.data.samples.stream import RankLayout, make_batches, stream_batches
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError, UsageError
from terrafm.ray.runtime import PAUSE_SECONDS, SchedulingPause

CONFIG = DataConfig(global_size=32, local_size=16, global_crops=2, local_crops=2, rows_per_block=5)


def options(uri, layout, start_step=0, stop_step=3, config=CONFIG, **plan):
    dataset = Dataset.open(uri)
    return {
        "dataset": dataset,
        "plan": Plan(dataset.land_cover, seed=5, exponent=0.5, **plan),
        "config": config,
        "seed": 5,
        "layout": layout,
        "start_step": start_step,
        "stop_step": stop_step,
        "high_frequency": (10,),
    }


def assert_equal(first, second):
    for field in fields(first):
        a, b = getattr(first, field.name), getattr(second, field.name)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b), field.name
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a), field.name
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif a is None or isinstance(a, int | list):
            assert a == b
        else:
            assert_equal(a, b)


def rows_of(batch):
    """Row -> everything that the batch holds about it, whatever row it is."""
    samples, rows = batch.samples, len(batch.samples)
    for b in range(rows):
        key = (int(samples.epoch[b]), int(samples.position[b]), float(samples.weight[b]))
        crops = [batch.drop_path_key[:, b].tolist(), samples.tile_id[b]]
        for part in (batch.global_crops, batch.local_crops):
            for name, image in part.image.items():
                mine = image % rows == b
                crops += [name, (image[mine] // rows).tolist(), part.student[name][mine].tolist()]
                crops.append(part.pixels[name][mine].numpy().tobytes())
        yield key, crops


@given(st.integers(1, 70), st.integers(1, 12), st.integers(1, 20), st.integers(0, 10**9))
def test_ranks_share_a_global_batch_exactly_once(batch, world, micro, step):
    indices = []
    for rank in range(world):
        layout = RankLayout(batch, world, rank, micro)
        assert layout.micro_rows <= micro
        rows, weights = layout.rows(step)
        assert len(rows) == len(weights) == layout.n_micro * layout.micro_rows
        assert layout.rows_per_rank - layout.share < layout.n_micro
        assert set(weights.tolist()) <= {0.0, 1.0}
        indices += rows[weights == 1].tolist()
        # Padding repeats samples of this batch: it can be read like any other row.
        assert ((rows >= step * batch) & (rows < (step + 1) * batch)).all()
    assert indices == list(range(step * batch, (step + 1) * batch))


def test_batches_follow_the_plan(small_dataset):
    layout = RankLayout(global_batch=16, world_size=1, rank=0, micro_batch=6)
    assert (layout.n_micro, layout.micro_rows, layout.rows_per_rank) == (3, 6, 18)
    setup = options(small_dataset, layout, start_step=1)
    batches = list(make_batches(**setup))
    assert len(batches) == 2 * 3
    weights = torch.cat([b.samples.weight for b in batches]).bool().numpy()
    epochs, positions, rows = setup["plan"].samples(16, 48)
    np.testing.assert_array_equal(
        np.concatenate([b.samples.epoch for b in batches])[weights], epochs
    )
    np.testing.assert_array_equal(
        np.concatenate([b.samples.position for b in batches])[weights], positions
    )
    ids = np.concatenate([b.samples.tile_id for b in batches])[weights]
    np.testing.assert_array_equal(ids, setup["dataset"].tile_ids[rows])
    high = torch.cat([b.high_frequency for b in batches]).numpy()[weights]
    np.testing.assert_array_equal(high, setup["dataset"].land_cover[rows] == 10)
    # Eleven tiles, sixteen samples a step: batches cross epochs.
    assert len(set(epochs.tolist())) > 2


def test_a_sample_is_the_same_in_any_layout(small_dataset):
    reference = {}
    for batch in make_batches(**options(small_dataset, RankLayout(8, 1, 0, 8))):
        reference |= dict(rows_of(batch))
    assert len(reference) == 24
    for world, micro in ((2, 3), (3, 8), (5, 2)):
        seen = {}
        for rank in range(world):
            layout = RankLayout(8, world, rank, micro)
            for batch in make_batches(**options(small_dataset, layout)):
                seen |= {key: crops for key, crops in rows_of(batch) if key[2] == 1}
        assert seen == reference


@pytest.mark.parametrize(
    ("batch", "world", "micro", "start_step"),
    [
        (16, 1, 4, 0),
        (2, 3, 1, 0),
        pytest.param(8, 2, 3, 2, marks=pytest.mark.slow),
        pytest.param(7, 3, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_stream_equals_in_process_batches(
    local_ray, small_dataset, batch, world, micro, start_step
):
    for rank in range(world):
        layout = RankLayout(batch, world, rank, micro)
        setup = options(small_dataset, layout, start_step, start_step + 4)
        streamed = list(stream_batches(**setup, cpus=2))
        made = list(make_batches(**setup))
        assert len(streamed) == len(made) == 4 * layout.n_micro
        for first, second in zip(streamed, made, strict=True):
            assert_equal(first, second)


def test_tiles_for_the_device_stream_like_crops(local_ray, small_dataset):
    config = CONFIG.model_copy(update={"crop_on": "device"})
    setup = options(small_dataset, RankLayout(8, 1, 0, 3), 1, 4, config)
    streamed = [batch.to("cpu") for batch in stream_batches(**setup, cpus=2)]
    made = [batch.to("cpu") for batch in make_batches(**setup)]
    assert len(streamed) == len(made) == 3 * 3
    for first, second in zip(streamed, made, strict=True):
        assert_equal(first, second)


@pytest.mark.slow
def test_stream_over_several_datasets_and_without_prefetch(local_ray, small_dataset, monkeypatch):
    monkeypatch.setattr("terrafm.data.samples.stream._FIRST_SEGMENT_ROWS", 10)
    monkeypatch.setattr("terrafm.data.samples.stream._SEGMENT_ROWS", 20)
    monkeypatch.setattr("terrafm.data.samples.stream.PREFETCH_BATCHES", 0)
    setup = options(small_dataset, RankLayout(8, 1, 0, 8), 0, 5)
    for first, second in zip(stream_batches(**setup, cpus=0.5), make_batches(**setup), strict=True):
        assert_equal(first, second)


def test_closing_a_stream_ends_its_workers(local_ray, small_dataset):
    setup = options(small_dataset, RankLayout(8, 1, 0, 8), 0, 500)
    stream = stream_batches(**setup, cpus=2)
    next(stream)
    start = time.monotonic()
    stream.close()
    assert time.monotonic() - start < 20
    assert "terrafm-stream" not in [t.name for t in threading.enumerate()]
    while ray.available_resources().get("CPU") != 3:
        assert time.monotonic() - start < 30, "workers still hold CPUs"
        time.sleep(0.1)


@contextlib.contextmanager
def held_cpus(count):
    """A placement group, let go of whatever happens: the next test has the same Ray."""
    group = placement_group([{"CPU": count}])
    try:
        ray.get(group.ready(), timeout=60)
        yield group
    finally:
        remove_placement_group(group)


@pytest.mark.slow
def test_two_ranks_share_one_spare_cpu(local_ray, small_dataset):
    """A data worker keeps its CPU while the stream lives: two must never wait for each other."""
    setups = [options(small_dataset, RankLayout(8, 2, rank, 4), 0, 40) for rank in (0, 1)]
    with held_cpus(2), contextlib.ExitStack() as opened:
        streams = [
            opened.enter_context(contextlib.closing(stream_batches(**setup, cpus=0.5)))
            for setup in setups
        ]
        for _ in range(40):
            for stream in streams:
                assert len(next(stream).samples.tile_id) == 4


@pytest.mark.slow
def test_a_killed_data_worker_is_replaced(local_ray, small_dataset):
    setup = options(small_dataset, RankLayout(8, 1, 0, 8), 0, 120)
    killed = []
    stream = stream_batches(**setup, cpus=2)
    for number, (first, second) in enumerate(zip(stream, make_batches(**setup), strict=True)):
        assert_equal(first, second)
        if number == 2:
            workers = []
            deadline = time.monotonic() + 120
            # On a busy machine the second one is still starting.
            while len(workers) < 2 and time.monotonic() < deadline:
                workers = [p for p in psutil.Process().children(recursive=True) if is_worker(p)]
                time.sleep(0.1)
            assert len(workers) == 2
            workers[0].kill()
            killed.append(workers[0].pid)
    assert killed


def test_data_workers_import_no_torch(local_ray, small_dataset):
    """It costs seconds of a processor and hundreds of megabytes in each of them."""
    stream = stream_batches(**options(small_dataset, RankLayout(8, 1, 0, 8), 0, 500), cpus=2)
    next(stream)
    workers = [p for p in psutil.Process().children(recursive=True) if is_worker(p)]
    mapped = [m.path for process in workers for m in process.memory_maps()]
    stream.close()
    assert any("pyarrow" in path for path in mapped)
    assert not [path for path in mapped if "libtorch" in path]


def is_worker(process):
    with contextlib.suppress(psutil.NoSuchProcess):
        return "MapWorker" in " ".join(process.cmdline())
    return False


@pytest.mark.slow
def test_the_scheduling_loop_rests_while_nothing_is_taken(local_ray, small_dataset, monkeypatch):
    rounds = []

    class Counting(SchedulingPause):
        def on_execution_step(self, executor):
            rounds.append(1)
            super().on_execution_step(executor)

    monkeypatch.setattr("terrafm.data.samples.stream.SchedulingPause", Counting)
    batches = stream_batches(**options(small_dataset, RankLayout(8, 1, 0, 8), 0, 500), cpus=2)
    next(batches)
    began, before = time.monotonic(), len(rounds)
    time.sleep(2)
    seen = (len(rounds) - before) / (time.monotonic() - began)
    batches.close()
    # A spinning loop makes thousands of rounds a second, and holds the interpreter lock.
    assert len(rounds) > 0
    assert seen <= 1.5 / PAUSE_SECONDS


def test_a_damaged_cell_is_one_clear_error(local_ray, small_dataset, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(small_dataset, folder)
    dataset = Dataset.open(folder)
    shard = folder / "shards" / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    row = int(np.flatnonzero(dataset.tile_ids == "tile_05")[0])
    for group in dataset.groups:
        content[dataset.index[f"{group.name}.offset"][row].as_py() + 40] ^= 4
    shard.write_bytes(bytes(content))
    setup = options(str(folder), RankLayout(8, 1, 0, 4), 0, 50)
    samples = setup["plan"].samples(0, 400)[2]
    good = int(np.flatnonzero(samples == row)[0]) // 4
    arrived = []

    def drain():
        for batch in stream_batches(**setup, cpus=2):
            arrived.append(batch.samples.tile_id)

    # In its place in the order, in one line, without Ray's wrapping.
    with pytest.raises(
        TerraFMError, match=r"tile_05: \S+ .*part-00001.parquet is damaged"
    ) as caught:
        drain()
    assert "\n" not in str(caught.value)
    assert len(arrived) <= good


@pytest.mark.slow
def test_data_workers_leave_the_placement_group_of_their_worker(local_ray, small_dataset):
    @ray.remote(num_cpus=1)
    def consume(uri, setup):
        dataset = Dataset.open(uri)
        plan = Plan(dataset.land_cover, seed=5, exponent=0.5)
        return sum(1 for _ in stream_batches(dataset, plan, **setup, cpus=1))

    setup = options(small_dataset, RankLayout(8, 1, 0, 4))
    del setup["dataset"], setup["plan"]
    # As in a training worker: all resources of the group are taken by the worker itself.
    with held_cpus(1) as group:
        strategy = PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)
        task = consume.options(scheduling_strategy=strategy).remote(small_dataset, setup)
        assert ray.get(task, timeout=240) == 6


def test_what_cannot_be_trained_on_is_refused(small_dataset):
    setup = options(small_dataset, RankLayout(8, 1, 0, 8))
    dataset = setup["dataset"]
    index = dataset.index
    place = index.column_names.index("s1_10m.length")
    lengths = index["s1_10m.length"].to_numpy().copy()
    lengths[3] = 0
    table = index.set_column(place, index.schema.field(place), [lengths])
    setup["dataset"] = Dataset(dataset.uri, dataset.manifest, table)
    setup["config"] = CONFIG.model_copy(update={"modalities": ("s1",)})
    with pytest.raises(UsageError, match=r"1 tiles, tile_03 first, have none of data.modalities"):
        next(make_batches(**setup))
    # With another modality it is a tile like any other.
    setup["config"] = CONFIG.model_copy(update={"modalities": ("s1", "s2_l1c")})
    builder = BatchBuilder(
        setup["dataset"],
        setup["plan"],
        setup["config"],
        seed=0,
        layout=setup["layout"],
        high_frequency=(),
    )
    rows = builder.instructions(0, 2)
    views = builder.samples.views(rows)
    without = np.array(rows["tile_id"].to_pylist()) == "tile_03"
    assert without.any()
    assert not views.drawn[without][..., 0].any()
    assert len(list(make_batches(**setup))) == 3
