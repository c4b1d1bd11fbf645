"""Per-position fusion against one image and one position at a time, in float64, with keys,
values and queries formed as the method writes them."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.packing import patchify

NAMES = list(MODALITIES)


@pytest.fixture(scope="module")
def encoder():
    """Parameters large enough that attention and query weights are far from uniform."""
    torch.manual_seed(0)
    encoder = build_encoder("terrafm_tiny").eval()
    with torch.no_grad():
        for name, parameter in encoder.patch_embed.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm_input.weight") else 0.0, 0.1)
        encoder.patch_embed.fusion.queries.normal_(0.0, 0.6)
    return encoder


def softmax(x):
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def naive_tokens(encoder, views, single):
    """Tokens (N, D) of one image; `views` is modality -> (C, H, W)."""
    weights = {n: p.detach().double().numpy() for n, p in encoder.patch_embed.named_parameters()}
    tokens = {}
    for name, pixels in views.items():
        image = pixels.double().numpy()
        rows = []
        for i in range(0, image.shape[1], 16):
            for j in range(0, image.shape[2], 16):
                patch = image[:, i : i + 16, j : j + 16]
                row = np.einsum("dchw,chw->d", weights[f"conv2d_{name}.weight"], patch)
                rows.append(row + weights[f"conv2d_{name}.bias"] + weights[f"{name}_embed"][0])
        tokens[name] = np.stack(rows)
    proj1 = weights["projection.proj1.weight"]
    out = []
    for n in range(len(next(iter(tokens.values())))):
        t = np.stack([tokens[name][n] for name in views])
        if single:
            (fused,) = t @ proj1.T
        else:
            keys, values = t @ weights["fusion.key.weight"].T, t @ proj1.T
            attention = softmax(weights["fusion.queries"] @ keys.T * t.shape[1] ** -0.5)
            z = attention @ values
            fused = softmax(weights["fusion.readout"][0] @ z.T) @ z
        normed = (fused - fused.mean()) / np.sqrt(fused.var() + 1e-5)
        normed = normed * weights["projection.norm_input.weight"]
        normed = normed + weights["projection.norm_input.bias"]
        for layer in ("proj2", "proj3"):
            normed = weights[f"projection.{layer}.weight"] @ normed
            normed = normed + weights[f"projection.{layer}.bias"]
        out.append(normed)
    return np.stack(out)


def images_of(names, count, height=32, width=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(count, MODALITIES[name].channels, height, width, generator=generator)
        for name in names
    }


@pytest.mark.parametrize(
    "names", [NAMES, NAMES[:2], ["s2_l2a", "s1"], ["s2_l2a", "s2_l1c"]], ids="+".join
)
def test_fusion_of_several_modalities(encoder, names):
    images = images_of(names, 3)
    rows = dict.fromkeys(images, torch.arange(3))
    exact = copy.deepcopy(encoder.patch_embed).double()
    with torch.inference_mode():
        fused = encoder.patch_embed(images, rows, 3)
        fused_double = exact({n: x.double() for n, x in images.items()}, rows, 3)
    for b in range(3):
        expected = naive_tokens(encoder, {n: x[b] for n, x in images.items()}, single=False)
        np.testing.assert_allclose(fused_double[b], expected, rtol=1e-9, atol=1e-9)
        # Sums of 3,072 products in float32: processors differ, by up to 1.5e-5.
        np.testing.assert_allclose(fused[b], expected, atol=5e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_fusion_of_one_modality_is_case_n(encoder, name):
    images = images_of([name], 2)
    with torch.inference_mode():
        fused = encoder.patch_embed(images, {name: torch.arange(2)}, 2)
        alone = encoder.patch_embed(images)
    torch.testing.assert_close(fused, alone, atol=1e-6, rtol=0)
    for single in (True, False):  # the method's two descriptions agree with each other
        expected = naive_tokens(encoder, {name: images[name][0]}, single=single)
        np.testing.assert_allclose(fused[0], expected, atol=1e-5 * np.abs(expected).max())


def test_the_reference_is_sensitive_to_fusion(encoder):
    """The parameters of this test make fusion differ from a plain mean of the values."""
    images = images_of(NAMES, 1)
    with torch.inference_mode():
        embed = encoder.patch_embed
        patches = [patchify(images[n], 16).reshape(6, -1) for n in embed.modalities]
        tokens = [embed._embed(n, p) for n, p in zip(embed.modalities, patches, strict=True)]
        slot = torch.arange(3 * 6)
        mixing = embed.fusion(torch.cat(tokens), slot, (3, 6), embed.projection.proj1)
    stacked = mixing.view(3, 6)
    torch.testing.assert_close(stacked.sum(0), torch.ones(6))
    assert stacked.min() < 0.2
    assert stacked.max() > 0.6


@settings(max_examples=25)
@given(
    sets=st.lists(st.sets(st.sampled_from(NAMES), min_size=1), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
)
def test_ragged_batches_equal_per_image_calls(encoder, sets, seed):
    generator = torch.Generator().manual_seed(seed)
    everything = images_of(NAMES, len(sets), 32, 32, seed)
    image, pixels = {}, {}
    for name in NAMES:
        rows = torch.tensor([i for i, s in enumerate(sets) if name in s], dtype=torch.int64)
        if len(rows):
            image[name] = rows[torch.randperm(len(rows), generator=generator)]
            pixels[name] = everything[name][image[name]]
    with torch.inference_mode():
        together = encoder.forward_views(pixels, image, len(sets))
        for i, names in enumerate(sets):
            views = {n: everything[n][i : i + 1] for n in NAMES if n in names}
            alone = encoder(views)
            torch.testing.assert_close(together[i], alone[0], atol=2e-5, rtol=1e-5)
            if len(names) == 1:
                ((name, x),) = views.items()
                case_n = encoder(x, modality=name)[0]
                torch.testing.assert_close(together[i], case_n, atol=2e-5, rtol=1e-5)
