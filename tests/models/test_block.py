"""Our block against timm's, which the released network was built from."""

import pytest
import torch
from timm.models.vision_transformer import Block

from terrafm.models.block import EncoderBlock, layer_norm


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
