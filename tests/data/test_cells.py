import itertools
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fault_proxy import FaultProxy
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_servers import lead_to

from terrafm.config import DataConfig, load_config
from terrafm.data.samples.loader import RankLayout, make_batches
from terrafm.data.samples.plan import Plan
from terrafm.data.shards import cell_cache
from terrafm.data.shards.cell_cache import CellCache, CellKey, open_cache
from terrafm.data.shards.cells import CellReader, DamagedTileError
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError
from terrafm.modalities import MODALITIES
from terrafm.storage import join, read_bytes, write_bytes
from terrafm.train.worker.setup import TrainingSetup


def copy_to(source, target):
    """Copies a dataset to any store."""
    for path in sorted(Path(source).rglob("*")):
        if path.is_file():
            write_bytes(join(target, str(path.relative_to(source))), path.read_bytes())
    return target


def assert_tiles_equal(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.fixture
def remote(small_dataset, s3_bucket, moto_server, monkeypatch):
    """The small dataset on S3, and a proxy that counts the requests to it."""
    uri = copy_to(small_dataset, join(s3_bucket, "dataset"))
    host, port = moto_server["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with FaultProxy((host, int(port))) as proxy:
        lead_to({"AWS_ENDPOINT_URL": proxy.endpoint}, monkeypatch)
        yield uri, proxy


def test_any_store_gives_the_same_tiles_in_order(small_dataset, remote):
    uri, proxy = remote
    reference = Dataset.open(small_dataset)
    rows = [*range(len(reference)), 3, 3, 0]
    names = [group.name for group in reference.groups]
    wanted = [random.Random(i).sample(names, 1 + i % 4) for i in range(len(rows))]
    local = CellReader(small_dataset, reference.groups).read(reference.locations(rows), wanted)
    assert [list(tile) and set(tile) for tile in local] == [set(w) for w in wanted]
    for place in (uri, copy_to(small_dataset, "memory://cells")):
        dataset = Dataset.open(place)
        proxy.counters.clear()
        reader = CellReader(place, dataset.groups)
        assert_tiles_equal(reader.read(dataset.locations(rows), wanted), local)
        if place == uri:
            # Neighbouring cells share a request.
            assert len(rows) <= proxy.counters["requests"] <= sum(map(len, wanted))


def test_requests_run_ahead_of_the_tiles(remote):
    uri, proxy = remote
    dataset = Dataset.open(uri)
    reader = CellReader(uri, dataset.groups)
    proxy.counters.clear()
    tiles = reader.read_ahead(dataset.locations(range(11)), tiles_ahead=3)
    next(tiles)
    list(itertools.islice(tiles, 1))
    # Two tiles taken, three more on their way, each at least one request.
    assert proxy.counters["requests"] <= 5 * len(dataset.groups)
    assert len(list(tiles)) == 9


def test_a_cached_tile_needs_no_request(remote, tmp_path):
    uri, proxy = remote
    dataset = Dataset.open(uri)
    config = DataConfig(cache_dir=str(tmp_path / "cache"))
    reader = CellReader(uri, dataset.groups, config)
    rows = dataset.locations(range(11))
    cache = open_cache(config.cache_dir, config.cache_bytes)
    first = []
    for row in range(11):
        first += reader.read(rows.slice(row, 1))
        # One tile's requests always find a place in the queue.
        cache.flush()
    assert cache.numbers().passed_over == 0
    proxy.counters.clear()
    assert_tiles_equal(reader.read(rows), first)
    assert proxy.counters["requests"] == 0

    # A damaged entry is dropped and read again.
    victim = next(path for path in (tmp_path / "cache").rglob("??/*") if path.is_file())
    content = bytearray(victim.read_bytes())
    content[0] ^= 4
    victim.write_bytes(content)
    assert_tiles_equal(reader.read(rows), first)
    assert proxy.counters["requests"] == 1
    cache.flush()
    assert_tiles_equal(reader.read(rows), first)
    assert proxy.counters["requests"] == 1


UNIT = 4096


def key_of(number, content, dataset="dataset"):
    return CellKey(dataset, f"shard-{number}", number, len(content), zlib.crc32(content))


def cell_bytes(folder):
    return sum(path.stat().st_size for path in Path(folder).glob("*/??/*"))


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 3 * UNIT)), max_size=60))
def test_the_cache_keeps_its_limit_and_never_lies(tmp_path_factory, uses):
    folder = tmp_path_factory.mktemp("cache")
    cache = CellCache(folder, 10 * UNIT)
    full = False
    for number, length in uses:
        content = random.Random(number * 100 + length).randbytes(length)
        key = key_of(number, content)
        found = cache.get(key)
        assert found is None or found == content
        if found is None:
            before = cell_bytes(folder)
            cache.put([(key, content)])
            # It looks for room again in ten minutes, for a smaller cell as well.
            full = full or before + length > 10 * UNIT
            assert cell_bytes(folder) == before if full else cache.get(key) == content
        assert cell_bytes(folder) <= 10 * UNIT
        counted = int.from_bytes((folder / "bytes").read_bytes()[:8], "little")
        assert counted == cell_bytes(folder)


