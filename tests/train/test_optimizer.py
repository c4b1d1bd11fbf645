import math

import pytest
import torch

from terrafm.config import OptimConfig, load_config
from terrafm.train.step.distillation import Network
from terrafm.train.step.optimizer import (
    GROUPS,
    build_optimizer,
    group_of,
    parameter_groups,
    write_settings,
)
from terrafm.train.step.schedules import StepSettings


@pytest.fixture(scope="module")
def student():
    return Network(load_config("demo"))


def test_every_parameter_is_in_one_group(student):
    groups = parameter_groups(student)
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in student.parameters())


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("encoder.cls_token", "no_decay"),
        ("encoder.pos_embed", "no_decay"),
        ("encoder.patch_embed.s1_embed", "no_decay"),
        ("encoder.patch_embed.s2_l2a_embed", "no_decay"),
        ("encoder.patch_embed.conv2d_s1.weight", "decay"),
        ("encoder.patch_embed.conv2d_s1.bias", "no_decay"),
        ("encoder.patch_embed.projection.norm_input.weight", "no_decay"),
        ("encoder.patch_embed.projection.proj1.weight", "decay"),
        ("encoder.patch_embed.fusion.queries", "no_decay"),
        ("encoder.patch_embed.fusion.readout", "no_decay"),
        ("encoder.patch_embed.fusion.key.weight", "decay"),
        ("encoder.blocks.0.norm1.weight", "no_decay"),
        ("encoder.blocks.0.attn.qkv.weight", "decay"),
        ("encoder.norm.bias", "no_decay"),
        ("head.mlp.0.weight", "decay"),
        ("head.last_layer.weight", "prototypes"),
    ],
)
def test_weight_decay_skips_what_the_method_says(student, name, group):
    assert name in dict(student.named_parameters())
    assert group_of(name) == group


def test_weight_decay_skips_the_mask_token():
    student = Network(load_config("demo", ["loss.masked_patch_weight=1"]))
    assert [n for n, _ in student.named_parameters() if n.endswith("mask_token")] == ["mask_token"]
    assert group_of("mask_token") == "no_decay"


def test_layers_have_the_rates_of_dinov2(student):
    """Against the rule as DINOv2 writes it: blocks count from 1, the head is after the last."""
    depth = len(student.encoder.blocks)
    groups = parameter_groups(student, (0.9, 0.2))
    rates = {id(p): group["rate"] for group in groups for p in group["params"]}
    assert sorted(rates) == sorted(id(p) for p in student.parameters())
    for name, parameter in student.named_parameters():
        layer = depth + 1
        if ".blocks." in name:
            layer = int(name.split(".")[2]) + 1
        elif name.split(".")[1] in ("pos_embed", "patch_embed", "cls_token"):
            layer = 0
        expected = 0.9 ** (depth + 1 - layer) * (0.2 if ".patch_embed." in name else 1.0)
        assert rates[id(parameter)] == pytest.approx(expected), name
    plain = parameter_groups(student)
    assert [(group["name"], group["rate"]) for group in plain] == [(name, 1.0) for name in GROUPS]


def test_settings_reach_the_groups():
    layer = torch.nn.Linear(2, 2)
    groups = [
        {"name": "decay", "rate": 0.5, "params": [layer.weight]},
        {"name": "no_decay", "rate": 1.0, "params": [layer.bias]},
        {"name": "prototypes", "rate": 1.0, "params": [torch.nn.Parameter(torch.zeros(2))]},
    ]
    optimizer = build_optimizer(groups, OptimConfig(), guarded=True, fused=False)
    settings = StepSettings(0.5, 0.3, 0.04, 0.99, freeze_prototypes=True)
    write_settings(optimizer.param_groups, settings)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.25, 0.3),
        (0.5, 0.0),
        (0.0, 0.0),
    ]


def test_clipping_and_update_agree_with_pytorch():
    torch.manual_seed(0)
    ours, theirs = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    theirs.load_state_dict(ours.state_dict())
    guarded = build_optimizer(
        [{"params": list(ours.parameters())}], OptimConfig(clip_grad=0.1), guarded=True, fused=False
    )
    guarded.param_groups[0]["lr"] = 0.01
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01)
    for _ in range(5):
        x = torch.randn(4, 3)
        for layer in (ours, theirs):
            layer.zero_grad()
            (layer(x) ** 2).sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        plain.step()
        guarded.step()
        assert guarded.grad_norm == pytest.approx(float(norm), rel=1e-6)
        assert not guarded.overflow
    torch.testing.assert_close(ours.weight, theirs.weight)


def test_clipping_by_parameter_is_dinos():
    """Each gradient on its own, in float64: g * min(1, clip / (|g| + 1e-6))."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 3)
    gradients = {"weight": 10 * torch.randn(3, 4), "bias": 1e-3 * torch.randn(3)}
    optimizer = build_optimizer(
        [{"params": list(layer.parameters())}],
        OptimConfig(clip_grad=0.5, clip_by="parameter"),
        guarded=True,
        fused=False,
    )
    for name, parameter in layer.named_parameters():
        parameter.grad = gradients[name].clone()
    optimizer.step()
    for name, parameter in layer.named_parameters():
        gradient = gradients[name].double()
        expected = gradient * min(1.0, 0.5 / (float(gradient.norm()) + 1e-6))
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-6, atol=1e-9)
    total = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
    assert optimizer.grad_norm == pytest.approx(total, rel=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_changes_nothing(value):
    layer = torch.nn.Linear(2, 2)
    before = layer.weight.clone()
    optimizer = build_optimizer(
        [{"params": list(layer.parameters())}], OptimConfig(), guarded=True, fused=False
    )
    optimizer.param_groups[0]["lr"] = 1.0
    (layer(torch.ones(1, 2)).sum() * value).backward()
    optimizer.step()
    assert optimizer.overflow
    assert torch.equal(layer.weight, before)
