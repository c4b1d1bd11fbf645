"""The loop that every training worker runs under Ray Train."""

from __future__ import annotations

import itertools
import json
import logging
from dataclasses import asdict, dataclass
from typing import Any

import ray.train
from torch import distributed

from terrafm.config import Config
from terrafm.data.stream import stream_batches
from terrafm.errors import TerraFMError
from terrafm.storage import exists, join, read_bytes, write_bytes
from terrafm.train.checkpoint import (
    TrainingState,
    load_checkpoint,
    newest_intact,
    prune_checkpoints,
    remove_staging,
    save_checkpoint,
)
from terrafm.train.engine import Engine
from terrafm.train.garbage import GarbageControl
from terrafm.train.health import SkipLimit
from terrafm.train.loggers import (
    DamageLog,
    MetricsLog,
    SampleAudit,
    append_quarantine,
    append_samples,
    trim_samples,
)
from terrafm.train.metrics import StepTimer, metrics_line, reduce_statistics
from terrafm.train.setup import TrainingSetup
from terrafm.train.student_teacher import Network, SelfDistillation
from terrafm.train.transfer import Transfer

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
FAILURE_FILE = "failure.json"


@dataclass(frozen=True)
class WorkerTask:
    """What the driver asks the workers to do.

    Attributes:
        config: the configuration tree as plain values.
        data: URI of the dataset.
        fingerprint: of the dataset's version that the run trains on.
        output: URI of the run's folder.
        data_cpus: logical CPUs of the cluster that one worker may use to read and crop.
    """

    config: dict[str, Any]
    data: str
    fingerprint: str
    output: str
    data_cpus: float


def train_worker(task: dict[str, Any]) -> None:
    """Entry point of one rank: runs, or leaves word of why the run cannot go on.

    A failure that would only repeat itself is written to the run's folder and found by the
    restarted workers, which then end at once: Ray retries every exception alike.
    """
    work = WorkerTask(**task)
    failure = join(work.output, FAILURE_FILE)
    if exists(failure):
        return
    try:
        Worker(work).run()
    except TerraFMError as error:
        write_bytes(failure, json.dumps({"message": str(error), "code": error.exit_code}).encode())
        raise


def read_failure(output: str) -> TerraFMError | None:
    """The failure that workers left in a run's folder."""
    uri = join(output, FAILURE_FILE)
    if not exists(uri):
        return None
    document = json.loads(read_bytes(uri))
    error = TerraFMError(document["message"])
    error.exit_code = document["code"]
    return error


class Worker:
    """One rank of a run, from the restored state to the last step."""

    def __init__(self, task: WorkerTask) -> None:
        self.task = task
        self.config = Config.model_validate(task.config)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.setup = TrainingSetup.open(self.config, task.data, task.fingerprint)
        self.layout = self.setup.layout(self.rank, self.world_size)
        self.checkpoints = join(task.output, CHECKPOINTS)

    def run(self) -> None:
        """Trains from the newest whole checkpoint to the last step."""
        restored = self._restore()
        start = restored.step if restored else 0
        total = self.setup.total_steps
        distillation = self.setup.distillation(self._engine, restored, self.device)
        del restored
        log = self._open_logs(start)
        audit, damage = SampleAudit(self.rank), DamageLog()
        health = SkipLimit(self.config.train.max_skipped_steps)
        timer = StepTimer()
        stream = stream_batches(
            **self.setup.stream_options(self.layout, start),
            cpus=self.task.data_cpus,
            begin_transfer=Transfer(self.device, self.config.train.overlap_transfers),
        )
        garbage = GarbageControl(self.config.train.collect_garbage_every)
        garbage.start()
        for step in range(start, total):
            settings = self.setup.schedules.at(step)
            with timer.waiting_for_data():
                batches = list(itertools.islice(stream, self.layout.n_micro))
            statistics = distillation.forward_backward(batches, settings)
            applied, grad_norm = distillation.finish(settings)
            health.record(applied, step)
            damage.add(batches)
            if self.config.train.audit_samples:
                audit.add(step, batches)
            done = step + 1
            timer.step_done(self.config.train.global_batch)
            if done % self.config.train.log_every == 0 or done in (1, total):
                statistics = reduce_statistics(statistics)
                if log is not None:
                    line = metrics_line(
                        done,
                        statistics,
                        settings,
                        distillation,
                        grad_norm=grad_norm,
                        skipped=health.total,
                    )
                    log.write(line | timer.take())
            if done % self.config.train.checkpoint_every == 0 or done == total:
                self._save(done, distillation, audit, damage, log)
            garbage.step_done(done)
        garbage.stop()
        if log is not None:
            log.close()

    def _restore(self) -> TrainingState | None:
        """Rank 0 chooses the checkpoint, so that all ranks read the same one."""
        choice: list[str | None] = [None]
        if self.rank == 0:
            remove_staging(self.task.output)
            choice[0], complaints = newest_intact(self.checkpoints)
            for complaint in complaints:
                logger.warning("%s; going on from the one before", complaint)
        distributed.broadcast_object_list(choice, device=self.device)
        if choice[0] is None:
            return None
        restored = load_checkpoint(choice[0])
        self.setup.check_continues(restored.record, choice[0])
        return restored

    def _engine(self, student: Network) -> Engine:
        # DeepSpeed takes seconds to import and talks to the terminal: only workers need it.
        from terrafm.train.zero import ZeroEngine

        train = self.config.train
        return ZeroEngine(
            student,
            self.config.optim,
            stage=train.zero_stage,
            precision=train.precision,
            micro_rows=self.layout.micro_rows,
            n_micro=self.layout.n_micro,
        )

    def _open_logs(self, start: int) -> MetricsLog | None:
        if self.rank != 0:
            return None
        trim_samples(self.task.output, start)
        return MetricsLog(self.task.output, start)

    def _save(
        self,
        done: int,
        distillation: SelfDistillation,
        audit: SampleAudit,
        damage: DamageLog,
        log: MetricsLog | None,
    ) -> None:
        """Records and metrics first: what a checkpoint counts as done is on file before it."""
        engine_state = distillation.engine.state(keep=self.rank == 0)
        rows: list[Any] = [None] * self.world_size
        if self.config.train.audit_samples:
            distributed.all_gather_object(rows, audit.take())
        damaged: list[Any] = [None] * self.world_size
        distributed.all_gather_object(damaged, damage.take())
        if log is not None:
            assert engine_state is not None
            append_quarantine(self.task.output, [record for part in damaged for record in part])
            if self.config.train.audit_samples:
                append_samples(self.task.output, [row for part in rows for row in part])
            log.flush()
            save_checkpoint(self.checkpoints, self.setup.state(done, engine_state, distillation))
            prune_checkpoints(self.checkpoints, self.config.train.keep_checkpoints)
        ray.train.report({"step": done})


def task_arguments(setup: TrainingSetup, output: str, data_cpus: float) -> dict[str, Any]:
    """`WorkerTask` as the plain mapping that Ray Train hands to `train_worker`."""
    tree, dataset = setup.config.model_dump(mode="json"), setup.dataset
    return asdict(WorkerTask(tree, dataset.uri, dataset.fingerprint, output, data_cpus))