def test_a_full_cache_keeps_what_it_has(tmp_path):
    cache = CellCache(tmp_path, 10 * UNIT)
    contents = [bytes([number]) * UNIT for number in range(12)]
    for number, content in enumerate(contents):
        cache.put([(key_of(number, content), content)])
    kept = [n for n, content in enumerate(contents) if cache.get(key_of(n, content)) == content]
    assert kept == list(range(10))


def test_cells_that_come_faster_than_the_disk_takes_them_are_passed_over(tmp_path, monkeypatch):
    cache, written, go_on = CellCache(tmp_path, 100 * UNIT), cell_cache._write, threading.Event()

    def slow(*arguments):
        assert go_on.wait(60)
        written(*arguments)

    monkeypatch.setattr(cell_cache, "_write", slow)
    cells = [
        (key_of(number, bytes([number]) * UNIT), bytes([number]) * UNIT) for number in range(40)
    ]
    begin = time.monotonic()
    for cell in cells:
        cache.put_later([cell])
    assert time.monotonic() - begin < 30
    go_on.set()
    cache.flush()
    kept = sum(cache.get(key) == content for key, content in cells)
    # The queue's places, and the one that the writer may hold already.
    assert cell_cache._WAITING <= kept <= cell_cache._WAITING + 1
    cache.put([cells[0]])
    assert cache.numbers().passed_over == (len(cells) - kept) * UNIT


@pytest.mark.skipif(sys.platform != "linux", reason="priorities of threads are Linux's")
def test_only_the_writer_has_the_lowest_priority(tmp_path):
    cache, content = CellCache(tmp_path, 10 * UNIT), b"x" * UNIT
    before = os.getpriority(os.PRIO_PROCESS, 0)
    cache.put_later([(key_of(0, content), content)])
    cache.flush()
    assert os.getpriority(os.PRIO_PROCESS, 0) == before
    (writer,) = [t for t in threading.enumerate() if t is cache._writer]
    assert os.getpriority(os.PRIO_PROCESS, writer.native_id) == 19


def test_datasets_out_of_use_make_room_the_longest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(cell_cache, "_FULL_SECONDS", 0)
    cell = b"x" * UNIT
    hours = {"two hours": 2, "a day": 24, "in use": 0}
    cache = CellCache(tmp_path, 6 * UNIT)
    for dataset, hour in hours.items():
        before = set(tmp_path.iterdir())
        cache.put([(key_of(number, cell, dataset), cell) for number in range(2)])
        (folder,) = set(tmp_path.iterdir()) - before - {tmp_path / "lock"}
        stamp = time.time() - 3600 * hour
        os.utime(folder, (stamp, stamp))

    def kept(dataset):
        return sum(cache.get(key_of(n, cell, dataset)) is not None for n in range(2))

    for number, gone in enumerate(["a day", "two hours"]):
        cache.put([(key_of(number, cell * 2, "new"), cell * 2)])
        # Reading marks a dataset as used: those that must stay are looked at in the end.
        assert kept(gone) == 0
    assert kept("in use") == 2
    time.sleep(1)
    cache.put([(key_of(7, cell * 2, "new"), cell * 2)] * 2)
    assert kept("in use") == 2
    assert cache.get(key_of(7, cell * 2, "new")) is None


