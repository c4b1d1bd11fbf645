"""torchgeo's pretrained weights as rows: bands, units and normalisation as torchgeo states them.

TORCHGEO_BENCH_PYTHON names an interpreter that has torchgeo (torchgeo-bench brings it).
"""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision.transforms.v2 as transforms
from torchvision.models._api import Weights, WeightsEnum

from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.features.peer_models import TorchgeoWeights
from terrafm.eval.features.peers import peer_rows
from terrafm.eval.tables.common import CompareOptions

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("TORCHGEO_BENCH_PYTHON")
_BANDS = ["B1", "B2", "B3", "B4", "B5", "B6", "B7", "B8", "B8a", "B9", "B10", "B11", "B12"]
_MEAN = [1612.9, 1397.6, 1322.3, 1373.1, 1561.0, 2108.4, 2390.7, 2318.7, 2581.0, 837.7, 22.0,
         2195.2, 1537.4]  # fmt: skip
_STD = [791.0, 854.3, 878.7, 1144.9, 1127.5, 1164.2, 1276.0, 1249.5, 1345.9, 577.5, 47.5, 1340.0,
        1142.9]  # fmt: skip


def entry(bands, *steps, model="test_resnet"):
    meta = {"in_chans": len(bands), "model": model, "bands": bands}
    return Weights(url="nowhere", transforms=torch.nn.Sequential(*steps), meta=meta)


class Known(WeightsEnum):
    """Entries as torchgeo's enumerations have them, over small models of timm."""

    SENTINEL2_ALL_STATS = entry(
        _BANDS, transforms.Resize((256, 256)), transforms.Normalize(_MEAN, _STD)
    )
    SENTINEL2_ALL_TWICE = entry(
        _BANDS,
        transforms.Normalize([0.0], [10000.0]),
        transforms.Normalize([0.5] * 13, [0.25] * 13),
    )
    SENTINEL2_RGB_SECO = entry(["B4", "B3", "B2"], transforms.Normalize([3, 2, 0], [85, 101, 129]))
    SENTINEL2_ALL_PLAIN = entry(_BANDS, transforms.Resize((256, 256)))
    SENTINEL2_ALL_OTHER = entry(_BANDS, transforms.Normalize([0.0], [1e4]), model="swin_of_its_own")
    SENTINEL1_GRD = entry(["VV", "VH"], transforms.Normalize([-12.6, -20.3], [5.3, 5.9]))


@pytest.fixture
def torchgeo(monkeypatch):
    """`torchgeo.models.get_weight` over the entries above."""

    def get_weight(name):
        for one in Known:
            if name == str(one):
                return one
        raise ValueError(name)

    package, models = types.ModuleType("torchgeo"), types.ModuleType("torchgeo.models")
    models.get_weight = get_weight
    monkeypatch.setitem(sys.modules, "torchgeo", package)
    monkeypatch.setitem(sys.modules, "torchgeo.models", models)


@pytest.fixture
def image_folder(tmp_path, write_image):
    """Images of 224 pixels, which no model resizes; the cirrus band is dark."""
    generator = np.random.default_rng(2)
    for name in ("a", "b"):
        for number in range(2):
            pixels = generator.integers(500, 4000, (13, 224, 224)).astype(np.uint16)
            # EuroSAT's order, in which B8A is the last.
            pixels[9] = 12
            write_image(tmp_path / "set" / name / f"{number}.tif", pixels)
    return tmp_path / "set"


