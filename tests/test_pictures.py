"""Pictures: written whole, the same for the same input, showing what they say they show."""

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from terrafm.config import load_config
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.pictures.colours import false_colour, true_colour
from terrafm.pictures.dataset import class_histogram, tile_map
from terrafm.pictures.sample import quicklook
from terrafm.pictures.training import loss_curve
from terrafm.pictures.validation import validation_curve

CONFIG = load_config(None, ["data.global_size=64", "data.local_size=32", "data.local_crops=3"])


@pytest.fixture(scope="module")
def dataset(small_dataset: str) -> Dataset:
    return Dataset.open(small_dataset)


def inked(path: Path) -> float:
    """Share of the pixels that are not white."""
    image = imread(path)[..., :3]
    assert min(image.shape[:2]) > 300
    return float((image.min(-1) < 0.98).mean())


def write_metrics(path: Path, steps: int) -> Path:
    lines = [
        {
            "step": s,
            "loss": 5 - s / 50,
            "teacher_entropy": 4.0,
            "student_entropy": 4.5,
            "lr": 1e-3,
            "teacher_temp": 0.04,
        }
        for s in range(1, steps + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_every_picture_is_written_and_reproducible(dataset: Dataset, tmp_path: Path) -> None:
    metrics = write_metrics(tmp_path / "metrics.jsonl", 60)
    for folder in ("first", "second"):
        root = tmp_path / folder
        tile_map(dataset, root / "map.png")
        class_histogram(dataset, CONFIG, root / "classes.png")
        quicklook(dataset, 2, CONFIG, root / "tile.png")
        loss_curve(metrics, root / "loss.png")
    for name, least in (("map", 0.3), ("classes", 0.03), ("tile", 0.4), ("loss", 0.01)):
        first = tmp_path / "first" / f"{name}.png"
        assert inked(first) > least, name
        assert first.read_bytes() == (tmp_path / "second" / f"{name}.png").read_bytes(), name


def test_tiles_and_classes_may_be_named_as_formulas_are(make_dataset, tmp_path: Path) -> None:
    uri = make_dataset(tmp_path / "data", tile_id="$\\frac$ {:02d}", class_name="$\\frac$ {}")
    dataset = Dataset.open(uri)
    tile_map(dataset, tmp_path / "map.png")
    class_histogram(dataset, CONFIG, tmp_path / "classes.png")
    quicklook(dataset, 2, CONFIG, tmp_path / "tile.png")
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_the_picture_of_a_validation(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"validation\.jsonl does not exist"):
        validation_curve(tmp_path, tmp_path / "none.png")
    for count, name in ((1, "one"), (30, "many")):
        lines = [
            {"step": 10 * s, "tail": ["bog"], "metrics": {
                "knn20/s1/accuracy": s / 40, "knn20/s1/tail_accuracy": None,
                "effective_rank/s1": 3.0 + s, "uniformity/s1": -s / 10,
            }}
            for s in range(1, count + 1)
        ]  # fmt: skip
        content = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / "validation.jsonl").write_text(content)
        validation_curve(tmp_path, tmp_path / f"{name}.png")
        assert inked(tmp_path / f"{name}.png") > 0.005


@pytest.mark.parametrize("kinds", [("retrieval",), ("knn20", "retrieval")])
def test_the_picture_of_a_validation_by_retrieval(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    pairs = ("s1-to-s2_l2a", "s2_l2a-to-s1", "s2_l2a-to-later")
    metrics = {f"retrieval/{pair}/recall10": 0.5 for pair in pairs} | {"knn20/s1/accuracy": 0.5}
    asked = {name: value for name, value in metrics.items() if name.startswith(kinds)}
    drawn = []
    # With its curves, and without those of dates.
    for shown in (asked, {name: v for name, v in asked.items() if "later" not in name}):
        content = [json.dumps({"step": step, "metrics": shown}) + "\n" for step in (10, 20)]
        (tmp_path / "validation.jsonl").write_text("".join(content))
        validation_curve(tmp_path, tmp_path / "drawn.png")
        assert inked(tmp_path / "drawn.png") > 0.005
        drawn.append((tmp_path / "drawn.png").read_bytes())
    assert drawn[0] != drawn[1]


def test_a_validation_with_other_metrics_has_no_picture(tmp_path: Path) -> None:
    line = json.dumps({"step": 10, "metrics": {"my/score": 0.5}})
    (tmp_path / "validation.jsonl").write_text(line + "\n")
    with pytest.raises(UsageError, match="neither of kNN nor retrieval"):
        validation_curve(tmp_path, tmp_path / "none.png")


def test_another_sample_has_other_crops(dataset: Dataset, tmp_path: Path) -> None:
    for position in (0, 1):
        path = tmp_path / f"{position}.png"
        quicklook(dataset, 2, CONFIG, path, position=position)
    assert (tmp_path / "0.png").read_bytes() != (tmp_path / "1.png").read_bytes()


def test_without_local_crops(dataset: Dataset, tmp_path: Path) -> None:
    config = load_config(None, ["data.global_size=64", "data.local_crops=0"])
    quicklook(dataset, 0, config, tmp_path / "tile.png")
    assert inked(tmp_path / "tile.png") > 0.3


@pytest.mark.parametrize("steps", [1, 3, 400])
def test_loss_curves_of_any_length(tmp_path: Path, steps: int) -> None:
    loss_curve(write_metrics(tmp_path / "metrics.jsonl", steps), tmp_path / "loss.png")
    assert inked(tmp_path / "loss.png") > 0.005


def test_missing_or_empty_metrics_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jsonl do not exist"):
        loss_curve(tmp_path / "none.jsonl", tmp_path / "loss.png")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UsageError, match="hold no step"):
        loss_curve(tmp_path / "empty.jsonl", tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()


def test_true_colour_is_red_green_blue() -> None:
    bands = MODALITIES["s2_l2a"].bands
    image = np.zeros((12, 4, 4), np.float32)
    for value, band in ((0.3, "B04"), (0.2, "B03"), (0.1, "B02")):
        image[bands.index(band)] = value
    np.testing.assert_allclose(true_colour(image)[0, 0], [0.3, 0.2, 0.1])


def test_false_colour_is_vv_vh_and_their_difference() -> None:
    image = np.stack([np.full((4, 4), -8.0), np.full((4, 4), -15.0)]).astype(np.float32)
    np.testing.assert_allclose(false_colour(image)[0, 0], [-8.0, -15.0, 7.0])
