"""The recipe that unlearns on real pixels rings an alarm; the one that learns there does not.

The tiles stand in for real ones (docs/log.md): ground differs from tile to tile above all in
brightness, and little within a tile, so that two crops of a tile are alike and a few groups of
tiles explain most.
"""

import itertools

import cv2
import numpy as np
import pytest
import torch

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.entry import TileRecord
from terrafm.data.shards.manifest import CellGroup
from terrafm.data.shards.writer import write_shard
from terrafm.modalities import MODALITIES
from terrafm.train.metrics.step_line import Monitor, metrics_line
from terrafm.train.worker.setup import TrainingSetup

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SENSOR = MODALITIES["s2_l1c"]
SIDE, TILES, STEPS = 96, 128, 150


def reflectance(rng):
    """(12, SIDE, SIDE) of a tile: a spectrum of its own, and a texture that all bands share."""
    slope = np.linspace(-1, 1, SENSOR.channels)
    spectrum = (0.185 + 0.065 * slope) * np.exp(rng.normal(0, 0.35) + rng.normal(0, 0.15) * slope)
    texture = sum(
        cv2.resize(rng.normal(size=(n, n)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC) / weight
        for n, weight in ((4, 1), (12, 2), (48, 3))
    )
    return spectrum[:, None, None] * np.exp(abs(rng.normal(0.1, 0.06)) * texture)


@pytest.fixture(scope="module")
def ground(tmp_path_factory):
    """URI of a dataset of such tiles."""
    rng = np.random.default_rng(0)
    uri = str(tmp_path_factory.mktemp("ground") / "dataset")
    groups = []
    for gsd in sorted(set(SENSOR.gsd)):
        bands = tuple(b for b, g in zip(SENSOR.bands, SENSOR.gsd, strict=True) if g == gsd)
        groups.append(CellGroup("s2_l1c", gsd, bands, SIDE * 10 // gsd, SIDE * 10 // gsd))
    records, means = [], []
    for number in range(TILES):
        whole = reflectance(rng)
        means.append(whole.mean(axis=(1, 2)))
        arrays = {}
        for group in groups:
            planes = [
                cv2.resize(
                    whole[SENSOR.bands.index(band)], group.shape[1:], interpolation=cv2.INTER_AREA
                )
                for band in group.bands
            ]
            noisy = 10_000 * np.stack(planes) + rng.normal(0, 20, group.shape)
            arrays[group.name] = np.clip(noisy, 1, 20_000).astype(np.uint16)
        records.append(
            TileRecord(
                tile_id=f"tile_{number:03d}",
                arrays=arrays,
                land_cover=10,
                histogram={10: SIDE**2},
                crs="EPSG:32633",
                transform=(10.0, 0.0, 5e5 + 960 * number, 0.0, -10.0, 1e4),
                latitude=0.0,
                longitude=15.0,
                products={"s2_l1c": {"product_id": f"p{number}", "time": "", "offset": 0}},
            )
        )
    statistics = {
        "bands": list(SENSOR.bands),
        "mean": np.mean(means, axis=0).tolist(),
        "std": (1.2 * np.std(means, axis=0)).tolist(),
    }
    commit_dataset(
        uri, [write_shard(uri, "part-00000", records, groups)], tile_size=SIDE, gsd=10,
        groups=groups, statistics={"s2_l1c": statistics}, legend={10: "trees"}, report={},
    )  # fmt: skip
    return uri


# The steps of the whole run, of which 150 are done: its schedules are the recipe's own.
@pytest.mark.parametrize(
    ("recipe", "settings", "alarms"),
    [
        ("demo", [], {"few_prototypes"}),
        ("real_cpu", ["train.global_batch=32", "train.micro_batch=32"], set()),
    ],
)
def test_alarms_within_150_steps(ground, recipe, settings, alarms):
    config = load_config(recipe, ["data.modalities=[s2_l1c]", "train.log_every=1", *settings])
    setup = TrainingSetup.open(config, ground)
    distillation, layout = setup.plain_distillation(), setup.layout(0, 1)
    stream = make_batches(**setup.stream_options(layout, 0))
    monitor = Monitor(setup.config, setup.schedules, 1, torch.device("cpu"))
    rung, ranks = set(), []
    for step in range(STEPS):
        now = setup.schedules.at(step)
        batches = list(itertools.islice(stream, layout.n_micro))
        statistics = distillation.forward_backward(batches, now)
        _, norm = distillation.finish(now)
        line = metrics_line(step + 1, statistics, now, distillation, grad_norm=norm, skipped=0)
        line = monitor.complete(line)
        rung |= set(line.get("alarm", ()))
        ranks.append(line["effective_rank"])
    assert rung == alarms
    # The loss tells neither from the other: it falls in both.
    if alarms:
        assert line["prototype_perplexity"] < 64
        assert ranks[-1] < ranks[20] / 1.5
    else:
        assert line["prototype_perplexity"] > 500
        assert ranks[-1] > ranks[20]
