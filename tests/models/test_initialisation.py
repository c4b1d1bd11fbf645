"""What a fresh model is made of: the released file's initialisation, and DINO's for the head."""

import math

import pytest
import torch
from torch import Tensor, nn

from terrafm.modalities import MODALITIES
from terrafm.models.dino_head import DINOHead
from terrafm.models.encoder import build_encoder
from terrafm.models.packing import patchify


def deviation(parameter: Tensor) -> float:
    return parameter.detach().std().item()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return build_encoder("terrafm_small").eval()


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_patch_embedding_is_as_large_as_its_fan_in_asks_for(encoder, modality):
    conv = encoder.patch_embed.get_submodule(f"conv2d_{modality}")
    bound = 1 / math.sqrt(conv.weight[0].numel())
    for parameter in (conv.weight, conv.bias):
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.98 * bound
    assert deviation(conv.weight) == pytest.approx(bound / math.sqrt(3), rel=0.01)


def test_modality_vectors_start_at_zero(encoder):
    for vector in encoder.patch_embed.modality_vectors():
        assert not vector.any()


def test_linear_layers_norms_and_embeddings_are_those_of_a_vision_transformer(encoder):
    for name, layer in encoder.named_modules():
        if isinstance(layer, nn.Linear):
            assert deviation(layer.weight) == pytest.approx(0.02, rel=0.02), name
            assert layer.bias is None or not layer.bias.any(), name
        elif isinstance(layer, nn.LayerNorm):
            assert (layer.weight == 1).all(), name
            assert not layer.bias.any(), name
    fusion = encoder.patch_embed.fusion
    for parameter in (encoder.pos_embed, encoder.cls_token, fusion.queries, fusion.readout):
        assert deviation(parameter) == pytest.approx(0.02, rel=0.1)


@torch.no_grad()
def test_radar_has_its_share_of_an_equal_mix(encoder):
    """A third: each sensor's tokens have the variance 1/3 on white noise. At a standard deviation
    of 0.02 for every sensor, radar's 2 bands against 12 would have 2 / (2 + 12 + 12) = 8 %."""
    generator = torch.Generator().manual_seed(1)
    variance = {}
    for name, sensor in MODALITIES.items():
        images = torch.randn((16, sensor.channels, 64, 64), generator=generator)
        layer = encoder.patch_embed.get_submodule(f"conv2d_{name}")
        patches = patchify(images, 16).flatten(3).flatten(0, 2)
        variance[name] = layer(patches, torch.zeros(1, len(layer.bias))).var().item()
        assert variance[name] == pytest.approx(1 / 3, rel=0.1)
    assert variance["s1"] / sum(variance.values()) == pytest.approx(1 / 3, abs=0.03)


def test_the_head_is_dinos():
    torch.manual_seed(0)
    head = DINOHead(96, num_prototypes=4096)
    for layer in head.mlp:
        if isinstance(layer, nn.Linear):
            assert deviation(layer.weight) == pytest.approx(0.02, rel=0.02)
            assert not layer.bias.any()
    # nn.Linear's default in DINO: uniform within +-1/16, so 0.036 before it is normalised.
    prototypes = head.last_layer.weight
    assert prototypes.abs().max() <= 1 / 16
    assert deviation(prototypes) == pytest.approx(1 / (16 * math.sqrt(3)), rel=0.01)
