"""The encoder as torchgeo-bench takes it: against its interface, and by its own command.

torchgeo-bench wants Python 3.12 and packages of its own. TORCHGEO_BENCH_PYTHON names an
interpreter that has it, beside fsspec, pyarrow, pydantic, safetensors and tenacity.
"""

import csv
import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from band_specs import EUROSAT, BandSpec, optical, radar
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.features.extraction import encoder_features
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare_opened
from terrafm.export import ExportOptions, export_weights, loading_snippet

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("TORCHGEO_BENCH_PYTHON")
OF_ITS_OWN = pytest.mark.skipif(
    PYTHON is None, reason="TORCHGEO_BENCH_PYTHON names no interpreter with torchgeo-bench"
)


class BenchModel(nn.Module):
    """The part of `torchgeo_bench.models.interface.BenchModel` that a model touches."""

    def __init__(self, bands, normalization="bandspec_zscore", **_):
        super().__init__()
        assert normalization in ("bandspec_zscore", "identity"), normalization
        self.bands, self.normalization = list(bands), normalization

    def normalize_inputs(self, images):
        if self.normalization == "identity":
            return images
        mean, std = (
            torch.tensor([getattr(band, name) for band in self.bands])[:, None, None]
            for name in ("mean", "std")
        )
        return (images - mean) / std

    def forward(self, images):
        return self._forward_patch_features(self.normalize_inputs(images))


@pytest.fixture
def model_of(adapter_over):
    """`TerraFMBench` over the interface above."""
    modules = {
        "torchgeo_bench": {},
        "torchgeo_bench.datasets": {},
        "torchgeo_bench.datasets.base": {"BandSpec": BandSpec},
        "torchgeo_bench.models": {},
        "torchgeo_bench.models.interface": {"BenchModel": BenchModel},
    }
    return adapter_over("torchgeo_bench", modules).TerraFMBench


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder, contract):
    output = tmp_path_factory.mktemp("exported")
    written = export_weights(encoder.state_dict(), contract, str(output), "torchgeo-bench")
    assert [Path(uri).relative_to(output).as_posix() for uri in written] == [
        "terrafm_tiny.safetensors",
        "model/terrafm_tiny.yaml",
        "terrafm_tiny_weights.py",
        "terrafm_tiny.safetensors.stac.json",
    ]
    return output


@pytest.fixture
def arguments(folder):
    tree = yaml.safe_load((folder / "model/terrafm_tiny.yaml").read_text())
    assert tree.pop("_target_") == "terrafm.adapters.torchgeo_bench.TerraFMBench"
    assert tree.pop("name") == "terrafm_tiny"
    assert tree["eval"]["segmentation"]["layers"][0] == "blocks.2"
    return tree


def test_raw_values_become_the_encoders_embedding(model_of, arguments, encoder, contract):
    model = model_of(EUROSAT, **arguments, normalization="model_native").eval()
    raw = torch.randint(1, 6000, (3, 13, 64, 64)).float()
    pixels = contract.normalise(raw[:, [*range(8), 12, 8, 10, 11]] * 1e-4, "s2_l1c")
    with torch.inference_mode():
        expected = encoder(pixels, modality="s2_l1c")
    torch.testing.assert_close(model(raw), expected, rtol=1e-5, atol=1e-5)


def test_several_sensors_are_fused(model_of, arguments, encoder, contract):
    bands = [*(optical(f"b{n:02d}") for n in range(2, 5)), radar("vv", -12), radar("vh", -19)]
    model = model_of(bands, **arguments, normalization="model_native").eval()
    raw = torch.rand(2, 5, 48, 48) * 100
    level_2a = torch.full((2, 12, 48, 48), torch.nan)
    level_2a[:, 1:4] = raw[:, :3] * 1e-4
    with torch.inference_mode():
        expected = encoder(
            {
                "s1": contract.normalise(raw[:, 3:], "s1"),
                "s2_l2a": contract.normalise(level_2a, "s2_l2a"),
            }
        )
    torch.testing.assert_close(model(raw), expected, rtol=1e-5, atol=1e-5)


