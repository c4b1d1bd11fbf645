"""DeepSpeed ZeRO, stages 0 to 3, behind the engine's interface.

Uses private names of DeepSpeed 0.19.8's ZeRO optimizers to read and fill full optimizer states
(its universal checkpoints diverge at stage 3); tests/train/test_zero.py holds them to it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch

# Read at import; without it DeepSpeed warns that it found no accelerator.
os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")

import deepspeed
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import Tensor, nn
from typing_extensions import override

from terrafm.config import OptimConfig
from terrafm.train.step.engine import (
    Engine,
    EngineState,
    StepOutcome,
    cpu,
    lerp_teacher,
    load_replicated,
    replicated_state,
    reset_step_count,
)
from terrafm.train.step.optimizer import (
    MOMENTS,
    PERSIST_BELOW,
    GuardedAdamW,
    build_optimizer,
    create_moments,
    parameter_groups,
    reduce_bucket,
    trained_groups,
    trained_parameters,
    write_settings,
)
from terrafm.train.step.schedules import StepSettings

# Otherwise DeepSpeed compiles a shared-memory operator for 10 to 90 s at every start on a CPU.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def zero_config(
    *,
    stage: int,
    precision: str,
    micro_rows: int,
    n_micro: int,
    clip_grad: float | None,
    parameters: int,
    persist_below: int = PERSIST_BELOW,
) -> dict[str, Any]:
    """DeepSpeed's configuration for one worker's layout.

    Parameters stay float32 and compute runs under bfloat16 autocast: nearer to float32 than
    DeepSpeed's own bf16 mode. Clipping and overflow checks are explicit because their defaults
    changed between releases. `clip_grad` is the largest global norm, None where it is not limited.
    Gradients are reduced bucket by bucket while the backward pass goes on.
    """
    return {
        "train_micro_batch_size_per_gpu": micro_rows,
        "gradient_accumulation_steps": n_micro,
        # Stage 0 has no ZeRO optimizer: GuardedAdamW checks and clips there.
        "gradient_clipping": clip_grad if stage and clip_grad else 0.0,
        "zero_optimization": {
            "stage": stage,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "reduce_bucket_size": reduce_bucket(parameters),
            "stage3_param_persistence_threshold": persist_below,
        },
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": False, "check_grad_overflow": True},
        "fp16": {"enabled": False},
        "torch_autocast": {
            "enabled": precision == "bf16",
            "dtype": "bfloat16",
            # No parameter's gradient is reduced in bfloat16.
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


class ZeroEngine(Engine):
    """A student under DeepSpeed; the process group must exist already.

    Args:
        student: with its final weights: ZeRO copies them into its own buffers here.
        config: optimizer settings.
        stage: ZeRO stage, 0 to 3.
        precision: "float32" or "bf16".
        micro_rows: rows of a micro-batch.
        n_micro: micro-batches of a step.
        persist_below: parameters with fewer elements stay whole at stage 3: to gather a bias
            costs a message, and all of them together little memory.
    """

    def __init__(
        self,
        student: nn.Module,
        config: OptimConfig,
        *,
        stage: int,
        precision: str,
        micro_rows: int,
        n_micro: int,
        persist_below: int = PERSIST_BELOW,
    ) -> None:
        super().__init__(student)
        self.stage = stage
        self._n_micro = n_micro
        clip_each = config.clip_by == "parameter"
        groups = parameter_groups(student, config.layer_decay)
        client = build_optimizer(groups, config, guarded=stage == 0)
        self._names = [group["name"] for group in groups]
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=student,
            optimizer=client,
            dist_init_required=False,
            config=zero_config(
                stage=stage,
                precision=precision,
                micro_rows=micro_rows,
                n_micro=n_micro,
                clip_grad=None if clip_each else config.clip_grad,
                parameters=sum(p.numel() for _, p in trained_parameters(student)),
                persist_below=persist_below,
            ),
        )
        self._clip_each = config.clip_grad if clip_each and stage else None
        self._client = client
        self._world_size = torch.distributed.get_world_size()
        self._rank = torch.distributed.get_rank()
        create_moments(client, self._updated_tensors())
        if stage in (1, 2):
            # Links every parameter to its slice of the flat moments; it was done too early.
            self._optimizer._hp_optimizer_states_linked = False
            self._optimizer._lazy_init_hp_params_optimizer_state()

    @override
    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self._engine(*inputs, **options)

    @override
    def backward(self, loss: Tensor) -> None:
        # DeepSpeed averages over ranks and micro-batches, our shares of the loss add up.
        self._engine.backward(loss * (self._world_size * self._n_micro))
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()

    @override
    def step(self, settings: StepSettings) -> StepOutcome:
        write_settings(self._engine.optimizer.param_groups, settings)
        unclipped = None if self._clip_each is None else self._clip_parameters(self._clip_each)
        self._engine.step()
        if settings.freeze_prototypes:
            reset_step_count(self._client, list(self._updated_tensors("prototypes")))
        if isinstance(self._client, GuardedAdamW):
            return StepOutcome(not self._client.overflow, self._client.grad_norm)
        norm = self._engine.get_global_grad_norm() if unclipped is None else unclipped
        norm = math.nan if norm is None else float(norm)
        return StepOutcome(bool(self._engine.was_step_applied()) and math.isfinite(norm), norm)

    @override
    def update_teacher(self, teacher: nn.Module, momentum: float) -> None:
        student = list(self.student.parameters())
        with deepspeed.zero.GatheredParameters(student, enabled=self.stage == 3):
            lerp_teacher(list(teacher.parameters()), student, momentum)

    @override
    def state(self, keep: bool = True) -> EngineState | None:
        if self.stage == 0:
            return replicated_state(self.student, self._client) if keep else None
        state = EngineState({}, {})
        for name, parameter in self.student.named_parameters():
            # One tensor at a time: gathering is collective, only one rank keeps the result.
            if not parameter.requires_grad:
                # The optimizer, which the others are read from, does not know it.
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    if keep:
                        state.student[name] = cpu(parameter)
                continue
            weight = safe_get_full_fp32_param(parameter)
            moments = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            if keep:
                state.student[name] = cpu(weight)
                state.optimizer |= {f"{key}.{name}": cpu(m) for key, m in moments.items()}
        for name in trained_groups(self.student):
            count = self._client.state[next(iter(self._updated_tensors(name)))]["step"]
            state.optimizer[f"step.{name}"] = cpu(count)
        return state if keep else None

    @override
    def load_optimizer(self, optimizer: dict[str, Tensor]) -> None:
        if self.stage == 0:
            load_replicated(self.student, self._client, optimizer)
            return
        for name, parameter in trained_parameters(self.student):
            for key in MOMENTS:
                self._write_shard(parameter, key, optimizer[f"{key}.{name}"])
        for name in trained_groups(self.student):
            for flat in self._updated_tensors(name):
                self._client.state[flat]["step"].copy_(optimizer[f"step.{name}"])

    @torch.no_grad()
    def _write_shard(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.stage < 3:
            parameter.set_full_hp_param(value.to(parameter.device), key)  # type: ignore[attr-defined]
            return
        # Stage 3 keeps equal slices of the padded tensor, one a rank. DeepSpeed's own setter
        # hung with three ranks.
        shard, _ = self._optimizer._get_fp32_opt_state_partition(
            parameter, release_swap_buffers=False, optim_state_key=key
        )
        start = self._rank * shard.numel()
        part = value.flatten()[start : start + shard.numel()]
        shard.zero_()
        shard[: part.numel()].copy_(part)

    @torch.no_grad()
    def _clip_parameters(self, largest: float) -> float:
        """Limits the norm of each parameter's gradient, of which a rank has a part; collective.

        Returns:
            The global norm before.
        """
        parts = list(self._gradient_parts())
        squares = torch.stack([part.float().square().sum() for part in parts])
        torch.distributed.all_reduce(squares)
        # As PyTorch's own clipping does it. A norm that is not finite makes its gradient NaN.
        factors = (largest / (squares.sqrt() + 1e-6)).clamp(max=1.0)
        for part, factor in zip(parts, factors, strict=True):
            part.mul_(factor)
        return math.sqrt(float(squares.sum()))

    def _gradient_parts(self) -> Iterator[Tensor]:
        """This rank's part of each parameter's reduced gradient, without padding."""
        for _, parameter in trained_parameters(self.student):
            if self.stage == 3:
                shard, _ = self._optimizer._get_fp32_grad_state_partition(
                    parameter, release_swap_buffers=False
                )
                left = parameter.ds_numel - self._rank * shard.numel()  # type: ignore[attr-defined]
                yield shard[: max(left, 0)]
            elif (mapping := parameter._hp_mapping) is None:  # type: ignore[attr-defined]
                yield parameter.new_zeros(0)
            else:
                index = parameter._index_in_param_group  # type: ignore[attr-defined]
                yield mapping.get_lp_grad_fragment(index)

    def _updated_tensors(self, group: str | None = None) -> Iterator[Tensor]:
        """The tensors that AdamW updates: parameters at stage 0, flat shards above."""
        for index, name in enumerate(self._names):
            if group in (None, name):
                yield from self._group_tensors(index)

    def _group_tensors(self, index: int) -> Iterable[Tensor]:
        if self.stage == 0:
            return list(self._client.param_groups[index]["params"])
        if self.stage < 3:
            return [self._optimizer.single_partition_of_fp32_groups[index]]
        owners = self._optimizer.sub_group_to_group_id
        flat = self._optimizer.fp32_partitioned_groups_flat
        return [tensor for i, tensor in enumerate(flat) if owners[i] == index]