def test_processes_share_a_cache_and_its_limit(tmp_path):
    program = (
        "import random, sys, zlib\n"
        "from terrafm.data.shards.cell_cache import CellCache, CellKey\n"
        "cache, rng = CellCache(sys.argv[1], 200_000), random.Random(int(sys.argv[2]))\n"
        "for _ in range(200):\n"
        "    number = rng.randrange(60)\n"
        "    content = random.Random(number).randbytes(8000)\n"
        "    key = CellKey('d', 's', number, len(content), zlib.crc32(content))\n"
        "    found = cache.get(key)\n"
        "    assert found in (None, content)\n"
        "    if found is None: cache.put([(key, content)])\n"
        "assert cache.enabled\n"
    )
    workers = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), str(seed)])
        for seed in range(3)
    ]
    # What three processes are writing while the files are counted may come on top.
    most = 200_000 + 3 * 2 * UNIT
    while any(worker.poll() is None for worker in workers):
        assert cell_cache._tree_bytes(tmp_path) <= most
        time.sleep(0.01)
    assert [worker.returncode for worker in workers] == [0, 0, 0]
    assert 180_000 < cell_bytes(tmp_path) <= most


def test_a_cache_that_cannot_write_is_turned_off_with_one_warning(remote, tmp_path, caplog):
    uri, _ = remote
    dataset = Dataset.open(uri)
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    config = DataConfig(cache_dir=str(blocked / "cache"))
    for _ in range(2):
        assert len(CellReader(uri, dataset.groups, config).read(dataset.locations([0, 1]))) == 2
    assert len([r for r in caplog.records if "no cache in" in r.message]) == 1