def test_the_sets_own_normalisation_and_other_readouts(model_of, arguments, encoder):
    arguments |= {"readout": "mean+std", "size": 32}
    model = model_of(EUROSAT, **arguments, normalization="bandspec_zscore").eval()
    raw = torch.rand(2, 13, 64, 64) * 3000
    assert model(raw).shape == (2, 192)
    seen = []
    model.backbone.blocks[1].register_forward_hook(lambda _, __, output: seen.append(output.shape))
    model(raw)
    assert seen == [(2, 5, 96)]  # What a probe for segmentation hooks: CLS and all patches.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"readout": "max"}, "readout 'max': one of cls, mean"),
        ({"size": 40}, "a size of 40 pixels is no multiple of 16"),
        ({"modalities": ["s3"]}, "modality s3"),
    ],
)
def test_bad_arguments_are_one_line(model_of, arguments, changed, message):
    with pytest.raises(UsageError, match=message):
        model_of(EUROSAT, **(arguments | changed))


def test_the_modality_asked_for(tmp_path, encoder, contract):
    options = ExportOptions(modality="s2_l1c")
    out = str(tmp_path)
    export_weights(encoder.state_dict(), contract, out, "torchgeo-bench", options)
    tree = yaml.safe_load((tmp_path / "model/terrafm_tiny.yaml").read_text())
    assert tree["modalities"] == ["s2_l1c"]


def test_torchgeos_metadata_say_what_the_contract_says(folder, encoder, contract):
    """The module is imported as a torchgeo user does; torchvision has the classes it is made of."""
    found = runpy.run_path(str(folder / "terrafm_tiny_weights.py"))
    entries = {str(one).rpartition(".")[2]: one for one in found["TerraFMTiny_Weights"]}
    assert set(entries) == {"SENTINEL1", "SENTINEL2_L1C", "SENTINEL2_L2A"}
    for entry in entries.values():
        expected = contract.modalities[entry.meta["sensor"]]
        assert entry.meta["bands"] == list(expected.bands)
        assert entry.meta["in_chans"] == len(expected.bands)
        assert entry.meta["license"] == "unknown"
        # Sentinel-2 as digital numbers, radar in dB, as torchgeo's sets give them.
        scale = 1e-4 if expected.unit == "reflectance" else 1.0
        raw = torch.rand(2, len(expected.bands), 32, 32) * (0.5 / scale)
        pixels = contract.normalise(raw * scale, entry.meta["sensor"])
        normalised = entry.transforms(raw.clone())
        torch.testing.assert_close(normalised, pixels, rtol=1e-4, atol=1e-4)
        model = found["terrafm_tiny"](entry)
        with torch.inference_mode():
            embedding = model(normalised)
            wanted = encoder(pixels, modality=entry.meta["sensor"])
        torch.testing.assert_close(embedding, wanted, rtol=1e-4, atol=1e-4)


def test_torchgeos_metadata_of_one_sensor_and_a_licence(tmp_path, encoder, contract):
    options = ExportOptions(modality="s2_l1c", license="cc-by-4.0")
    export_weights(encoder.state_dict(), contract, str(tmp_path), "torchgeo-bench", options)
    found = runpy.run_path(str(tmp_path / "terrafm_tiny_weights.py"))
    (entry,) = found["TerraFMTiny_Weights"]
    assert (entry.meta["sensor"], entry.meta["license"]) == ("s2_l1c", "cc-by-4.0")
    entry.meta["sensor"] = "landsat"
    with pytest.raises(UsageError, match="not landsat"):
        found["terrafm_tiny"](entry)


_IN_TORCHGEO = """
import torch
from torchgeo.datasets import EuroSAT
from torchvision.models._api import WeightsEnum
from terrafm_tiny_weights import TerraFMTiny_Weights, terrafm_tiny

entry = TerraFMTiny_Weights.SENTINEL2_L1C
assert isinstance(entry, WeightsEnum)
set_ = EuroSAT("data/eurosat", "train", bands=entry.meta["bands"], transforms=entry.transforms)
images = torch.stack([set_[i]["image"] for i in range(4)])
with torch.inference_mode():
    print(terrafm_tiny(entry)(images).flatten().tolist())
"""


