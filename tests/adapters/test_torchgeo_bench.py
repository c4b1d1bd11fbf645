"""The encoder as torchgeo-bench takes it: against its interface, and by its own command.

torchgeo-bench wants Python 3.12 and packages of its own. TORCHGEO_BENCH_PYTHON names an
interpreter that has it, beside fsspec, pyarrow, pydantic, safetensors and tenacity.
"""

import csv
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from band_specs import EUROSAT, BandSpec, optical, radar
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.features.extraction import encoder_features
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


def run_its_python(*arguments, folder=None):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("PYTEST_CURRENT_TEST", None)
    done = subprocess.run(
        [PYTHON, *arguments], cwd=folder, env=environment, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@OF_ITS_OWN
def test_the_printed_lines_work_there(folder, contract, tmp_path):
    lines = loading_snippet(str(folder), "torchgeo-bench", contract)
    assert run_its_python("-c", lines, folder=tmp_path).splitlines()[-1] == "(1, 96)"


@OF_ITS_OWN
def test_its_command_scores_the_weights_as_ours_would(
    folder, encoder, contract, tmp_path, shared_folder
):
    """k = 5 on EuroSAT's images, split in halves: the same answer as of our own features."""
    eurosat = shared_folder / "realdata" / "eurosat_ms"
    labelled = open_labelled(str(eurosat))
    images = tmp_path / "data/eurosat/ds/images/remote_sensing/otherDatasets/sentinel_2/tif"
    shutil.copytree(eurosat, images)
    names = [Path(name) for name in labelled.names]
    train = np.arange(len(names)) % 2 == 0
    for split, chosen in {"train": train, "val": train, "test": ~train}.items():
        listed = "".join(f"{p.stem}.jpg\n" for p, keep in zip(names, chosen, strict=True) if keep)
        (tmp_path / f"data/eurosat/eurosat-{split}.txt").write_text(listed)
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
