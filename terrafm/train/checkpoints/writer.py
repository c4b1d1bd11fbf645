"""Writes the checkpoints of a run beside its training, one at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from concurrent import futures

from terrafm.errors import TerraFMError
from terrafm.storage.faults import one_line
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import TrainingState, save_checkpoint

logger = logging.getLogger(__name__)

_WORTH_A_WARNING = 1.0


class CheckpointWriter:
    """Writes, uploads and prunes in a thread; a failed write does not lose the run.

    What a checkpoint counts as done is on file before it is seen: the thread writes these records
    first. A failed write leaves one warning, the older checkpoints, and no trace of the new one;
    training goes on and the next checkpoint tries again.

    Args:
        folder: URI of the run's `checkpoints`.
        retention: which checkpoints stay.
        write_records: puts on file what the checkpoint counts as done; repeated after a failure.
        export: makes weights of a checkpoint that is whole; one that fails leaves a warning.
        written: told the seconds that a whole checkpoint took to write.
        max_failed: so many failures in a row end the run.
        background: False writes before `save` returns.
    """

    def __init__(
        self,
        folder: str,
        retention: Retention,
        *,
        write_records: Callable[[], None],
        export: Callable[[TrainingState], None] | None = None,
        written: Callable[[float], None] = lambda seconds: None,
        max_failed: int = 3,
        background: bool = True,
    ) -> None:
        self._folder = folder
        self._retention = retention
        self._write_records = write_records
        self._export = export
        self._written = written
        self._max_failed = max_failed
        self._pool = futures.ThreadPoolExecutor(1, "checkpoint") if background else None
        self._pending: futures.Future[None] | None = None
        self._failed = 0
        self._fault = ""
        self._told_slow = False

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written."""
        return self._pending is not None and not self._pending.done()

    def wait(self) -> None:
        """Returns when nothing is being written.

        Raises:
            TerraFMError: too many checkpoints in a row could not be written.
        """
        began = time.perf_counter()
        self._join()
        waited = time.perf_counter() - began
        if waited > _WORTH_A_WARNING and not self._told_slow and not self._failed:
            self._told_slow = True
            logger.warning(
                "training waited %.1f s for the checkpoint before: it takes longer to write than "
                "train.checkpoint_every steps to train",
                waited,
            )

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint, after the one that is still being written.

        Args:
            state: nobody changes its tensors any more.

        Raises:
            TerraFMError: as `wait`.
        """
        self.wait()
        # Where this one must not fail, training on before it is known may be for nothing.
        decisive = 0 < self._failed == self._max_failed - 1
        if self._pool is None:
            self._write(state)
        else:
            self._pending = self._pool.submit(self._write, state)
        if self._pool is None or decisive:
            self._join()

    def close(self) -> None:
        """Returns when the newest checkpoint is complete.

        Raises:
            TerraFMError: it could not be written.
        """
        self.settle()
        self._join()
        if self._failed:
            raise TerraFMError(
                f"the last checkpoint could not be written: {self._fault}; the run goes on from "
                "its newest whole checkpoint when the command is repeated"
            )

    def settle(self) -> None:
        """Lets what is being written end, whatever comes of it."""
        if self._pending is not None:
            futures.wait([self._pending])
        if self._pool is not None:
            self._pool.shutdown()

    def _join(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            # What is raised here is no fault of a disk or store, but of the program.
            pending.result()
        if self._failed >= self._max_failed:
            raise TerraFMError(
                f"{self._failed} checkpoints in a row could not be written: {self._fault}; the run "
                "goes on from its newest whole checkpoint when the command is repeated"
            )

    def _write(self, state: TrainingState) -> None:
        began = time.perf_counter()
        try:
            self._write_records()
            save_checkpoint(self._folder, state)
        except (TerraFMError, OSError) as error:
            self._failed += 1
            self._fault = one_line(error)
            logger.warning(
                "no checkpoint after step %d: %s; training goes on and the next checkpoint tries "
                "again (failures in a row: %d, the run ends at %d)",
                state.step,
                self._fault,
                self._failed,
                self._max_failed,
            )
            return
        self._failed = 0
        self._written(time.perf_counter() - began)
        try:
            prune_checkpoints(self._folder, self._retention, state.step)
        except (TerraFMError, OSError) as error:
            logger.warning("older checkpoints stay for now: %s", one_line(error))
        try:
            # After the pruning, which makes room for it.
            if self._export is not None:
                self._export(state)
        except (TerraFMError, OSError) as error:
            logger.warning(
                "no exported weights after step %d: %s; those of an earlier step stay",
                state.step,
                one_line(error),
            )