@OF_ITS_OWN
def test_torchgeos_sets_take_the_transforms_and_the_model_the_images(
    folder, encoder, contract, tmp_path, shared_folder
):
    labelled, splits = torchgeos_eurosat(tmp_path, shared_folder / "realdata" / "eurosat_ms", 2)
    train = splits == "train"
    where = {"PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    printed = run_its_python("-c", _IN_TORCHGEO, folder=tmp_path, more=where)
    found = torch.tensor(json.loads(printed.splitlines()[-1])).reshape(4, -1)
    statistics = {name: {"mean": m.mean, "std": m.std} for name, m in contract.modalities.items()}
    [[features]] = encoder_features(
        [encoder], labelled, [("s2_l1c",)], statistics, size=64, batch=50,
        device=torch.device("cpu"),
    )  # fmt: skip
    # Its set lists the images in an order of its own.
    distances = torch.cdist(found, torch.from_numpy(features[train]))
    nearest, which = distances.min(1)
    assert nearest.max() < 1e-3 < distances.median()
    assert len(set(which.tolist())) == 4


def run_its_python(*arguments, folder=None, more=()):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **dict(more)}
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(
        [PYTHON, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@OF_ITS_OWN
def test_the_printed_lines_work_there(folder, contract, tmp_path):
    lines = loading_snippet(str(folder), "torchgeo-bench", contract)
    assert run_its_python("-c", lines, folder=tmp_path).splitlines()[-1] == "(1, 96)"


def torchgeos_eurosat(folder, eurosat, parts):
    """EuroSAT's images where torchgeo looks for them; ours, and the split of each.

    Args:
        folder: where torchgeo runs.
        eurosat: the images, a folder a class.
        parts: 3 for three splits of a third each; 2 where the training images validate too.
    """
    labelled = open_labelled(str(eurosat))
    images = folder / "data/eurosat/ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    shutil.copytree(eurosat, images)
    names = [Path(name) for name in labelled.names]
    splits = np.array(["train", "test", "valid"])[np.arange(len(names)) % parts]
    for file, split in {"train": "train", "val": "valid", "test": "test"}.items():
        chosen = splits == (split if split in splits else "train")
        listed = "".join(f"{p.stem}.jpg\n" for p, keep in zip(names, chosen, strict=True) if keep)
        (folder / f"data/eurosat/eurosat-{file}.txt").write_text(listed)
    return labelled, splits


@OF_ITS_OWN
def test_its_command_scores_the_weights_as_ours_would(
    folder, encoder, contract, tmp_path, shared_folder
):
    """k = 5 on EuroSAT's images, split in halves: the same answer as of our own features."""
    labelled, splits = torchgeos_eurosat(tmp_path, shared_folder / "realdata" / "eurosat_ms", 2)
    train = splits == "train"
    run_its_python(
        "-m", "torchgeo_bench", f"hydra.searchpath=[file://{folder}]", "model=terrafm_tiny",
        "dataset.names=[eurosat]", "dataset.bands=all", "dataset.normalization=model_native",
        "dataset.image_size=null", "dataset.num_workers=0", "eval.skip_linear=true",
        "eval.bootstrap=10", "device=cpu", "output=scores.csv", folder=tmp_path,
    )  # fmt: skip
    with (tmp_path / "scores.csv").open() as file:
        row = next(csv.DictReader(file))
    statistics = {name: {"mean": m.mean, "std": m.std} for name, m in contract.modalities.items()}
    [[features]] = encoder_features(
        [encoder], labelled, [("s2_l1c",)], statistics, size=64, batch=50,
        device=torch.device("cpu"),
    )  # fmt: skip
    ours = KNeighborsClassifier(5, algorithm="brute").fit(features[train], labelled.labels[train])
    score = ours.score(features[~train], labelled.labels[~train])
    # The two break ties of a vote differently: one image of fifty is 0.02.
    assert float(row["metric_value"]) == pytest.approx(score, abs=0.021)


@pytest.fixture(scope="module")
def generated(tmp_path_factory, shared_folder):
    """600 images as EuroSAT's: ten classes with a spectrum and a texture, much alike."""
    import rasterio

    folder = tmp_path_factory.mktemp("generated") / "eurosat"
    names = sorted(p.name for p in (shared_folder / "realdata" / "eurosat_ms").iterdir())
    generator = np.random.default_rng(11)
    for number, name in enumerate(name for name in names if "." not in name):
        spectrum = 1400 + 500 * np.random.default_rng(number).random((13, 1, 1))
        for i in range(60):
            coarse = generator.normal(size=(1, 8 + 2 * (number % 4), 8 + 2 * (number % 4)))
            texture = torch.nn.functional.interpolate(
                torch.from_numpy(coarse)[None], size=(64, 64), mode="bicubic"
            )[0].numpy()
            level = 1 + 0.15 * generator.normal(size=(13, 1, 1))
            pixels = spectrum * level * (1 + 0.2 * texture) + 40 * generator.normal(
                size=(13, 64, 64)
            )
            pixels[9] = 12  # The cirrus band.
            path = folder / name / f"{name}_{i + 1}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            with rasterio.open(
                path, "w", driver="GTiff", count=13, height=64, width=64, dtype="uint16",
                crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
            ) as file:  # fmt: skip
                file.write(pixels.clip(1, 20000).astype(np.uint16))
    return folder


@OF_ITS_OWN
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["generated", "eurosat_ms"])
def test_both_packages_score_the_same_weights_alike(
    request, folder, encoder, contract, tmp_path, shared_folder, name
):
    """The same features: their protocols on ours give their scores; what is left is protocol."""
    real = shared_folder / "realdata" / "eurosat_ms"
    eurosat = request.getfixturevalue("generated") if name == "generated" else real
    labelled, splits = torchgeos_eurosat(tmp_path, eurosat, 3)
    run_its_python(
        "-m", "torchgeo_bench", f"hydra.searchpath=[file://{folder}]", "model=terrafm_tiny",
        "dataset.names=[eurosat]", "dataset.bands=all", "dataset.normalization=model_native",
        "dataset.image_size=null", "dataset.num_workers=0", "eval.bootstrap=10",
        "eval.c_range=[-2,4,7]", "eval.merge_val=false", "device=cpu", "output=scores.csv",
        folder=tmp_path,
    )  # fmt: skip
    with (tmp_path / "scores.csv").open() as file:
        theirs = {row["method"]: row for row in csv.DictReader(file)}
    # Ours, by the function behind `terrafm evaluate compare`, on a set with those splits.
    labelled.splits, labelled.groups = splits, np.arange(len(splits))
    options = CompareOptions(protocols=["knn5", "linear"], resamples=10, device="cpu")
    found = compare_opened(labelled, [str(folder / "terrafm_tiny.safetensors")], (), options)
    ours = {
        protocol: scored["scores"]["accuracy"]["value"]
        for protocol, scored in found["rows"][-1]["protocols"].items()
    }
    # Theirs once more: their protocols, written down with scikit-learn, on our features.
    statistics = {key: {"mean": m.mean, "std": m.std} for key, m in contract.modalities.items()}
    [[features]] = encoder_features(
        [encoder], labelled, [("s2_l1c",)], statistics, size=64, batch=50,
        device=torch.device("cpu"),
    )  # fmt: skip
    train, test = splits == "train", splits == "test"
    labels = labelled.labels
    again = {
        "knn5": KNeighborsClassifier(5, algorithm="brute"),
        "linear": LogisticRegression(C=float(theirs["linear"]["best_c"]), max_iter=4000, tol=1e-8),
    }
    images = int(test.sum())
    for protocol, classifier in again.items():
        score = classifier.fit(features[train], labels[train]).score(features[test], labels[test])
        their = float(theirs[protocol]["metric_value"])
        sys.stdout.write(
            f"{name}, {images} scored, {protocol}: torchgeo-bench {100 * their:.1f}, its protocol "
            f"on our features {100 * score:.1f}, terrafm evaluate {100 * ours[protocol]:.1f}\n"
        )
        # Half a point, or the one image on which neighbours at equal distance decide.
        assert abs(their - score) <= max(0.005, 1.01 / images), protocol
