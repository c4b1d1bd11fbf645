"""AdamW with a finite check and clipping, and its parameter groups."""

import math
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terrafm.config import OptimConfig
from terrafm.train.step.schedules import StepSettings

GROUPS = ("decay", "no_decay", "prototypes")
"""Names of parameter groups, in the order every optimizer and checkpoint keeps. Where layers have
rates of their own, several groups of an optimizer have one name, and their counts are equal."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state per parameter, by PyTorch's names."""


BETAS = (0.9, 0.999)
"""Of AdamW's moments."""

PERSIST_BELOW = 100_000
"""Elements of a parameter below which ZeRO stage 3 keeps it whole on every rank."""

# 200 MB of float32. DeepSpeed's default of ten times as much holds all of Base and Large, so that
# nothing is reduced before the backward pass ends; the largest parameter, the prototypes, fits.
_LARGEST_BUCKET = 50_000_000


def reduce_bucket(parameters: int) -> int:
    """Elements of the buffer that ZeRO gathers gradients in before it reduces them."""
    return min(parameters, _LARGEST_BUCKET)


def reduce_buckets(stage: int) -> int:
    """Such buffers: below stage 3 one is filled while the other is reduced."""
    return (0, 2, 2, 1)[stage]


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that clips gradients and skips a step that is not finite.

    Args:
        clip_grad: largest norm, of all gradients together ("global") or of each parameter's
            ("parameter", as DINO does it: one large gradient leaves the others alone).
        clip_by: which of both.

    Attributes:
        overflow: whether the last step was skipped; DeepSpeed reads it under this name.
        grad_norm: global gradient norm of the last step, before clipping.
    """

    def __init__(
        self,
        params: Any,
        *,
        clip_grad: float,
        clip_by: Literal["global", "parameter"] = "global",
        **options: Any,
    ) -> None:
        super().__init__(params, **options)
        self._clip_grad = clip_grad
        self._clip_by = clip_by
        self.overflow = False
        self.grad_norm = 0.0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update, or none where a gradient is infinite or NaN."""
        assert closure is None
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        # One wait for the device, whatever is clipped.
        norms = torch.stack(torch._foreach_norm(gradients))
        each = torch.cat([norms, torch.linalg.vector_norm(norms, keepdim=True)]).tolist()
        self.grad_norm = each.pop()
        self.overflow = not math.isfinite(self.grad_norm)
        if self.overflow:
            return
        # As PyTorch's own clipping does it.
        if self._clip_by == "global":
            factors = [self._clip_grad / (self.grad_norm + 1e-6)] * len(gradients)
        else:
            factors = [self._clip_grad / (norm + 1e-6) for norm in each]
        if min(factors) < 1:
            torch._foreach_mul_(gradients, [min(1.0, factor) for factor in factors])
        super().step()

    def parameters(self) -> list[Tensor]:
        """All parameters in group order."""
        return [p for group in self.param_groups for p in group["params"]]


def trained_parameters(student: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Those that a gradient changes, by name; frozen parts have neither gradient nor moments."""
    return ((name, p) for name, p in student.named_parameters() if p.requires_grad)


def parameter_groups(
    student: nn.Module, layer_decay: tuple[float, float] = (1.0, 1.0)
) -> list[dict[str, Any]]:
    """Splits what is trained of the student into `GROUPS`, and those by their learning rate.

    No weight decay on biases, norms, position embedding, CLS token and modality vectors
    (as DINO and the paper do), mask token, fusion queries and readout, which are tokens too; the
    prototypes apart, so that they can be frozen.

    Args:
        student: with `encoder.blocks.<number>`, or any where all layers have one rate.
        layer_decay: see `layer_rate`.

    Returns:
        Groups for an optimizer, each with its `name` and the `rate` that the learning rate is
        multiplied by; "decay" is the only name besides "prototypes" that the weight decay
        schedule applies to.
    """
    depth = 1 + max((_block(name) for name, _ in student.named_parameters()), default=-1)
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(student):
        key = GROUPS.index(group_of(name)), layer_rate(name, depth, layer_decay)
        groups.setdefault(key, []).append(parameter)
    return [
        {"name": GROUPS[number], "rate": rate, "params": parameters}
        for (number, rate), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def layer_rate(name: str, depth: int, layer_decay: tuple[float, float]) -> float:
    """By what the learning rate of a parameter is multiplied.

    As in DINOv2 (arXiv 2304.07193): with depth L and decay d, d^(L - i) for block i of 0 to
    L - 1, d^(L + 1) before the first block, and 1 after the last one and in the head.

    Args:
        name: of the parameter, in the student.
        depth: blocks of the encoder.
        layer_decay: d, and what the patch embedding's rate is multiplied by besides.
    """
    decay, patch_embed = layer_decay
    if (block := _block(name)) >= 0:
        return float(decay ** (depth - block))
    first = name.removeprefix("encoder.").partition(".")[0]
    if first in ("patch_embed", "pos_embed", "cls_token", "mask_token"):
        return float(decay ** (depth + 1) * (patch_embed if first == "patch_embed" else 1.0))
    return 1.0


def _block(name: str) -> int:
    """Number of the block that a parameter is of; -1 where it is of none."""
    found = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return int(found[1]) if found else -1


def group_of(parameter_name: str) -> str:
    """The group a parameter belongs to, by its name."""
    parts = parameter_name.split(".")
    if "last_layer" in parts:
        return "prototypes"
    modality_vector = parts[-2:-1] == ["patch_embed"] and parts[-1].endswith("_embed")
    norm = any(part.startswith("norm") for part in parts)
    fusion = parts[-2:-1] == ["fusion"] and parts[-1] in ("queries", "readout")
    token = parts[-1] in ("bias", "pos_embed", "cls_token", "mask_token")
    if token or norm or modality_vector or fusion:
        return "no_decay"
    return "decay"


def trained_groups(student: nn.Module) -> list[str]:
    """Which of `GROUPS` there are, in their order: a projector has no prototypes."""
    held = {group_of(name) for name, _ in trained_parameters(student)}
    return [name for name in GROUPS if name in held]


def build_optimizer(
    groups: list[dict[str, Any]], config: OptimConfig, *, guarded: bool, fused: bool = True
) -> torch.optim.AdamW:
    """AdamW over the groups; `guarded` where no ZeRO optimizer clips and checks by itself.

    Fused, it goes once over each tensor, on a GPU as on a CPU.
    """
    options: dict[str, Any] = {"lr": 0.0, "betas": BETAS, "fused": fused}
    if guarded:
        return GuardedAdamW(groups, clip_grad=config.clip_grad, clip_by=config.clip_by, **options)
    return torch.optim.AdamW(groups, **options)


def write_settings(param_groups: list[dict[str, Any]], settings: StepSettings) -> None:
    """Puts a step's learning rate and weight decay into an optimizer's groups."""
    for group in param_groups:
        name = group["name"]
        frozen = name == "prototypes" and settings.freeze_prototypes
        group["lr"] = 0.0 if frozen else settings.lr * group["rate"]
        group["weight_decay"] = 0.0 if frozen or name == "no_decay" else settings.weight_decay


def create_moments(optimizer: torch.optim.Optimizer, parameters: Iterator[Tensor]) -> None:
    """Creates AdamW's state as zeros at step 0, so that it can be filled before the first step."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        fused = optimizer.defaults.get("fused")
        state["step"] = torch.zeros((), device=parameter.device if fused else "cpu")
        for key in MOMENTS:
            state[key] = torch.zeros_like(parameter, requires_grad=False)
