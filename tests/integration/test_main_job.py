"""The whole road on real satellite samples, through the commands of the README."""

import json

import pytest
import rasterio
from commands import terrafm

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def dataset(shared_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("real") / "dataset"
    terrafm(
        "ingest",
        *("--source", "geotiff", "--input", shared_folder / "realdata" / "colocated"),
        *("--tile-size", "224", "--output", output),
    )
    return output


def test_inspect_tells_what_was_decided(dataset):
    found = json.loads(terrafm("inspect", dataset, "--json").stdout)
    assert found["tiles"] == 4
    assert set(found["modalities"]) == {"s1", "s2_l1c", "s2_l2a"}
    assert found["tile_size"] == 224
    assert sum(found["class_counts"].values()) == 4
    assert sum(found["resampled_class_counts"].values()) == 4
    assert found["bytes"] > 0
    assert len(found["fingerprint"]) >= 32


@pytest.mark.parametrize("export_format", ["safetensors", "released"])
def test_ingest_pretrain_export_evaluate(
    dataset, shared_folder, tmp_path_factory, export_format, trained
):
    weights = tmp_path_factory.mktemp("weights")
    done = terrafm(
        *("export", "--checkpoint", trained / "checkpoints" / "step_00000020"),
        *("--output", weights, "--format", export_format),
    )
    assert "terrafm.load_model" in done.stdout
    score = json.loads(
        terrafm(
            *("evaluate", "knn", "--weights", weights, "--json"),
            *("--data", shared_folder / "realdata" / "eurosat_ms"),
        ).stdout
    )
    for row in (score, score["untrained"], score["mean_spectrum"]):
        assert 0 < row["knn20"] <= 1
        assert 0 < row["knn5"] <= 1
    assert score["n"] == 100


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    output = tmp_path_factory.mktemp("trained") / "run"
    settings = ("train.steps=20", "train.workers=2", "train.zero_stage=1", "train.global_batch=8")
    terrafm(
        *("pretrain", "--config", "demo", "--data", dataset, "--output", output),
        *(part for setting in settings for part in ("--set", setting)),
    )
    return output


def test_the_run_folder_is_enough_to_run_again(trained, dataset, tmp_path):
    again = tmp_path / "again"
    terrafm(
        *("pretrain", "--config", trained / "config.yaml", "--data", dataset, "--output", again)
    )
    first = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    second = [json.loads(line) for line in (again / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in first] == [line["loss"] for line in second]


@pytest.mark.parametrize("workers", [1])
def test_worker_counts_agree(trained, dataset, tmp_path, workers):
    other = tmp_path / "other"
    terrafm(
        *("pretrain", "--config", trained / "config.yaml", "--data", dataset, "--output", other),
        *("--set", f"train.workers={workers}"),
    )
    two = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    one = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_run_starts_from_exported_weights(trained, dataset, tmp_path):
    terrafm(
        *("export", "--checkpoint", trained / "checkpoints" / "step_00000020"),
        *("--output", tmp_path / "weights", "--format", "safetensors"),
    )
    terrafm(
        *("pretrain", "--config", "demo", "--data", dataset, "--output", tmp_path / "run"),
        *("--set", f"model.init={tmp_path / 'weights'}"),
        *("--set", "train.steps=1", "--set", "train.global_batch=4"),
    )
    assert (tmp_path / "run" / "checkpoints" / "step_00000001" / "complete.json").exists()


def test_tiles_keep_their_place(dataset, shared_folder):
    """The stored footprint of each tile is that of its file."""
    from terrafm.data.shards.dataset import Dataset

    tiles = Dataset.open(str(dataset))
    for row in range(len(tiles)):
        tile = tiles.tile(row)
        name = str(tiles.tile_ids[row]).rsplit("_", 2)[0]
        path = shared_folder / "realdata" / "colocated" / "S1RTC" / f"{name}.tif"
        with rasterio.open(path) as source:
            assert tuple(tile["transform"]) == pytest.approx(tuple(source.transform)[:6])
            assert tile["crs"] == source.crs.to_string()