def damage(kind, uri, dataset, row):
    """Damages the shard of a tile, or puts the index out of step with it; names the cell."""
    shard = dataset.index["shard"][row].as_py()
    offset, length = (dataset.index[f"s1_10m.{part}"][row].as_py() for part in ("offset", "length"))
    where = join(uri, shard)
    content = bytearray(read_bytes(where))
    if kind == "flipped bit":
        content[offset + length // 2] ^= 1
    elif kind == "truncated":
        content = content[: offset + length - 1]
    elif kind == "out of step":
        # The tile's cell of another ingest: of the right length, and intact by itself.
        content[offset : offset + length] = content[offset + 1 : offset + length] + b"\0"
    write_bytes(where, bytes(content))
    return where


@pytest.mark.parametrize("kind", ["flipped bit", "truncated", "out of step"])
@pytest.mark.parametrize("store", ["local", "s3"])
def test_damage_is_found_and_named(kind, store, small_dataset, tmp_path, s3_bucket):
    uri = copy_to(small_dataset, str(tmp_path / "d") if store == "local" else join(s3_bucket, "d"))
    dataset = Dataset.open(uri)
    row = 6
    shard = damage(kind, uri, dataset, row)
    reason = "is cut short" if kind == "truncated" else "does not match its checksum"
    expected = rf"tile tile_06: s1_10m {reason}; shard {shard} is damaged"
    with pytest.raises(TerraFMError, match=expected):
        dataset.read_tile(row)
    found = list(dataset.reader.read_ahead(dataset.locations([5, row, 4])))
    assert [isinstance(tile, DamagedTileError) for tile in found] == [False, True, False]
    assert found[1].record() == {
        "tile": "tile_06",
        "shard": shard,
        "cell": "s1_10m",
        "reason": reason,
    }


def batches(uri, **changes):
    dataset = Dataset.open(uri)
    config = DataConfig(global_size=32, local_size=16, local_crops=2, **changes)
    plan = Plan(dataset.land_cover, seed=5, exponent=0.5)
    return list(
        make_batches(
            dataset, plan, config, seed=5, layout=RankLayout(11, 1, 0, 11),
            start_step=0, stop_step=2, high_frequency=(10,),
        )
    )  # fmt: skip


@pytest.mark.parametrize("crop_on", ["workers", "device"])
def test_a_quarantined_sample_takes_no_part(small_dataset, tmp_path, crop_on):
    uri = copy_to(small_dataset, str(tmp_path / "dataset"))
    shard = damage("flipped bit", uri, Dataset.open(uri), 6)
    with pytest.raises(TerraFMError, match=r"tile_06: s1_10m .*checksum"):
        batches(uri, crop_on=crop_on)
    whole = batches(small_dataset, crop_on=crop_on)
    found = batches(uri, crop_on=crop_on, on_damage="quarantine")
    named = [record for batch in found for record in batch.samples.damage]
    assert named
    assert {(r["tile"], r["cell"], r["shard"]) for r in named} == {("tile_06", "s1_10m", shard)}
    for first, second in zip(whole, found, strict=True):
        assert first.samples.damage == []
        assert first.samples.tile_id == second.samples.tile_id
        out = second.samples.weight == 0
        assert int(out.sum()) == len(second.samples.damage)
        assert {second.samples.tile_id[row] for row in np.flatnonzero(out)} <= {"tile_06"}
        rows = len(second.samples)
        first, second = first.to("cpu"), second.to("cpu")
        pairs = (
            (first.global_crops, second.global_crops),
            (first.local_crops, second.local_crops),
        )
        for a, b in pairs:
            for name in a.pixels:
                gone = out[a.image[name] % rows]
                assert torch.equal(a.image[name], b.image[name])
                assert torch.equal(
                    a.pixels[name].view(torch.int16)[~gone], b.pixels[name].view(torch.int16)[~gone]
                )
                lost = b.pixels[name].to(torch.int32)[gone]
                assert (lost == MODALITIES[name].nodata).all()


def test_a_quarantined_sample_changes_nothing_but_its_own_absence(small_dataset, tmp_path):
    """Its pixels do not matter, and what the others add to the step is what they add without it."""
    uri = copy_to(small_dataset, str(tmp_path / "dataset"))
    damage("flipped bit", uri, Dataset.open(uri), 6)
    overrides = [
        "train.steps=2", "train.global_batch=11", "train.micro_batch=11", "data.global_size=32",
        "data.local_size=16", "data.local_crops=2", "head.num_prototypes=32",
        "head.hidden_dim=32", "head.bottleneck_dim=16", "data.on_damage=quarantine",
    ]  # fmt: skip

    def run(place, weigh):
        torch.set_num_threads(1)
        setup = TrainingSetup.open(load_config("demo", overrides), place)
        distillation = setup.plain_distillation()
        (batch,) = itertools.islice(make_batches(**setup.stream_options(setup.layout(0, 1), 0)), 1)
        weigh(batch)
        step = setup.schedules.at(0)
        statistics = distillation.forward_backward([batch], step)
        applied, norm = distillation.finish(step)
        assert applied
        state = setup.state(1, distillation.engine.state(), distillation)
        return batch, statistics.means() | {"norm": norm}, state

    def as_it_is(batch):
        assert (batch.samples.weight == 0).any()

    def left_out(batch):
        assert (batch.samples.weight == 1).all()
        batch.samples.weight[[tile == "tile_06" for tile in batch.samples.tile_id]] = 0

    damaged, means, state = run(uri, as_it_is)
    sound, expected, other = run(small_dataset, left_out)
    # The same samples take part; the pixels of the one left out differ.
    assert torch.equal(damaged.samples.weight, sound.samples.weight)
    assert any(
        not torch.equal(damaged.global_crops.pixels[m].view(torch.int16),
                        sound.global_crops.pixels[m].view(torch.int16))
        for m in ("s1", "s2_l1c", "s2_l2a")
    )  # fmt: skip
    assert means == expected
    for name, tensor in state.teacher.items():
        assert torch.equal(tensor, other.teacher[name]), name
    for name, tensor in state.centers.items():
        assert torch.equal(tensor, other.centers[name]), name


def test_a_step_whose_samples_are_all_left_out_moves_nothing(small_dataset, tmp_path):
    """No sample is no gradient, no center and no mean; the step counts as done."""
    uri = copy_to(small_dataset, str(tmp_path / "dataset"))
    for shard in (Path(uri) / "shards").iterdir():
        shard.write_bytes(bytes(shard.stat().st_size))
    overrides = [
        "train.steps=2", "train.global_batch=4", "train.micro_batch=4", "data.global_size=32",
        "data.local_size=16", "data.local_crops=2", "head.num_prototypes=32",
        "head.hidden_dim=32", "head.bottleneck_dim=16", "data.on_damage=quarantine",
    ]  # fmt: skip
    setup = TrainingSetup.open(load_config("demo", overrides), uri)
    distillation = setup.plain_distillation()
    (batch,) = itertools.islice(make_batches(**setup.stream_options(setup.layout(0, 1), 0)), 1)
    assert len(batch.samples.damage) == 4
    step = setup.schedules.at(0)
    before = setup.state(0, distillation.engine.state(), distillation)
    centers = {name: tensor.clone() for name, tensor in before.centers.items()}
    statistics = distillation.forward_backward([batch], step)
    assert statistics.means() == {}
    assert distillation.finish(step) == (True, 0.0)
    for name, tensor in centers.items():
        assert torch.equal(distillation.criterion.state_dict()[name], tensor), name
