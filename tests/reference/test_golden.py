"""Parity with the released code: outputs of seeded weights, names and shapes of the state dict."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from terrafm.models.encoder import build_encoder

DATA = Path(__file__).resolve().parents[1] / "data"
KEYS = json.loads((DATA / "state_dict_keys.json").read_text())
CASES = {
    "s1_224": (101, (2, 2, 224, 224), "s1"),
    "l1c_224": (102, (2, 12, 224, 224), "s2_l1c"),
    "l2a_224": (103, (2, 12, 224, 224), "s2_l2a"),
    "l1c_96": (104, (3, 12, 96, 96), "s2_l1c"),
    "s1_160": (105, (2, 2, 160, 160), "s1"),
}


def standard_normal(key, shape):
    generator = np.random.Generator(np.random.Philox(key=key))
    values = generator.standard_normal(int(np.prod(shape)), dtype=np.float32)
    return torch.from_numpy(values.reshape(shape))


@pytest.fixture(scope="module")
def base():
    state = {}
    for name, shape in KEYS["terrafm_base"].items():
        values = standard_normal(zlib.crc32(name.encode()), shape) * 0.04
        gain = "norm" in name and name.endswith("weight")
        state[name] = values + 1.0 if gain else values
    encoder = build_encoder("terrafm_base").eval()
    missing, unexpected = encoder.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.startswith("patch_embed.fusion.") for name in missing)
    return encoder


@pytest.mark.parametrize("case", CASES)
def test_outputs_equal_the_released_code(base, case):
    golden = np.load(DATA / "terrafm_base_golden.npz")
    seed, shape, modality = CASES[case]
    images = standard_normal(seed, shape)
    with torch.inference_mode():
        cls = base(images, modality=modality)
        maps = base.forward_features(images, modality=modality, out_indices=(3, 5, 7, 11))
    np.testing.assert_allclose(cls, golden[f"{case}_cls"], rtol=0, atol=1e-4)
    for i, patches in enumerate(maps):
        assert patches.shape == (shape[0], 768, shape[2] // 16, shape[3] // 16)
        mean, pixel = golden[f"{case}_feat{i}_mean"], golden[f"{case}_feat{i}_px"]
        np.testing.assert_allclose(patches.mean((2, 3)), mean, rtol=0, atol=1e-4)
        np.testing.assert_allclose(patches[:, :, 1, 2], pixel, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "parameters"), [("terrafm_base", 113.0e6), ("terrafm_large", 345.0e6)]
)
def test_state_dict_is_the_released_one_and_three_training_only_names(name, parameters):
    with torch.device("meta"):
        state = build_encoder(name).state_dict()
    released = {n: list(t.shape) for n, t in state.items() if "fusion" not in n}
    assert released == KEYS[name]
    assert list(released) == list(KEYS[name])
    assert set(state) - set(released) == {
        "patch_embed.fusion.queries",
        "patch_embed.fusion.key.weight",
        "patch_embed.fusion.readout",
    }
    assert sum(t.numel() for n, t in state.items() if n in released) == pytest.approx(
        parameters, rel=1e-3
    )


def test_input_may_have_any_aspect_of_whole_patches(base):
    """A transposed image under a transposed position embedding gives the same embedding."""
    images = standard_normal(7, (1, 2, 96, 160))
    with torch.inference_mode():
        wide = base.position_embedding(6, 10)[:, 1:].unflatten(1, (6, 10))
        positions = base.pos_embed[:, 1:].unflatten(1, (14, 14)).transpose(1, 2)
        original = base.pos_embed.clone()
        base.pos_embed[:, 1:] = positions.flatten(1, 2)
        tall = base.position_embedding(10, 6)[:, 1:].unflatten(1, (10, 6))
        base.pos_embed.copy_(original)
        torch.testing.assert_close(tall.transpose(1, 2), wide, atol=1e-6, rtol=1e-5)
        assert base(images, modality="s1").shape == (1, 768)
        (patches,) = base.forward_features(images, modality="s1", out_indices=(0,))
        assert patches.shape == (1, 768, 6, 10)
