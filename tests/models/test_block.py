"""Our block against timm's, which the released network was built from."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block

from terrafm.models.block import EncoderBlock, GeluLinear, layer_norm


@pytest.mark.parametrize(("dim", "heads", "tokens"), [(96, 3, 17), (64, 1, 2), (128, 4, 50)])
def test_a_block_is_timms(dim, heads, tokens):
    torch.manual_seed(0)
    theirs = Block(dim, heads, mlp_ratio=4, qkv_bias=True, norm_layer=layer_norm_of).double()
    ours = EncoderBlock(dim, heads).double()
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    x = torch.randn(3, tokens, dim, dtype=torch.float64)
    mine, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    answer, expected = ours(mine), theirs(other)
    torch.testing.assert_close(answer, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(answer)
    (answer * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)
    named = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, named[name].grad, rtol=0, atol=1e-11)


def layer_norm_of(dim, **_):
    return layer_norm(dim)


def block_and_images(dtype=torch.float64):
    torch.manual_seed(1)
    block = EncoderBlock(96, 3).to(dtype)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return block, [torch.randn(2, 17, 96, dtype=dtype), torch.randn(5, 5, 96, dtype=dtype)]


def outcome(block, run, *inputs):
    """Outputs, and the gradients of inputs and parameters."""
    block.zero_grad()
    inputs = [x.clone().requires_grad_() for x in inputs]
    out = run(*inputs)
    (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum().backward()
    return [out.detach(), *(x.grad for x in inputs), *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("cls_only", [False, True])
def test_images_of_two_sizes_are_as_each_size_alone(cls_only, dropped):
    """Packed, and the CLS tokens alone, against whole blocks of each size."""
    block, (large, small) = block_and_images()
    shape = [(2, 17), (5, 5)]
    factor = torch.tensor([0.0, 1.25, 1.25, 1.0, 0.0, 2.0, 1.25], dtype=torch.float64)
    scales = torch.stack([factor, factor.flip(0)]) if dropped else None

    def of_rows(part, tokens):
        return None if scales is None else scales[:, part].repeat_interleave(tokens, 1)[..., None]

    def alone(a, b):
        rows = zip((a, b), shape, (slice(0, 2), slice(2, 7)), strict=True)
        outs = [block(x, None if scales is None else of_rows(part, n).unflatten(1, (-1, n)))
                for x, (_, n), part in rows]  # fmt: skip
        kept = [x[:, 0] if cls_only else x.flatten(0, 1) for x in outs]
        return torch.cat(kept)

    def packed(a, b):
        wide = None
        if scales is not None:
            wide = scales[..., None] if cls_only else torch.cat(
                [of_rows(slice(0, 2), 17), of_rows(slice(2, 7), 5)], 1)  # fmt: skip
        tokens = torch.cat([a.flatten(0, 1), b.flatten(0, 1)])
        return block(tokens, wide, shape, cls_only)

    found, expected = (outcome(block, run, large, small) for run in (packed, alone))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_gelu_is_computed_again_and_not_kept():
    torch.manual_seed(0)
    layer = GeluLinear(32, 8)
    x = torch.randn(64, 32)

    def plain(x):
        return F.linear(F.gelu(x), layer.weight, layer.bias)

    sizes = {}
    for run in (layer, plain):
        sizes[run] = []
        keep = sizes[run].append
        with torch.autograd.graph.saved_tensors_hooks(lambda t, k=keep: (k(t), t)[1], lambda t: t):
            run(x.clone().requires_grad_())
    assert sum(t.shape == x.shape for t in sizes[plain]) == 2
    assert sum(t.shape == x.shape for t in sizes[layer]) == 1
    for ours, theirs in zip(outcome(layer, layer, x), outcome(layer, plain, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_under_autocast_the_branches_are_bfloat16_and_the_sum_is_float32():
    block, (images, _) = block_and_images(torch.float32)
    scales = torch.tensor([[[0.0], [1.1111]], [[1.1111], [1.0]]])
    wide = scales.repeat_interleave(17, 1)
    run = lambda x: block(x.flatten(0, 1), wide, [(2, 17)])  # noqa: E731
    exact = outcome(block, run, images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = outcome(block, run, images)
    assert half[0].dtype == half[1].dtype == torch.float32
    # Image 0 keeps its tokens past the attention whose factor is 0, to the bit.
    alone = block.mlp(block.norm2(images[0])) * 1.1111 + images[0]
    torch.testing.assert_close(exact[0][:17], alone.detach())
    for rough, fine in zip(half, exact, strict=True):
        assert float((rough - fine).norm()) < 0.02 * float(fine.norm()) + 1e-6
