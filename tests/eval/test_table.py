"""One table over several sets: what `compare` finds of each, as Markdown."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tortillas import geotiff, write_set

from terrafm.errors import UsageError
from terrafm.eval.features.readouts import Readout
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare
from terrafm.eval.tables.several import markdown, table_over
from terrafm.modalities import MODALITIES

L2A = MODALITIES["s2_l2a"].bands
FAST = CompareOptions(size=32, resamples=20, batch=8)


@pytest.fixture(scope="module")
def eurosat(tmp_path_factory, write_image):
    """Two classes of six images each, with a spectrum of its own."""
    folder = tmp_path_factory.mktemp("table") / "eurosat"
    generator = np.random.default_rng(5)
    for c, name in enumerate(("Forest", "River")):
        for i in range(6):
            pixels = 900 + 400 * c + 150 * generator.normal(size=(13, 32, 32))
            write_image(folder / name / f"{i}.tif", pixels.clip(1).astype(np.uint16))
    return str(folder)


@pytest.fixture(scope="module")
def benv2(tmp_path_factory):
    """GEO-Bench-2's format, several labels an image."""
    folder = tmp_path_factory.mktemp("geobench2")
    classes = ("Pastures", "Marine waters", "Mixed forest")
    samples = []
    for n in range(12):
        split = ("train", "validation", "test")[n % 3]
        optical = np.full((12, 16, 16), 1000 + 100 * n) + 50 * np.arange(12)[:, None, None]
        radar = np.full((2, 16, 16), -12.0, np.float32) - 7 * np.arange(2)[:, None, None]
        files = [
            ("s1", geotiff(radar.astype(np.float32))), ("s2", geotiff(optical.astype(np.uint16))),
        ]  # fmt: skip
        labels = [classes[n // 3 % 3], "Arable land"][: 1 + n % 2]
        samples.append((f"tile_{n}", split, files, {"labels": labels, "lat": 1.0, "lon": 2.0}))
    write_set(folder / "geobench_benv2.tortilla", samples)
    return str(folder)


def cells(text):
    """Rows of the Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_one_command_scores_several_sets(eurosat, benv2, weights, run, tmp_path):
    output = tmp_path / "table.md"
    command = [
        "evaluate", "table", "--data", eurosat, "--data", benv2, "--weights", weights, "--size", 32,
        "--resamples", 20, "--baseline", "untrained:test_resnet", "--output", output,
    ]  # fmt: skip
    code, printed, errors = run(*command)
    assert code == 0, errors
    assert output.read_text().strip() in printed
    heading, _, *rows = cells(output.read_text())
    assert heading == [
        "set", "score, %", "mean spectrum", "untrained test_resnet, 5 seeds",
        "untrained terrafm_tiny, 5 seeds", Path(weights).name,
    ]  # fmt: skip
    assert [row[:2] for row in rows] == [
        [name, f"{protocol}, {metric}"]
        for name, metric in (("eurosat", "accuracy"), (Path(benv2).name, "mAP"))
        for protocol in ("kNN k=20", "kNN k=5", "linear probe")
    ]
    options = CompareOptions(size=32, resamples=20)
    for at, (uri, metric) in enumerate(((eurosat, "accuracy"), (benv2, "map_macro"))):
        alone = compare(uri, [weights], ["untrained:test_resnet"], options)
        for number, row in enumerate(alone["rows"]):
            for line, scored in enumerate(row["protocols"].values()):
                score = [100 * scored["scores"][metric][key] for key in ("value", "low", "high")]
                shown = rows[3 * at + line][2 + number]
                assert shown == "{:.1f} [{:.1f}, {:.1f}]".format(*score)
    assert "the packages of timm and torchgeo hold no weights" in printed
    assert "12 images scored, 2 classes, neighbours leave one image out" in printed
    found = json.loads(run(*command, "--json")[1])
    assert [one["n"] for one in found["sets"]] == [12, 4]
    assert markdown(found) == found["markdown"] == output.read_text()


def test_a_set_with_masks_has_its_own_protocols(eurosat, weights, fields, monkeypatch):
    import terrafm.eval.tables.several as several

    real = several.open_set
    monkeypatch.setattr(
        several, "open_set", lambda uri, options: fields() if uri == "fields" else real(uri)
    )
    options = CompareOptions(
        size=32, resamples=5, protocols=["knn5", "linear"], readout=Readout.MEAN
    )
    found = table_over(["fields", eurosat], [weights], ["untrained:test_resnet"], options)
    heading, _, *rows = cells(found["markdown"])
    assert heading[2:] == [
        "mean spectrum", "untrained test_resnet, 5 seeds", "untrained terrafm_tiny, 5 seeds",
        Path(weights).name,
    ]  # fmt: skip
    assert [row[1] for row in rows] == [
        "linear probe, mIoU", "kNN k=5, accuracy", "linear probe, accuracy",
    ]  # fmt: skip
    assert rows[0][3] == ""
    assert all(re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", c) for c in (*rows[0][4:], *rows[1][2:]))
    assert [one["readout"] for one in found["sets"]] == ["cls", "mean"]
    assert "Sets with masks: one untrained encoder" in found["markdown"]
    wrong = CompareOptions(protocols=["knn5"])
    with pytest.raises(UsageError, match="fields has masks: its protocols are linear"):
        table_over([eurosat, "fields"], [weights], (), wrong)


def test_two_sets_of_one_name_are_told_apart(eurosat, weights, tmp_path):
    other = tmp_path / "eurosat"
    other.symlink_to(eurosat)
    options = CompareOptions(size=32, resamples=5, protocols=["knn5"])
    _, _, *rows = cells(table_over([eurosat, str(other)], [weights], (), options)["markdown"])
    assert [row[0] for row in rows] == [eurosat, str(other)]
    assert rows[0][1:] == rows[1][1:]


def test_what_cannot_be_scored_is_said_before_anything_is(
    eurosat, weights, refused, tmp_path, save_radar_weights
):
    command = ("evaluate", "table", "--weights", weights, "--data", eurosat)
    assert "does not exist" in refused(*command, "--data", tmp_path / "nowhere")
    assert "baseline 'resnet18' is not known" in refused(*command, "--baseline", "resnet18")
    assert "unknown protocol 'svm'" in refused(*command, "--protocol", "svm")
    assert "is a folder" in refused(*command, "--output", tmp_path)
    radar = ("evaluate", "table", "--weights", save_radar_weights, "--data", eurosat)
    assert "no modality in common" in refused(*radar)
    assert "timm" in refused(*command, "--baseline", "untrained:resnet0")


@pytest.fixture
def save_radar_weights(tmp_path):
    from terrafm.models.encoder import build_encoder
    from terrafm.models.weights import WeightsContract, save_safetensors

    contract = WeightsContract.build("terrafm_tiny", {"s1": {"mean": [0, 0], "std": [1, 1]}})
    uri = str(tmp_path / "s1.safetensors")
    save_safetensors(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    return uri
