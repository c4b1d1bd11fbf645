"""The head: unit gain, precision, frozen prototypes."""

import torch
import torch.nn.functional as F

from terrafm.models.dino_head import DINOHead, Prototypes


def test_logits_are_cosines_in_float32_whatever_autocast_says():
    torch.manual_seed(0)
    head = DINOHead(24, num_prototypes=50, hidden_dim=32, bottleneck_dim=8)
    x = torch.randn(6, 24)
    logits = head(x)
    expected = F.cosine_similarity(head.mlp(x).unsqueeze(1), head.last_layer.weight, dim=-1)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        head.last_layer.weight.mul_(7.0)  # the gain is the direction's only partner, and is 1
    torch.testing.assert_close(head(x), logits, atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = head(x)
        bottleneck = head.mlp(x)
    assert bottleneck.dtype == torch.bfloat16
    assert inside.dtype == torch.float32
    exact = F.cosine_similarity(bottleneck.float().unsqueeze(1), head.last_layer.weight, dim=-1)
    torch.testing.assert_close(inside, exact, atol=1e-6, rtol=1e-5)


def test_frozen_prototypes_get_a_gradient_of_exact_zeros_and_the_rest_is_unchanged():
    torch.manual_seed(0)
    head = DINOHead(24, num_prototypes=50, hidden_dim=32, bottleneck_dim=8)
    x = torch.randn(6, 24)
    results = {}
    for freeze in (False, True):
        head.zero_grad()
        logits = head(x, freeze_prototypes=freeze)
        logits.square().sum().backward()
        results[freeze] = logits.detach(), {n: p.grad.clone() for n, p in head.named_parameters()}
    assert torch.equal(results[False][0], results[True][0])
    for name, grad in results[True][1].items():
        if name == "last_layer.weight":
            assert (grad == 0).all()
            assert results[False][1][name].any()
        else:
            torch.testing.assert_close(grad, results[False][1][name])


def test_gradients_are_those_of_normed_rows_and_directions_are_the_same():
    torch.manual_seed(0)
    head = Prototypes(8, 50)
    torch.nn.init.normal_(head.weight)
    results = {}
    for name in ("ours", "autograd"):
        x = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        out = head(x) if name == "ours" else F.linear(F.normalize(x), F.normalize(head.weight))
        out.square().sum().backward()
        results[name] = out.detach(), x.grad, head.weight.grad
    for ours, theirs in zip(*results.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert torch.equal(head(x.detach(), directions=head.directions()), results["ours"][0])
