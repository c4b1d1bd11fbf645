"""Images are scored at the side that the weights were trained with, unless another is asked for."""

import numpy as np
import pytest
import torch

from terrafm.embed.request import EmbedOptions, make_request
from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Grid, measured_statistics
from terrafm.eval.features import extraction as features_module
from terrafm.eval.features.extraction import model_input
from terrafm.eval.probes.knn import evaluate_knn
from terrafm.eval.tables.common import CompareOptions, render
from terrafm.eval.tables.compare import compare
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_released, save_safetensors

STATISTICS = {
    name: {
        "mean": [-14.0 if name == "s1" else 0.27] * m.channels,
        "std": [3.0 if name == "s1" else 0.07] * m.channels,
    }
    for name, m in MODALITIES.items()
}


@pytest.fixture(scope="module")
def trained_at(tmp_path_factory):
    """(side) -> weights that were trained with crops of so many pixels; None states no side."""
    folder = tmp_path_factory.mktemp("sides")

    def make(side):
        torch.manual_seed(side or 0)
        state = build_encoder("terrafm_tiny").state_dict()
        contract = WeightsContract.build("terrafm_tiny", STATISTICS, image_size=side or 224)
        uri = str(folder / f"{side}.{'safetensors' if side else 'pth'}")
        if side:
            save_safetensors(uri, state, contract)
        else:
            save_released(uri, state, contract)
            (folder / "None.json").unlink()
        return uri

    return make


@pytest.fixture
def seen(monkeypatch):
    """The sides that images were resized to."""
    sides = []

    def spy(image, normalisation, size):
        sides.append(size)
        return model_input(image, normalisation, size)

    monkeypatch.setattr(features_module, "model_input", spy)
    return sides


@pytest.mark.parametrize(
    ("side", "asked", "expected"), [(64, None, 64), (96, None, 96), (64, 32, 32), (None, None, 224)]
)
def test_every_verb_takes_the_contracts_side(
    side, asked, expected, trained_at, small_dataset, seen
):
    weights = trained_at(side)
    found = evaluate_knn(weights, small_dataset, size=asked, modalities=["s1"], baselines=False)
    assert found["image_size"] == expected
    options = CompareOptions(
        modalities=["s1"], protocols=["knn5"], resamples=2, size=asked, by_set=side is None
    )
    table = compare(small_dataset, [weights], options=options)
    assert table["image_size"] == expected
    assert set(seen) == {expected}
    request = make_request(weights, small_dataset, EmbedOptions(modalities=["s1"], size=asked))
    assert request.size == expected


def test_encoders_of_one_table_are_seen_each_at_its_own_side(trained_at, small_dataset, seen):
    options = CompareOptions(modalities=["s1"], protocols=["knn5"], resamples=2)
    table = compare(small_dataset, [trained_at(64), trained_at(96)], options=options)
    assert table["image_size"] == [64, 96]
    assert set(seen) == {64, 96}
    assert "64 or 96 pixels" in render(table).caption
    seen.clear()
    options = CompareOptions(modalities=["s1"], protocols=["knn5"], resamples=2, size=48)
    table = compare(small_dataset, [trained_at(64), trained_at(96)], options=options)
    assert (table["image_size"], set(seen)) == (48, {48})


@pytest.mark.parametrize("verb", ["knn", "compare"])
def test_a_side_that_is_no_multiple_of_the_patch_is_one_line(
    verb, trained_at, small_dataset, refused
):
    arguments = ("--weights", trained_at(64), "--data", small_dataset, "--size", 100)
    line = refused("evaluate", verb, *arguments)
    assert "--size 100 must be a multiple of the patch, 16 pixels" in line


def test_a_contract_of_such_a_side_is_one_line_too(trained_at, small_dataset):
    with pytest.raises(UsageError, match="multiple of the patch"):
        evaluate_knn(trained_at(72), small_dataset)


@pytest.mark.parametrize("missing", [np.nan, np.inf, -np.inf])
def test_infinite_pixels_are_missing_in_input_and_statistics(missing):
    pixels = np.full((2, 32, 32), -12.0, np.float32)
    pixels[0, 3, 4] = missing
    norm = {"s1": {"mean": [-10.0, -10.0], "std": [2.0, 2.0]}}
    found = model_input({"s1": [Grid((0, 1), pixels)]}, norm, 32)["s1"]
    assert found[0, 3, 4].abs() < 1e-6
    assert torch.isfinite(found).all()
    assert found[1].eq(-1).all()

    class One:
        modalities = ("s1",)

        def read(self, row, modalities):
            return {"s1": [Grid((0, 1), pixels)]}

    measured = measured_statistics(One(), [0])["s1"]
    assert list(measured["mean"]) == [-12.0, -12.0]