@pytest.mark.parametrize("name", ["SENTINEL2_ALL_STATS", "SENTINEL2_ALL_TWICE"])
def test_features_are_those_of_torchgeos_own_steps(torchgeo, image_folder, tmp_path, name):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", in_chans=13, num_classes=7).eval()
    file = tmp_path / "weights.pth"
    torch.save(model.state_dict(), file)
    images = open_labelled(str(image_folder))
    inputs = CompareOptions(device="cpu").inputs(images)
    (row,) = peer_rows(f"torchgeo:Known.{name}@{file}", images, inputs)
    assert "B10, which is not read here, is 0" in row.seen
    assert row.inputs.size == timm.data.resolve_model_data_config(model)["input_size"][-1]
    import rasterio

    stored = []
    for image_name in images.names:
        with rasterio.open(image_folder / image_name) as raster:
            numbers = torch.from_numpy(raster.read().astype(np.float32))
        # torchgeo's order is that of the wavelengths.
        ordered = numbers[[0, 1, 2, 3, 4, 5, 6, 7, 12, 8, 9, 10, 11]]
        ordered[10] = 0
        side = row.inputs.size
        stored.append(
            torch.nn.functional.interpolate(
                ordered[None], (side, side), mode="bicubic", antialias=True
            )[0]
        )
    # What is done to the values; resizing is the table's own.
    normalising = [s for s in Known[name].transforms if isinstance(s, transforms.Normalize)]
    pixels = torch.nn.Sequential(*normalising)(torch.stack(stored))
    model.reset_classifier(0)
    with torch.inference_mode():
        expected = torch.nn.functional.normalize(model(pixels))
    np.testing.assert_allclose(row.compute(None), expected.numpy(), atol=2e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("SENTINEL2_RGB_SECO", "sees 8-bit pictures or other units"),
        ("SENTINEL2_ALL_PLAIN", "its normalisation is not understood"),
        ("SENTINEL2_ALL_OTHER", "timm has no model swin_of_its_own"),
        ("SENTINEL1_GRD", "does not see Sentinel-2"),
        ("SENTINEL2_NONE", "torchgeo has no weights 'Known.SENTINEL2_NONE'"),
    ],
)
def test_weights_that_see_something_else_are_refused(torchgeo, name, message):
    with pytest.raises(UsageError, match=message):
        TorchgeoWeights.named(f"Known.{name}")


def test_a_file_of_another_model_is_refused(torchgeo, tmp_path):
    weights = TorchgeoWeights.named("Known.SENTINEL2_ALL_STATS")
    for channels, model in ((12, "test_resnet"), (13, "test_vit")):
        file = tmp_path / f"{model}.pth"
        torch.save(timm.create_model(model, in_chans=channels).state_dict(), file)
        with pytest.raises(UsageError, match="does not fit"):
            weights.load(str(file))
    with pytest.raises(UsageError, match="does not exist"):
        weights.load(str(tmp_path / "nowhere.pth"))
    with pytest.raises(UsageError, match=r"torchgeo cannot give the weights .*; name their file"):
        weights.load("")


def test_without_torchgeo_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchgeo", None)
    with pytest.raises(UsageError, match=r"needs torchgeo.*terrafm\[copernicus\]"):
        TorchgeoWeights.named("ResNet50_Weights.SENTINEL2_ALL_MOCO")


def test_untrained_models_differ_by_their_seed_alone(image_folder):
    images = open_labelled(str(image_folder))
    inputs = CompareOptions(device="cpu").inputs(images)
    first, second = (
        [row.compute(None) for row in peer_rows("untrained:test_resnet", images, inputs)]
        for _ in range(2)
    )
    assert len(first) == 5
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    assert all(np.abs(first[0] - other).max() > 1e-3 for other in first[1:])


_LINES = """
import sys, timm, torch
from torchgeo.models import ResNet18_Weights, resnet18
from terrafm.eval.features.peer_models import TorchgeoWeights

entry = ResNet18_Weights.SENTINEL2_ALL_MOCO
torch.manual_seed(0)
state = timm.create_model("resnet18", in_chans=13).state_dict()
torch.save(state, sys.argv[1])
type(entry).get_state_dict = lambda self, **_: state
theirs = resnet18(weights=entry).eval()
theirs.reset_classifier(0)
known = TorchgeoWeights.named(str(entry))
assert known.bands == tuple("B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12".split())
numbers = torch.randint(0, 5000, (2, 13, 224, 224)).float()
mean, std = (torch.tensor(v)[:, None, None] for v in (known.mean, known.std))
with torch.inference_mode():
    ours = known.load(sys.argv[1])((numbers - mean) / std)
    steps = [s for s in entry.transforms if type(s).__name__ == "Normalize"]
    expected = theirs(torch.nn.Sequential(*steps)(numbers.clone()))
torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
for name in (
    "ResNet50_Weights.SENTINEL2_ALL_MOCO", "ResNet50_Weights.SENTINEL2_ALL_DECUR",
    "ViTSmall16_Weights.SENTINEL2_ALL_DINO",
):
    assert len(TorchgeoWeights.named(name).bands) == 13
print("equal")
"""


@pytest.mark.skipif(PYTHON is None, reason="TORCHGEO_BENCH_PYTHON names no interpreter")
def test_torchgeos_own_model_gives_the_same(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [PYTHON, "-c", _LINES, str(tmp_path / "weights.pth")], cwd=tmp_path, env=environment,
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"
