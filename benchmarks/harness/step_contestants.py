"""The step in one plain process, and in torchrun's processes under DistributedDataParallel."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from harness.step_work import StepWork, build, one_step, seconds_per_step
from terrafm.config import OptimConfig
from terrafm.train.step.engine import PlainEngine

_ANSWER = "TERRAFM_STEP_ANSWER"


def measure(work: StepWork, step: Callable[[], float]) -> dict[str, Any]:
    """Warm-up, then the median of the step's seconds, on a CPU."""
    losses: list[float] = []

    def once() -> None:
        losses.append(step())

    for _ in range(work.warm_up):
        once()
    return {"seconds": seconds_per_step(once, torch.device("cpu"), work.steps), "losses": losses}


def plain(work: StepWork) -> dict[str, Any]:
    """One process, no framework."""
    distillation = build(work, torch.device("cpu"))
    batches = list(work.batches())
    return measure(work, lambda: one_step(distillation, batches))


class DDPEngine(PlainEngine):
    """The student under DistributedDataParallel; one micro-batch a step.

    DDP averages gradients over ranks where ours add up.
    """

    def __init__(self, student: nn.Module, config: OptimConfig, *, precision: str) -> None:
        super().__init__(student, config, precision=precision, device=torch.device("cpu"))
        self._ddp = DistributedDataParallel(student, gradient_as_bucket_view=True)

    def forward(self, *inputs: Any, **options: Any) -> Tensor:
        """The student's output, see `Engine`."""
        with self._autocast:
            output: Tensor = self._ddp(*inputs, **options)
        return output

    def backward(self, loss: Tensor) -> None:
        """See `Engine`."""
        super().backward(loss * distributed.get_world_size())


def torchrun(work: StepWork) -> dict[str, Any]:
    """`work.workers` processes of torchrun."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        script = Path(__file__).with_name("step_contestant.py")
        subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                f"--nproc-per-node={work.workers}",
                str(script),
                json.dumps(asdict(replace(work, name="ddp_rank"))),
            ],
            env=os.environ | {_ANSWER: str(answer)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        result: dict[str, Any] = json.loads(answer.read_text())
    return result


def ddp_rank(work: StepWork) -> None:
    """One of torchrun's processes; the first leaves the answer."""
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    config = work.config
    distillation = build(
        work,
        torch.device("cpu"),
        lambda student: DDPEngine(student, config.optim, precision=config.train.precision),
    )
    if work.n_micro != 1:
        raise SystemExit("the DDP contestant takes one micro-batch a step")
    batches = list(work.batches(rank))
    result = measure(work, lambda: one_step(distillation, batches))
    if rank == 0:
        Path(os.environ[_ANSWER]).write_text(json.dumps(result))
    distributed.barrier()
    distributed.destroy_process_group()
    # Without Python's own end: gloo's threads may abort the process during it.
    os._exit(0)
