"""The encoder as PANGAEA takes it: against its interface, and with its own decoder.

PANGAEA is no package: PANGAEA_SOURCE names a checkout, PANGAEA_PYTHON an interpreter with what it
imports (torch, hydra-core, gdown, tqdm) beside fsspec, pyarrow, pydantic, safetensors and tenacity.
"""

import os
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from terrafm.errors import UsageError
from terrafm.export import ExportOptions, export_weights, loading_snippet

ROOT = Path(__file__).resolve().parents[2]
SOURCE, PYTHON = os.environ.get("PANGAEA_SOURCE"), os.environ.get("PANGAEA_PYTHON")
OF_ITS_OWN = pytest.mark.skipif(
    not (SOURCE and PYTHON), reason="PANGAEA_SOURCE and PANGAEA_PYTHON name no PANGAEA"
)
_DECODE = """
import sys, torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pangaea.decoders.upernet import SegUPerNet
encoder = instantiate(OmegaConf.load(sys.argv[1]))
decoder = SegUPerNet(encoder, num_classes=3, finetune=False, channels=32, feature_multiplier=1)
image = {g: torch.zeros(2, len(b), 1, 64, 64) for g, b in encoder.input_bands.items()}
print(tuple(decoder(image, output_shape=(60, 60)).shape))
"""


class PangaeaEncoder(nn.Module):
    """The part of `pangaea.encoders.base.Encoder` that a model touches."""

    def __init__(self, model_name, input_bands, input_size, embed_dim, output_layers, output_dim,
                 multi_temporal, multi_temporal_output, pyramid_output, encoder_weights,
                 download_url):  # fmt: skip
        super().__init__()
        self.input_bands, self.output_layers = input_bands, output_layers
        self.output_dim = [output_dim] * len(output_layers)
        assert not download_url  # It would be fetched.


@pytest.fixture
def encoder_class(adapter_over):
    modules = {
        "pangaea": {},
        "pangaea.encoders": {},
        "pangaea.encoders.base": {"Encoder": PangaeaEncoder},
    }
    return adapter_over("pangaea", modules).TerraFMEncoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, encoder, contract):
    output = tmp_path_factory.mktemp("exported")
    written = export_weights(encoder.state_dict(), contract, str(output), "pangaea")
    assert [Path(uri).name for uri in written] == [
        "terrafm_tiny.safetensors",
        "terrafm_tiny_optical.yaml",
        "terrafm_tiny_sar.yaml",
        "terrafm_tiny_joint.yaml",
        "terrafm_tiny.safetensors.stac.json",
    ]
    return output


def arguments(folder, group):
    tree = yaml.safe_load((folder / f"encoder/terrafm_tiny_{group}.yaml").read_text())
    assert tree.pop("_target_") == "terrafm.adapters.pangaea.TerraFMEncoder"
    return tree


def test_maps_are_the_encoders(encoder_class, folder, encoder):
    model = encoder_class(**arguments(folder, "optical"))
    assert model.input_bands["optical"][:2] == ["B1", "B2"]
    assert model.input_bands["optical"][8:] == ["B8A", "B9", "B11", "B12"]
    image = torch.randn(2, 12, 64, 64)
    with torch.inference_mode():
        maps = model({"optical": image})
        expected = encoder.forward_features(image, "s2_l2a", model.output_layers)
        for ours, theirs in zip(maps, expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        assert torch.equal(model({"optical": image[:, :, None]})[0], maps[0])
    assert [m.shape[1] for m in maps] == model.output_dim


def test_radar_and_both(encoder_class, folder, encoder):
    x = {"optical": torch.randn(1, 12, 64, 64), "sar": torch.randn(1, 2, 64, 64)}
    with torch.inference_mode():
        fused = encoder_class(**arguments(folder, "joint"))(x)
        ours = encoder.forward_features({"s2_l2a": x["optical"], "s1": x["sar"]}, None, [2])
        torch.testing.assert_close(fused[-1], ours[0])
        alone = encoder_class(**arguments(folder, "sar"))({"sar": x["sar"]})
    assert not torch.equal(alone[-1], fused[-1])


def test_the_optical_bands_of_choice_and_weights_without_fusion(tmp_path, encoder, contract):
    state = {k: v for k, v in encoder.state_dict().items() if ".fusion." not in k}
    options = ExportOptions(modality="s2_l1c")
    written = export_weights(state, contract, str(tmp_path), "pangaea", options)
    assert [Path(uri).stem for uri in written[1:-1]] == ["terrafm_tiny_optical", "terrafm_tiny_sar"]
    assert arguments(tmp_path, "optical")["modalities"] == {"optical": "s2_l1c"}
    with pytest.raises(UsageError, match=r"--modality s1: of pangaea .* radar has"):
        export_weights(state, contract, str(tmp_path), "pangaea", ExportOptions(modality="s1"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_size": 40}, "a size of 40 pixels is no multiple of 16"),
        ({"modalities": {"optical": "s3"}}, "trained on s1, s2_l1c, s2_l2a, not on s3"),
    ],
)
def test_bad_configurations_are_one_line(encoder_class, folder, changed, message):
    with pytest.raises(UsageError, match=message):
        encoder_class(**(arguments(folder, "optical") | changed))


@OF_ITS_OWN
@pytest.mark.parametrize("group", ["optical", "sar", "joint"])
def test_its_decoder_takes_it(folder, contract, group):
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{SOURCE}"}
    lines = [_DECODE, loading_snippet(str(folder), "pangaea", contract)]
    expected = ["(2, 3, 60, 60)", str([(1, 96, 4, 4)] * 4)]
    for code, printed in zip(lines, expected, strict=True):
        done = subprocess.run(
            [PYTHON, "-c", code, str(folder / f"encoder/terrafm_tiny_{group}.yaml")],
            env=environment, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == printed
