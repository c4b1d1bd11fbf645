"""The encoder's interface: training behaviour, wrong input."""

import pytest
import torch

from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.models.dino_head import DINOHead
from terrafm.models.encoder import ARCHITECTURES, build_encoder


@pytest.fixture
def batch():
    """Four images: {s1, l2a}, {l1c}, {all three}, {l2a}."""
    torch.manual_seed(0)
    return {
        "pixels": {
            "s1": torch.randn(2, 2, 32, 32),
            "s2_l1c": torch.randn(2, 12, 32, 32),
            "s2_l2a": torch.randn(3, 12, 32, 32),
        },
        "image": {
            "s1": torch.tensor([2, 0]),
            "s2_l1c": torch.tensor([1, 2]),
            "s2_l2a": torch.tensor([0, 2, 3]),
        },
        "size": 4,
    }


def gradients(encoder, batch, **options):
    encoder.zero_grad()
    out = encoder.forward_views(**batch, **options)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
    return out.detach(), {n: p.grad.clone() for n, p in encoder.named_parameters()}


@pytest.mark.parametrize("drop", [0.0, 0.3])
def test_every_parameter_gets_a_gradient_when_all_modalities_are_in_play(batch, drop):
    encoder = build_encoder("terrafm_tiny", drop_path=drop)
    _, grads = gradients(encoder, batch, drop_path_key=torch.arange(4))
    assert [name for name, grad in grads.items() if not grad.any()] == []


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("how", ["left out", "no rows"])
def test_parameters_of_a_modality_that_is_not_drawn_get_zeros(batch, autocast, how):
    encoder = build_encoder("terrafm_tiny")
    if how == "left out":
        batch["pixels"].pop("s2_l1c")
        batch["image"].pop("s2_l1c")
    else:
        batch["pixels"]["s2_l1c"] = torch.zeros(0, 12, 32, 32)
        batch["image"]["s2_l1c"] = torch.zeros(0, dtype=torch.int64)
    batch["image"]["s1"] = torch.tensor([1, 0])
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        _, grads = gradients(encoder, batch)
    without = {name for name, grad in grads.items() if not grad.any()}
    assert without == {n for n in grads if "s2_l1c" in n}


def test_single_modality_batches_leave_fusion_a_zero_gradient():
    encoder = build_encoder("terrafm_tiny")
    single = {
        "pixels": {"s1": torch.randn(2, 2, 32, 32)},
        "image": {"s1": torch.arange(2)},
        "size": 2,
    }
    _, grads = gradients(encoder, single)
    for name, grad in grads.items():
        assert grad.any() == ("fusion" not in name and "s2" not in name), name


@pytest.mark.parametrize("make", [lambda: build_encoder("terrafm_tiny"), lambda: DINOHead(96, 64)])
def test_every_parameter_is_initialised(make):
    module = make()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(float("nan"))
    module.init_weights()
    assert [n for n, p in module.named_parameters() if not torch.isfinite(p).all()] == []


def test_attention_is_pytorchs_scaled_dot_product_attention(monkeypatch):
    calls = []
    original = torch.nn.functional.scaled_dot_product_attention

    def counted(*args, **kwargs):
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    encoder = build_encoder("terrafm_tiny")
    encoder(torch.zeros(1, 2, 32, 32), modality="s1")
    assert len(calls) == ARCHITECTURES["terrafm_tiny"].depth


def test_drop_path_is_the_images_own_whatever_the_batch(batch):
    encoder = build_encoder("terrafm_tiny", drop_path=0.5)
    keys = torch.tensor([11, -5, 2**62, 7])
    with torch.no_grad():
        together = encoder.forward_views(**batch, drop_path_key=keys)
        plain = encoder.forward_views(**batch)
        for i in range(4):
            rows = {m: (index == i) for m, index in batch["image"].items()}
            alone = encoder.forward_views(
                {m: batch["pixels"][m][r] for m, r in rows.items() if r.any()},
                {m: torch.zeros(1, dtype=torch.int64) for m, r in rows.items() if r.any()},
                1,
                keys[i : i + 1],
            )
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(together, plain, atol=1e-3)


def test_activation_checkpointing_changes_nothing(batch):
    encoder = build_encoder("terrafm_tiny", drop_path=0.3)
    key = torch.arange(4)
    out, grads = gradients(encoder, batch, drop_path_key=key)
    encoder.activation_checkpointing = True
    again, grads_again = gradients(encoder, batch, drop_path_key=key)
    assert torch.equal(out, again)
    for name, grad in grads.items():
        torch.testing.assert_close(grads_again[name], grad, msg=name)


def test_modality_is_taken_as_told():
    encoder = build_encoder("terrafm_tiny").eval()
    x = torch.randn(2, 12, 32, 32)
    with torch.inference_mode():
        l1c, l2a = encoder(x, modality="s2_l1c"), encoder(x, "s2_l2a")
        same = encoder({"s2_l2a": x})
        swapped = encoder({"s2_l1c": x, "s2_l2a": 2 * x})
        ordered = encoder({"s2_l2a": 2 * x, "s2_l1c": x})
    assert not torch.allclose(l1c, l2a, atol=1e-4)
    assert torch.equal(same, l2a)
    torch.testing.assert_close(swapped, ordered)


