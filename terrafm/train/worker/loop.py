"""The loop that every training worker runs under Ray Train."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import ray.train
from torch import distributed

from terrafm.config import Config
from terrafm.data.samples.stream import stream_batches
from terrafm.errors import TerraFMError
from terrafm.ray.standby import start_standby
from terrafm.storage import join
from terrafm.train.checkpoints.exported import LAST, export_last
from terrafm.train.checkpoints.retention import Retention
from terrafm.train.checkpoints.store import (
    TrainingState,
    load_checkpoint,
)
from terrafm.train.checkpoints.writer import CheckpointWriter
from terrafm.train.metrics.log import MetricsLog
from terrafm.train.metrics.operators import WorkerMetrics
from terrafm.train.metrics.samples import (
    DamageLog,
    PendingRecords,
    SampleAudit,
    append_nonfinite,
    trim_samples,
)
from terrafm.train.metrics.step_line import Monitor, metrics_line, reduce_statistics
from terrafm.train.run_folder import RunFolder, write_failure
from terrafm.train.step.engine import Engine
from terrafm.train.step.prefetch import Transfer
from terrafm.train.step.training_step import TrainedNetwork, TrainingStep
from terrafm.train.worker.control import STARTING
from terrafm.train.worker.faulty_steps import SkipLimit, nonfinite_record, nonfinite_samples
from terrafm.train.worker.garbage_collection import GarbageControl
from terrafm.train.worker.heartbeat import Heartbeat, StopVote
from terrafm.train.worker.profiler import PROFILE_FOLDER, StepProfiler
from terrafm.train.worker.setup import TrainingSetup


@dataclass(frozen=True)
class WorkerTask:
    """What the driver asks the workers to do.

    Attributes:
        config: the configuration tree as plain values.
        data: URI of the dataset.
        fingerprint: of the dataset's version that the run trains on.
        output: URI of the run's folder.
        data_cpus: logical CPUs of the cluster that one worker may use to read and crop.
        resume: URI of the checkpoint to go on from, None at the start.
    """

    config: dict[str, Any]
    data: str
    fingerprint: str
    output: str
    data_cpus: float
    resume: str | None


def train_worker(arguments: dict[str, Any]) -> None:
    """Entry point of one rank: runs, or leaves word of why the run cannot go on.

    A failure that would only repeat itself is written to the run's folder, where the driver finds
    it with its exit code: what Ray Train reports does not tell it from a lost worker.
    """
    work = WorkerTask(**arguments["task"])
    try:
        Worker(work, arguments["control"]).run()
    except TerraFMError as error:
        write_failure(work.output, error)
        raise


class Worker:
    """One rank of a run, from the restored state to the last step."""

    def __init__(self, task: WorkerTask, control: Any) -> None:
        self.task = task
        self.config = Config.model_validate(task.config)
        context = ray.train.get_context()
        self.rank, self.world_size = context.get_world_rank(), context.get_world_size()
        self.device = ray.train.torch.get_device()
        self.setup = TrainingSetup.open(self.config, task.data, task.fingerprint)
        self.layout = self.setup.layout(self.rank, self.world_size)
        self.checkpoints = RunFolder(task.output).checkpoints
        self.control = control
        self.heartbeat = Heartbeat(control, self.rank)
        self.stop_vote = StopVote()
        self.writer: CheckpointWriter | None = None
        self.exported: WorkerMetrics | None = None

    def run(self) -> None:
        """Trains from the checkpoint to the last step, or until all are asked to stop."""
        try:
            self._train()
        finally:
            # Ray ends the process soon after: a checkpoint under way would be lost.
            if self.writer is not None:
                self.writer.settle()
            if self.exported is not None:
                self.exported.close()
            self.heartbeat.close()

    def _train(self) -> None:
        restored = self._restore()
        start = done = restored.step if restored else 0
        self.heartbeat.at(start, STARTING)
        total = self.setup.total_steps
        distillation = self.setup.distillation(self._engine, restored, self.device)
        del restored
        log = self._open_logs(start)
        audit, damage = SampleAudit(self.rank), DamageLog()
        skip_limit = SkipLimit()
        schedules, frozen = self.setup.schedules, distillation.frozen_model
        monitor = Monitor(self.config, schedules, self.world_size, self.device, frozen)
        timer, profiler = monitor.timer, self._profiler()
        stream = stream_batches(
            **self.setup.stream_options(self.layout, start),
            cpus=self.task.data_cpus,
            begin_transfer=Transfer(self.device),
            standby=self.config.train.standby,
        )
        garbage = GarbageControl()
        garbage.start()
        for step in range(start, total):
            settings = self.setup.schedules.at(step)
            stop = self.stop_vote.vote(self.heartbeat.stop_wanted)
            self.heartbeat.at(step, "waiting for data")
            with timer.phase("data"):
                batches = list(itertools.islice(stream, self.layout.n_micro))
            self.heartbeat.at(step, "computing")
            statistics = distillation.forward_backward(batches, settings, timer.phase)
            applied, grad_norm = distillation.finish(settings, timer.phase)
            if not applied:
                record = nonfinite_record(step, self.rank, grad_norm, batches, statistics.losses)
                self._keep_nonfinite(record)
            skip_limit.record(applied, step)
            damage.add(batches)
            if self.config.train.audit_samples:
                audit.add(step, batches)
            done = step + 1
            timer.step_done(self.config.train.global_batch)
            if done % self.config.train.log_every == 0 or done in (1, total):
                statistics = reduce_statistics(statistics)
                if log is not None and self.exported is not None:
                    line = metrics_line(
                        done,
                        statistics,
                        settings,
                        distillation,
                        grad_norm=grad_norm,
                        skipped=skip_limit.total,
                    )
                    log.write(monitor.complete(line))
                    self.exported.tell(log.newest)
            stopping = stop()
            if done % self.config.train.checkpoint_every == 0 or done == total or stopping:
                self.heartbeat.at(done, "writing a checkpoint")
                with timer.phase("checkpoint"):
                    self._save(done, distillation, audit, damage, log)
            profiler.step_done()
            garbage.step_done(done)
            if done == start + 1 and self.config.train.standby:
                self._start_standby()
            if stopping:
                break
        garbage.stop()
        stream.close()
        profiler.close()
        if log is not None:
            self.heartbeat.at(done, "closing the trackers")
            log.close()
        self.heartbeat.at(done, "done")

    def _start_standby(self) -> None:
        """For the next group, now that this one does not start any more."""
        start_standby()
        if self.rank == 0:
            self.control.start_standby.remote()

    def _restore(self) -> TrainingState | None:
        if self.task.resume is None:
            return None
        restored = load_checkpoint(self.task.resume)
        self.setup.check_continues(restored.record, self.task.resume)
        return restored

    def _engine(self, student: TrainedNetwork) -> Engine:
        # DeepSpeed takes seconds to import and talks to the terminal: only workers need it.
        from terrafm.train.step.zero import ZeroEngine

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
        train = self.config.train
        log = MetricsLog(self.task.output, start, train.trackers, self.task.config)
        self.records = PendingRecords(self.task.output, log)
        self.exported = WorkerMetrics(self.task.output, self.setup.total_steps, self.world_size)
        self.writer = CheckpointWriter(
            self.checkpoints,
            Retention.of(train),
            write_records=self.records.write,
            export=lambda state: self._export(state, log),
            written=self.exported.checkpoint_written,
        )
        return log

    def _export(self, state: TrainingState, log: MetricsLog) -> None:
        """In the writer's thread."""
        export_last(self.task.output, state)
        log.write_weights(state.step, LAST)

    def _profiler(self) -> StepProfiler:
        steps = self.config.train.profile_steps if self.rank == 0 else 0
        return StepProfiler(join(self.task.output, PROFILE_FOLDER), steps)

    def _keep_nonfinite(self, record: dict[str, Any]) -> None:
        """Writes down the tiles of a step that all ranks skip; at once, for the run may end."""
        records: list[Any] = [None] * self.world_size
        distributed.all_gather_object(records, record)
        if self.rank == 0:
            append_nonfinite(self.task.output, nonfinite_samples(records))

    def _save(
        self,
        done: int,
        distillation: TrainingStep,
        audit: SampleAudit,
        damage: DamageLog,
        log: MetricsLog | None,
    ) -> None:
        """Snapshots the state and hands it to the writer; the last one is complete on return."""
        if self.writer is not None:
            # Before the snapshot, so that no two are held.
            self.writer.wait()
        engine_state = distillation.engine.state(keep=self.rank == 0)
        rows: list[Any] = [None] * self.world_size
        if self.config.train.audit_samples:
            distributed.all_gather_object(rows, audit.take())
        damaged: list[Any] = [None] * self.world_size
        distributed.all_gather_object(damaged, damage.take())
        if log is not None:
            assert engine_state is not None
            assert self.writer is not None
            self.records.add(
                [record for part in damaged for record in part],
                [row for part in rows for row in part or ()],
            )
            state = self.setup.state(done, engine_state, distillation)
            state.metrics = log.newest
            self.writer.save(state)
            if done == self.setup.total_steps:
                self.writer.close()
        ray.train.report({"step": done})


def task_arguments(
    setup: TrainingSetup, output: str, data_cpus: float, resume: str | None
) -> dict[str, Any]:
    """`WorkerTask` as the plain mapping that Ray Train hands to `train_worker`."""
    tree, dataset = setup.config.model_dump(mode="json"), setup.dataset
    return asdict(WorkerTask(tree, dataset.uri, dataset.fingerprint, output, data_cpus, resume))
