"""AdamW with a finite check and clipping, and its parameter groups."""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from terrafm.config import OptimConfig
from terrafm.train.step.schedules import StepSettings

GROUPS = ("decay", "no_decay", "prototypes")
"""Parameter groups, in the order every optimizer and checkpoint keeps."""

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


def parameter_groups(student: nn.Module) -> list[dict[str, Any]]:
    """Splits the student's parameters into `GROUPS`.

    No weight decay on biases, norms, position embedding, CLS token and modality vectors
    (as DINO and the paper do) and mask token; the prototypes apart, so that they can be frozen.

    Returns:
        Groups for an optimizer, each with its `name`; "decay" is the only one besides
        "prototypes" that the weight decay schedule applies to.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in GROUPS}
    for name, parameter in student.named_parameters():
        groups[group_of(name)].append(parameter)
    return [{"name": name, "params": parameters} for name, parameters in groups.items()]


def group_of(parameter_name: str) -> str:
    """The group a parameter belongs to, by its name."""
    parts = parameter_name.split(".")
    if "last_layer" in parts:
        return "prototypes"
    modality_vector = parts[-2:-1] == ["patch_embed"] and parts[-1].endswith("_embed")
    norm = any(part.startswith("norm") for part in parts)
    if parts[-1] in ("bias", "pos_embed", "cls_token", "mask_token") or norm or modality_vector:
        return "no_decay"
    return "decay"


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
    for name, group in zip(GROUPS, param_groups, strict=True):
        frozen = name == "prototypes" and settings.freeze_prototypes
        group["lr"] = 0.0 if frozen else settings.lr
        group["weight_decay"] = 0.0 if frozen or name == "no_decay" else settings.weight_decay


def create_moments(optimizer: torch.optim.Optimizer, parameters: Iterator[Tensor]) -> None:
    """Creates AdamW's state as zeros at step 0, so that it can be filled before the first step."""
    for parameter in parameters:
        state = optimizer.state[parameter]
        fused = optimizer.defaults.get("fused")
        state["step"] = torch.zeros((), device=parameter.device if fused else "cpu")
        for key in MOMENTS:
            state[key] = torch.zeros_like(parameter, requires_grad=False)