def test_features_come_in_the_order_asked_for_and_end_in_the_last_block():
    encoder = build_encoder("terrafm_tiny").eval()
    x = torch.randn(2, 2, 64, 32)
    with torch.inference_mode():
        maps = encoder.forward_features(x, modality="s1", out_indices=(2, 0, -1))
        (last,) = encoder.forward_features({"s1": x})
        (fused,) = encoder.forward_features({"s1": x, "s2_l2a": torch.randn(2, 12, 64, 32)})
    assert [tuple(m.shape) for m in maps] == [(2, 96, 4, 2)] * 3
    assert torch.equal(maps[0], maps[2])
    assert torch.equal(maps[0], last)
    assert not torch.allclose(maps[0], maps[1])
    assert fused.shape == last.shape


NAN = torch.zeros(1, 2, 32, 32)
NAN[0, 1, 3, 3] = float("nan")


@pytest.mark.parametrize(
    ("x", "modality", "message"),
    [
        (torch.zeros(1, 2, 32, 32), None, "say which modality"),
        (torch.zeros(1, 2, 32, 32), "s3", "unknown modality 's3'"),
        ({"s1": torch.zeros(1, 2, 32, 32)}, "s1", "mapping names its own"),
        ({}, None, "empty"),
        (torch.zeros(1, 13, 32, 32), "s2_l1c", r"\(B, 12, H, W\)"),
        (torch.zeros(2, 32, 32), "s1", r"\(B, 2, H, W\)"),
        (torch.zeros(1, 2, 32, 33), "s1", "multiples of 16"),
        (torch.zeros(1, 2, 0, 16), "s1", "multiples of 16"),
        (NAN, "s1", "NaN"),
        (
            {"s1": torch.zeros(1, 2, 32, 32), "s2_l2a": torch.zeros(1, 12, 48, 32)},
            None,
            "agree in batch and size",
        ),
    ],
)
def test_wrong_input_is_one_clear_line(x, modality, message):
    encoder = build_encoder("terrafm_tiny")
    for call in (encoder, encoder.forward_features):
        with pytest.raises(ValueError, match=message) as error:
            call(x, modality)
        assert "\n" not in str(error.value)


def test_blocks_that_do_not_exist_and_unknown_models_are_refused():
    encoder = build_encoder("terrafm_tiny")
    with pytest.raises(ValueError, match=r"out_indices must be in 0\.\.2"):
        encoder.forward_features(torch.zeros(1, 2, 32, 32), "s1", (3,))
    with pytest.raises(UsageError, match="terrafm_base"):
        build_encoder("terrafm_huge")


def test_band_counts_come_from_the_single_source_of_truth():
    encoder = build_encoder("terrafm_tiny")
    for name, modality in MODALITIES.items():
        convolution = encoder.patch_embed.get_submodule(f"conv2d_{name}")
        assert convolution.in_channels == modality.channels


POSITIONS = torch.tensor([0, 3, 6, 13])  # of four images with four patches each


def test_masked_patches_are_the_token_before_the_position_embedding(batch):
    """Against patch tokens that are replaced by hand, one at a time, after fusion."""
    encoder = build_encoder("terrafm_tiny")
    token = torch.randn(1, encoder.embed_dim)
    found = encoder.forward_views(**batch, positions=POSITIONS, mask_token=token)
    tokens = encoder.patch_embed(batch["pixels"], batch["image"], 4).detach().clone()
    for position in POSITIONS.tolist():
        tokens[position // 4, position % 4] = token
    cls = encoder.cls_token.expand(4, 1, -1)
    tokens = torch.cat([cls, tokens], 1) + encoder.position_embedding(2, 2)
    for block in encoder.blocks:
        tokens = block(tokens)
    tokens = encoder.norm(tokens)
    guessed = torch.stack([tokens[p // 4, 1 + p % 4] for p in POSITIONS.tolist()])
    torch.testing.assert_close(found, torch.cat([tokens[:, 0], guessed]), rtol=1e-5, atol=1e-6)


def test_what_a_masked_patch_shows_has_no_effect_on_its_image(batch):
    encoder = build_encoder("terrafm_tiny")
    token = torch.zeros(1, encoder.embed_dim)
    options = {"positions": POSITIONS, "mask_token": token}
    before = encoder.forward_views(**batch, **options)
    row = batch["image"]["s2_l2a"].tolist().index(3)
    # Position 13 is the upper right patch of image 3.
    batch["pixels"]["s2_l2a"][row, :, :16, 16:] += 1.0
    assert torch.equal(encoder.forward_views(**batch, **options), before)
    assert not torch.allclose(encoder.forward_views(**batch), before[:4], atol=1e-3)


def test_without_a_mask_token_the_patches_are_those_of_a_dense_task(batch):
    encoder = build_encoder("terrafm_tiny")
    pixels = batch["pixels"]["s1"]
    images = {"pixels": {"s1": pixels}, "image": {"s1": torch.arange(2)}, "size": 2}
    found = encoder.forward_views(**images, positions=torch.arange(8))
    cls, patches = encoder.forward_tokens(pixels, "s1")
    expected = torch.cat([cls, patches.flatten(2).transpose(1, 2).flatten(0, 1)])
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    alone = encoder.forward_views(**images)
    torch.testing.assert_close(alone, found[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [4, 0])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_mask_token_and_all_others_have_a_gradient(batch, count, autocast):
    encoder = build_encoder("terrafm_tiny")
    token = torch.nn.Parameter(torch.zeros(1, encoder.embed_dim))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        _, grads = gradients(encoder, batch, positions=POSITIONS[:count], mask_token=token)
    assert [name for name, grad in grads.items() if not grad.any()] == []
    assert bool(token.grad.any()) == (count > 0)
