"""The step in Ray Train's workers under ZeRO, as `terrafm.train.worker.loop` sets it up."""

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from harness.step_contestants import measure
from harness.step_work import StepWork, build, one_step


def ray_zero(work: StepWork) -> dict[str, Any]:
    """`work.workers` workers of one CPU each."""
    # Before any import of Ray: its variables are read then.
    from terrafm.ray.runtime import ensure_ray

    ensure_ray(work.workers + 1)
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from terrafm.ray.standby import rank_environment

    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        TorchTrainer(
            _worker,
            train_loop_config={"work": asdict(work), "answer": str(answer)},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=work.workers, resources_per_worker={"CPU": 1.0}
            ),
            run_config=RunConfig(
                name="overhead",
                storage_path=folder,
                worker_runtime_env={"env_vars": rank_environment(gpu=False)},
            ),
        ).fit()
        result: dict[str, Any] = json.loads(answer.read_text())
    ray.shutdown()
    return result


def _worker(task: dict[str, Any]) -> None:
    import ray.train
    import torch

    from terrafm.train.step.zero import ZeroEngine
    from terrafm.train.worker.garbage_collection import GarbageControl

    work = StepWork(**task["work"])
    config = work.config
    rank = ray.train.get_context().get_world_rank()
    distillation = build(
        work,
        torch.device("cpu"),
        lambda student: ZeroEngine(
            student,
            config.optim,
            stage=config.train.zero_stage,
            precision=config.train.precision,
            micro_rows=work.micro_rows,
            n_micro=work.n_micro,
        ),
    )
    batches = list(work.batches(rank))
    garbage = GarbageControl()
    garbage.start()
    result = measure(work, lambda: one_step(distillation, batches))
    garbage.stop()
    if rank == 0:
        Path(task["answer"]).write_text(json.dumps(result))
