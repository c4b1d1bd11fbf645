"""Nearest neighbours against naive loops and cases worked out by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Grid
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import (
    encoder_features,
    mean_spectra,
    model_input,
    untrained_like,
)
from terrafm.eval.features.readouts import Readout
from terrafm.eval.probes.knn import TEMPERATURE, evaluate_knn, leave_one_out, nearest, render, vote
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_released, save_safetensors


def unit(rng: np.random.Generator, n: int, d: int) -> np.ndarray:
    x = rng.standard_normal((n, d)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def naive(features, labels, classes, groups, k, temperature):
    """Leave-one-out one image at a time, in plain Python."""
    similarity = features @ features.T
    predicted = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if groups[j] != groups[i]]
        others.sort(key=lambda j: (-similarity[i, j], j))
        ballots = [0.0] * classes
        for j in others[:k]:
            weight = 1.0 if temperature is None else math.exp(similarity[i, j] / temperature)
            ballots[labels[j]] += weight
        predicted.append(max(range(classes), key=lambda c: (ballots[c], -c)))
    return predicted


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(2, 60),
    classes=st.integers(2, 5),
    d=st.integers(1, 6),
    groups=st.integers(2, 60),
)
def test_it_equals_a_naive_loop(seed: int, n: int, classes: int, d: int, groups: int) -> None:
    rng = np.random.default_rng(seed)
    features = unit(rng, n, d)
    # Copies: the order among equals has to be right too.
    features[n // 2 :: 3] = features[0]
    labels = rng.integers(classes, size=n)
    together = rng.integers(groups, size=n)
    if len(np.unique(together)) < 2:
        together[0] += 1
    for group in (np.arange(n), together):
        weighted, plain = leave_one_out(features, labels, classes, group)
        assert plain.tolist() == naive(features, labels, classes, group, min(5, n - 1), None)
        expected = naive(features, labels, classes, group, min(20, n - 1), TEMPERATURE)
        # Sums of 20 rounded weights may differ in the last bit: only near-ties may differ.
        assert np.mean(weighted == np.array(expected)) >= 0.95


def test_a_near_neighbour_outweighs_many_far_ones() -> None:
    # The query is row 0. One neighbour of class 1 at cosine 0.99, four of class 0 at 0.80:
    # exp(0.19 / 0.07) = 15.1 > 4, but the plain vote goes to the four.
    angles = np.arccos([1.0, 0.99, 0.80, 0.80, 0.80, 0.80])
    features = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    labels = np.array([1, 1, 0, 0, 0, 0])
    weighted, plain = leave_one_out(features, labels, 2)
    assert weighted[0] == 1
    assert plain[0] == 0


def test_a_tie_goes_to_the_lower_class() -> None:
    neighbours = np.array([[0, 1, 2, 3]])
    similarities = np.full((1, 4), 0.5, np.float32)
    assert vote(neighbours, similarities, np.array([2, 1, 2, 1]), 3, None)[0] == 1


def test_an_image_never_votes_for_itself() -> None:
    features = unit(np.random.default_rng(0), 30, 8)
    rows, _ = nearest(features, 29, np.arange(30))
    for i in range(30):
        assert sorted(rows[i]) == [j for j in range(30) if j != i]


def test_a_group_is_left_out_together() -> None:
    features = unit(np.random.default_rng(1), 12, 4)
    groups = np.repeat([0, 1, 2], 4)
    rows, similarities = nearest(features, 11, groups)
    assert (rows[:, 8:] == -1).all()
    assert np.isneginf(similarities[:, 8:]).all()
    assert not (groups[rows[:, :8]] == groups[:, None]).any()


def test_model_input_is_normalised_antialiased_and_zero_without_data() -> None:
    modality = MODALITIES["s2_l2a"]
    rng = np.random.default_rng(2)
    fine = rng.random((4, 96, 96), dtype=np.float32)
    fine[0, :48] = np.nan
    coarse = rng.random((8, 48, 48), dtype=np.float32)
    ten = tuple(modality.bands.index(b) for b in ("B02", "B03", "B04", "B08"))
    rest = tuple(i for i in range(12) if i not in ten)
    norm = {"s2_l2a": {"mean": [0.5] * 12, "std": [0.25] * 12}}
    x = model_input({"s2_l2a": [Grid(ten, fine), Grid(rest, coarse)]}, norm, 48)["s2_l2a"]
    assert x.shape == (12, 48, 48)
    # The same size: only normalised.
    np.testing.assert_allclose(x[rest[0]], (coarse[0] - 0.5) / 0.25, atol=1e-6)
    assert x[ten[0]][:20].abs().max() == 0
    # Halved with antialiasing: noise loses far more than by picking every second pixel.
    assert x[ten[1]].std() < 0.7 * (fine[1].std() / 0.25)


@pytest.fixture(scope="module")
def images(
    tmp_path_factory: pytest.TempPathFactory, write_image: Callable[[Path, np.ndarray], None]
) -> Path:
    """Two classes of equal mean spectrum and different texture."""
    folder = tmp_path_factory.mktemp("textures")
    rng = np.random.default_rng(3)
    for i in range(12):
        fine = rng.integers(0, 2, (13, 64, 64)) * 800 + 1000
        patches = np.kron(rng.integers(0, 2, (13, 4, 4)), np.ones((16, 16))) * 800 + 1000
        write_image(folder / "fine" / f"{i}.tif", fine.astype(np.uint16))
        write_image(folder / "patches" / f"{i}.tif", patches.astype(np.uint16))
    return folder


def test_evaluate_prints_all_scores_and_is_deterministic(images: Path, weights: str) -> None:
    first = evaluate_knn(weights, images, size=64)
    second = evaluate_knn(weights, images, size=64, batch=5)
    text = json.loads(json.dumps(first))
    for where in (text, text["untrained"], text["mean_spectrum"]):
        assert 0 <= where["knn20"] <= 1
        assert 0 <= where["knn5"] <= 1
    assert text["n"] == 24
    assert text["classes"] == ["fine", "patches"]
    assert text["per_class"]["fine"]["n"] == 12
    assert text["normalisation"]["source"] == "weights contract"
    assert text["normalisation"]["s2_l1c"]["mean"] == [0.14] * 12
    assert "B8A" in text["bands"]["s2_l1c"]
    assert first == second
    console = Console(record=True, quiet=True, width=100)
    console.print(render(first))


def test_released_weights_say_that_their_statistics_are_assumed(
    images: Path, tmp_path: Path
) -> None:
    uri = str(tmp_path / "released.pth")
    encoder = build_encoder("terrafm_tiny")
    statistics = {n: {"mean": [0.0] * m.channels, "std": [1.0] * m.channels}
                  for n, m in MODALITIES.items()}  # fmt: skip
    save_released(uri, encoder.state_dict(), WeightsContract.build("terrafm_tiny", statistics))
    (tmp_path / "released.json").unlink()
    result = evaluate_knn(uri, images, size=32)
    assert result["normalisation"]["source"].startswith("assumed")
    assert any("assumed" in note for note in result["notes"])
    own = open_labelled(images).statistics()["s2_l1c"]
    np.testing.assert_allclose(result["normalisation"]["s2_l1c"]["mean"], own["mean"])


def test_few_images_lower_k_and_say_so(images: Path, weights: str, tmp_path: Path) -> None:
    for name in ("fine", "patches"):
        (tmp_path / name).mkdir()
        for i in range(2):
            (tmp_path / name / f"{i}.tif").write_bytes((images / name / f"{i}.tif").read_bytes())
    result = evaluate_knn(weights, tmp_path, size=32)
    assert result["k"] == {"knn20": 3, "knn5": 3}
    assert "4 images: k is 3 instead of 20" in result["notes"]


def test_a_modality_that_weights_do_not_know_is_refused(images: Path, tmp_path: Path) -> None:
    uri = str(tmp_path / "s1.safetensors")
    contract = WeightsContract.build("terrafm_tiny", {"s1": {"mean": [0, 0], "std": [1, 1]}})
    save_safetensors(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    with pytest.raises(UsageError, match="no modality in common"):
        evaluate_knn(uri, images)


def test_a_modality_that_is_not_in_both_is_refused(images: Path, weights: str) -> None:
    with pytest.raises(UsageError, match="s2_l2a is not in both"):
        evaluate_knn(weights, images, modalities=["s2_l2a"])


def test_the_untrained_encoder_is_always_the_same() -> None:
    before = torch.random.get_rng_state()
    a, b = untrained_like("terrafm_tiny"), untrained_like("terrafm_tiny")
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_mean_spectra_are_the_standardised_means(images: Path) -> None:
    labelled = open_labelled(images)
    means = np.stack(
        [labelled.read(i, ("s2_l1c",))["s2_l1c"][0].pixels.mean((1, 2)) for i in range(24)]
    ).astype(np.float64)
    expected = (means - means.mean(0)) / means.std(0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    (spectra,) = mean_spectra(labelled, [("s2_l1c",)])
    np.testing.assert_allclose(spectra, expected, atol=2e-4)


def test_every_modality_and_their_fusion_are_scored(small_dataset: str, weights: str) -> None:
    result = evaluate_knn(weights, small_dataset, size=48)
    assert list(result["by_modality"]) == ["s1", "s2_l1c", "s2_l2a", "fused"]
    assert result["headline"] == "s2_l2a"
    for key in ("knn20", "knn5", "untrained", "mean_spectrum"):
        assert result[key] == result["by_modality"]["s2_l2a"][key]
    assert result["n"] == 11
    fused = evaluate_knn(weights, small_dataset, size=48, modalities=["s1", "s2_l2a", "s2_l1c"])
    assert list(fused["by_modality"]) == ["fused"]
    assert fused["knn20"] == result["by_modality"]["fused"]["knn20"]
    alone = evaluate_knn(weights, small_dataset, size=48, modalities=["s1"])
    assert alone["modalities"] == ["s1"]
    assert alone["normalisation"].keys() == {"source", "s1"}
    assert alone["knn5"] == result["by_modality"]["s1"]["knn5"]


def test_one_cell_alone_cannot_be_left_out(small_dataset: str, weights: str) -> None:
    with pytest.raises(UsageError, match="one grid cell"):
        evaluate_knn(weights, small_dataset, size=48, leave_out="cell")
    with pytest.raises(UsageError, match="leave_out must be"):
        evaluate_knn(weights, small_dataset, leave_out="row")


class Gaps(ShardTiles):
    """A dataset whose every third tile has only radar."""

    def read_ahead(self, rows, modalities):
        for row, image in zip(rows, super().read_ahead(rows, modalities), strict=True):
            yield {m: grids for m, grids in image.items() if row % 3 or m == "s1"}


def test_images_without_a_modality_get_no_features_of_it(small_dataset: str) -> None:
    images = Gaps(small_dataset)
    choices = [("s1",), ("s2_l2a",), ("s1", "s2_l2a")]
    whole = ShardTiles(small_dataset)
    options = {"size": 48, "batch": 4, "device": torch.device("cpu")}
    encoder = untrained_like("terrafm_tiny")
    (radar,), (optical,), (fused,) = encoder_features(
        [encoder], images, choices, images.statistics(), **options
    )
    (full,), (both,) = encoder_features(
        [encoder], whole, choices[1:], images.statistics(), **options
    )
    lacking = np.arange(11) % 3 == 0
    finished = Readout.CLS.finished(radar)
    np.testing.assert_allclose(np.linalg.norm(finished, axis=1), 1, rtol=1e-5)
    assert not optical[lacking].any()
    np.testing.assert_allclose(optical[~lacking], full[~lacking], atol=1e-5)
    np.testing.assert_allclose(fused[~lacking], both[~lacking], atol=1e-5)
    np.testing.assert_allclose(fused[lacking], radar[lacking], atol=1e-5)


def test_released_weights_without_fusion_score_modalities_one_by_one(
    small_dataset: str, tmp_path: Path
) -> None:
    uri = str(tmp_path / "released.pth")
    statistics = {n: {"mean": [0.0] * m.channels, "std": [1.0] * m.channels}
                  for n, m in MODALITIES.items()}  # fmt: skip
    contract = WeightsContract.build("terrafm_tiny", statistics)
    save_released(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    result = evaluate_knn(uri, small_dataset, size=48)
    assert list(result["by_modality"]) == ["s1", "s2_l1c", "s2_l2a"]
    assert any("one by one" in note for note in result["notes"])
    with pytest.raises(UsageError, match="no fusion parameters"):
        evaluate_knn(uri, small_dataset, size=48, modalities=["s1", "s2_l2a"])
