"""The table: its rows, its intervals, its cache, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import timm
import torch

from terrafm.errors import UsageError
from terrafm.eval.features.readouts import Readout
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

REAL = Path(__file__).resolve().parents[2] / "../shared/realdata/eurosat_ms"


@pytest.fixture(scope="module")
def images(tmp_path_factory, write_image):
    """Three classes, each with a spectrum of its own and some noise."""
    folder = tmp_path_factory.mktemp("classes")
    generator = np.random.default_rng(3)
    for c, name in enumerate(("Forest", "River", "Town")):
        level = 800 + 400 * generator.random((13, 1, 1)) + 300 * c
        for i in range(8):
            noise = 120 * generator.normal(size=(13, 1, 1)) + 60 * generator.normal(
                size=(13, 32, 32)
            )
            write_image(
                folder / name / f"{i}.tif", np.clip(level + noise, 1, None).astype(np.uint16)
            )
    return folder


FAST = CompareOptions(size=32, resamples=40)


def test_the_table_has_all_rows_with_intervals(images, weights):
    result = json.loads(json.dumps(compare(images, [weights], options=FAST)))
    assert [row["title"] for row in result["rows"]] == [
        "mean spectrum", "untrained terrafm_tiny, 5 seeds", weights,
    ]  # fmt: skip
    for row in result["rows"]:
        assert list(row["protocols"]) == ["knn20", "knn5", "linear"]
        for scored in row["protocols"].values():
            for score in scored["scores"].values():
                assert 0 <= score["low"] <= score["value"] <= score["high"] <= 1
    spectrum = result["rows"][0]["protocols"]
    assert spectrum["linear"]["scores"]["accuracy"]["value"] > 0.8
    assert "B8A=13" in result["bands"]["s2_l1c"]
    assert "dropped B10=10" in result["bands"]["s2_l1c"]
    assert result["seed"] == 0
    assert compare(images, [weights], options=FAST) == result


def test_features_are_computed_once(images, weights, tmp_path, monkeypatch):
    options = CompareOptions(size=32, resamples=40, features=str(tmp_path / "features"))
    first = compare(images, [weights], options=options)
    files = [Path(name) for row in first["rows"] for name in np.atleast_1d(row["features"])]
    assert len(files) == 7
    assert all(file.is_file() for file in files)
    table = pq.read_table(files[-1])
    assert table.column_names == ["name", "split", "group", "label", "feature"]
    assert table["name"][0].as_py() == "Forest/0.tif"
    assert table["label"].to_pylist() == [[c] for c in (0, 1, 2) for _ in range(8)]

    def fail(*_, **__):
        raise AssertionError("features were computed again")

    monkeypatch.setattr("terrafm.eval.features.encoders.extract_features", fail)
    monkeypatch.setattr("terrafm.eval.features.encoders.mean_spectra", fail)
    assert compare(images, [weights], options=options) == first


def test_another_size_or_changed_images_are_other_features(images, weights, tmp_path, write_image):
    folder = tmp_path / "images"
    for name in ("a", "b"):
        for i in range(3):
            pixels = np.full((13, 16, 16), 1000 + 500 * i, np.uint16)
            write_image(folder / name / f"{i}.tif", pixels)

    def files(size):
        options = CompareOptions(
            size=size, resamples=5, protocols=["knn5"], features=str(tmp_path / "features")
        )
        rows = compare(folder, [weights], options=options)["rows"]
        return [name for row in rows for name in np.atleast_1d(row["features"]).tolist()]

    before = files(32)
    assert before[1:] != files(48)[1:]
    write_image(folder / "a" / "2.tif", np.full((13, 24, 24), 4000, np.uint16))
    assert not set(before) & set(files(32))


def test_a_damaged_file_of_features_is_named(images, weights, tmp_path, refused):
    folder = tmp_path / "features"
    options = CompareOptions(size=32, resamples=5, protocols=["knn5"], features=str(folder))
    result = compare(images, [weights], options=options)
    damaged = Path(result["rows"][-1]["features"])
    damaged.write_bytes(damaged.read_bytes()[:100])
    line = refused(
        "evaluate", "compare", "--data", images, "--weights", weights, "--size", 32,
        "--features", folder,
    )  # fmt: skip
    assert damaged.name in line
    assert "delete it" in line


@pytest.mark.parametrize(("channels", "seen"), [(3, "B04 B03 B02"), (12, "B01 B02 B03")])
def test_a_timm_checkpoint_is_a_row(images, tmp_path, channels, seen):
    torch.manual_seed(1)
    model = timm.create_model("test_resnet", pretrained=False, in_chans=channels)
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file(model.state_dict(), file)
    name = f"timm:test_resnet@{file}"
    options = CompareOptions(resamples=5, protocols=["knn5"])
    spectrum, row = compare(images, baselines=[name], options=options)["rows"]
    assert row["title"] == name
    assert row["seen"].startswith(seen)
    assert spectrum["title"] == "mean spectrum"
    assert np.isfinite(row["protocols"]["knn5"]["scores"]["accuracy"]["value"])


def test_a_timm_model_that_does_not_fit_is_refused(images, tmp_path, refused):
    five = tmp_path / "five.safetensors"
    model = timm.create_model("test_resnet", pretrained=False, in_chans=5)
    safetensors.torch.save_file(model.state_dict(), five)
    command = ("evaluate", "compare", "--data", images, "--baseline")
    assert "takes 5 channels" in refused(*command, f"timm:test_resnet@{five}")
    assert "no first layer" in refused(*command, f"timm:test_vit@{five}")
    assert "no model 'resnet0'" in refused(*command, "timm:resnet0")
    assert "does not exist" in refused(*command, f"timm:test_resnet@{tmp_path}/nowhere.pth")
    assert "--weights" in refused(*command, "resnet18")
    text = tmp_path / "text.pth"
    text.write_text("no weights")
    assert "cannot read checkpoint" in refused(*command, f"timm:test_resnet@{text}")


def test_bad_input_is_one_line(images, weights, refused, tmp_path):
    command = ("evaluate", "compare", "--data", images, "--weights", weights)
    assert "unknown protocol 'svm'" in refused(*command, "--protocol", "svm")
    assert "has s2_l1c, not s1" in refused(*command, "--modality", "s1", "--modality", "s2_l1c")
    assert "unknown modality 's3'" in refused(*command, "--modality", "s3")
    assert "has 13 bands, 2 were named" in refused(*command, "--bands", "B02,B03")
    nowhere = tmp_path / "nowhere"
    assert "does not exist" in refused("evaluate", "compare", "--data", nowhere)
    contract = WeightsContract.build("terrafm_tiny", {"s1": {"mean": [0, 0], "std": [1, 1]}})
    radar = str(tmp_path / "s1.safetensors")
    save_safetensors(radar, build_encoder("terrafm_tiny").state_dict(), contract)
    line = refused("evaluate", "compare", "--data", images, "--weights", radar)
    assert "no modality in common: the weights know s1" in line


def test_an_ingested_dataset_is_compared_too(small_dataset, weights):
    options = CompareOptions(size=48, resamples=5, protocols=["knn5"])
    result = compare(small_dataset, [weights], options=options)
    assert result["modalities"] == ["s2_l2a"]
    assert result["n"] == 11
    fused = CompareOptions(modalities=["s1", "s2_l2a"], size=48, resamples=5, protocols=["knn5"])
    assert compare(small_dataset, [weights], options=fused)["modalities"] == ["s1", "s2_l2a"]


@pytest.mark.slow
def test_real_eurosat_prints_the_table(weights, run):
    if not REAL.exists():
        pytest.skip(f"real EuroSAT images are not at {REAL}")
    code, printed, errors = run(
        "evaluate", "compare", "--data", REAL, "--weights", weights, "--size", 32,
        "--resamples", 200,
    )  # fmt: skip
    assert code == 0, errors
    words = " ".join(printed.split())
    for part in (
        "mean spectrum",
        "untrained",
        "kNN k=20",
        "linear probe",
        "100 images",
        "B8A=13",
        "[low, high]",
    ):
        assert part in words


def test_the_untrained_row_is_the_mean_of_its_seeds(images, weights):
    from terrafm.eval.probes.protocols import Task, predict
    from terrafm.eval.tables.common import table_rows
    from terrafm.eval.tables.compare import open_set

    result = compare(images, [weights], options=replace(FAST, protocols=("knn5",)))
    row = result["rows"][1]["protocols"]["knn5"]
    opened = open_set(images)
    rows = table_rows(opened, FAST.inputs(opened), [weights], (), [])
    task = Task(opened.labels, 3, opened.groups, None)
    found = [
        float((predict("knn5", r.compute(None), task).predictions == opened.labels).mean())
        for r in rows[1:6]
    ]
    assert len(set(found)) > 1
    assert row["scores"]["accuracy"]["value"] == pytest.approx(np.mean(found))
    assert row["scores"]["accuracy"]["spread"] == pytest.approx(np.std(found, ddof=1))
    assert row["members"] == 5


@pytest.mark.parametrize("readout", ["mean", "mean+std"])
def test_a_readout_is_scored_and_kept_by_itself(images, weights, run, tmp_path, readout):
    common = ["evaluate", "compare", "--data", images, "--weights", weights, "--size", "32"]
    common += ["--protocol", "knn5", "--resamples", "10", "--features", tmp_path, "--json"]
    plain = json.loads(run(*common)[1])
    code, printed, errors = run(*common, "--readout", readout)
    assert code == 0, errors
    result = json.loads(printed)
    assert (plain["readout"], result["readout"]) == ("cls", readout)
    assert plain["rows"][0] == result["rows"][0]
    assert plain["rows"][2]["features"] != result["rows"][2]["features"]
    width = pq.read_table(result["rows"][2]["features"])["feature"].type.list_size
    assert width == (96 if readout == "mean" else 192)


def test_a_readout_is_for_features_that_stay_as_they_are(images, weights, fields, monkeypatch):
    options = replace(FAST, readout=Readout.MEAN, protocols=("finetune",))
    with pytest.raises(UsageError, match="trains on the CLS token"):
        compare(images, [weights], options=options)
    monkeypatch.setattr("terrafm.eval.tables.compare.open_set", lambda *_: fields())
    with pytest.raises(UsageError, match="there is no --readout"):
        compare("fields", [weights], options=replace(FAST, readout=Readout.MEAN))
