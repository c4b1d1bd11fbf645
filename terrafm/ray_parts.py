"""Work on the rows of a plan, part by part, in Ray Data's actors that load a model once.

What a part is depends on the plan alone, never on the number of workers. A part may be done
twice, after a lost actor for one: what it writes has to be a function of the part.
"""

import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from terrafm.errors import TerraFMError, UsageError
from terrafm.ray_runtime import ensure_ray, is_autoscaled
from terrafm.storage.faults import explain, one_line

# One to work on and one at the door.
_PARTS_AT_A_WORKER = 2
# Ray counts CPUs in ten-thousandths.
_LEAST_CPUS = 0.01
_LOSSES_IN_A_ROW = 3
# A part is lost work when a worker dies, and an object or a file to be read again.
_MOST_ROWS, _LEAST_ROWS, _WANTED_PARTS = 1024, 16, 64


@dataclass(frozen=True)
class Part:
    """Rows [first, stop) of a plan."""

    number: int
    first: int
    stop: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.stop - self.first


Work = Callable[[Part], Any]
"""What is done with a part; its answer is pickled."""

OpenWork = Callable[[str], Work]
"""Makes it in a worker, for a device; pickled, so that it holds no model but how to get one."""


def rows_per_part(total: int) -> int:
    """Rows of a part: of the total alone, so that any number of workers goes on with a plan."""
    return min(_MOST_ROWS, max(_LEAST_ROWS, -(-total // _WANTED_PARTS)))


def divide(total: int, rows: int) -> list[Part]:
    """Parts of `rows` rows each, the last one smaller."""
    return [
        Part(number, first, min(total, first + rows))
        for number, first in enumerate(range(0, total, rows))
    ]


def run_parts(
    open_work: OpenWork, parts: Sequence[Part], *, workers: int | None, device: str | None
) -> Iterator[tuple[Part, Any]]:
    """Does all parts.

    Args:
        open_work: called once in each worker, with "cpu" or "cuda".
        parts: what to do.
        workers: actors; one for each GPU or CPU of the cluster by default. 0 works in this
            process, without Ray.
        device: "cpu" or "cuda", of which each worker takes one; by default a GPU where the
            cluster has any.

    Yields:
        Parts with their answers, as they are done.

    Raises:
        UsageError, TerraFMError: what a part raised first; or workers die again and again.
    """
    if not parts:
        return
    if workers == 0:
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: this machine has no GPU that PyTorch can use")
        work = open_work(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        for part in parts:
            yield part, work(part)
        return
    ensure_ray(workers)
    # A lost worker is reported by us, where it is one too many.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    left, losses = {part.number: part for part in parts}, 0
    while left:
        try:
            for part, answer in _stream(open_work, list(left.values()), workers, device):
                del left[part.number]
                losses = 0
                yield part, answer
        except ray.exceptions.RayTaskError:
            # A fault of the code, which would be the same again.
            raise
        except ray.exceptions.RayError as error:
            losses += 1
            if losses == _LOSSES_IN_A_ROW:
                raise TerraFMError(
                    f"workers died {losses} times in a row without finishing a part: "
                    f"{one_line(error)}; give them more memory, or a smaller --batch"
                ) from None


def _stream(
    open_work: OpenWork, parts: Sequence[Part], workers: int | None, device: str | None
) -> Iterator[tuple[Part, Any]]:
    """One execution of Ray Data; a worker that dies ends it."""
    pool = _Pool.of_cluster(workers, device, len(parts))
    rows = [{"number": p.number, "first": p.first, "stop": p.stop} for p in parts]
    with warnings.catch_warnings():
        # Of max_restarts, for which Ray 2.60 has no other place.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Worker,
            fn_constructor_args=(pickle.dumps(open_work), pool.device),
            compute=ray.data.ActorPoolStrategy(
                size=pool.workers, max_tasks_in_flight_per_actor=_PARTS_AT_A_WORKER
            ),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
            # Ray warns of each pool whose actors it may restart: parts left over are begun anew.
            max_restarts=0,
        )
    for row in done.iter_rows():
        if row["error"]:
            raise (UsageError if row["usage"] else TerraFMError)(row["error"])
        # Packed by this job's own workers, for rows hold no objects.
        answer = pickle.loads(row["answer"])  # nosec B301
        yield Part(int(row["number"]), int(row["first"]), int(row["stop"])), answer


@dataclass(frozen=True)
class _Pool:
    """Actors of one kind, and what each of them holds."""

    workers: int
    device: str
    cpus: float
    gpus: int

    @classmethod
    def of_cluster(cls, workers: int | None, device: str | None, parts: int) -> "_Pool":
        has = ray.cluster_resources()
        cpus, gpus = has.get("CPU", 1.0), int(has.get("GPU", 0))
        device = device or ("cuda" if gpus else "cpu")
        grows = is_autoscaled()
        if device == "cuda" and not gpus and not grows:
            raise UsageError("--device cuda: the cluster has no GPU")
        wanted = min(parts, workers or (max(1, gpus) if device == "cuda" else max(1, int(cpus))))
        if device == "cuda":
            return cls(wanted if grows else min(wanted, gpus), device, 1.0, 1)
        # A pool that does not fit would be waited for in vain, where no machine can come.
        share = 1.0 if grows else min(1.0, int(10_000 * cpus / wanted) / 10_000)
        return cls(wanted, device, max(_LEAST_CPUS, share), 0)


class _Worker:
    """An actor; errors are values, for Ray would wrap them in tracebacks of its own."""

    def __init__(self, open_work: bytes, device: str) -> None:
        self._open, self._device = open_work, device
        self._work: Work | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        answer, error, usage = b"", "", False
        try:
            if self._work is None:
                # Opened here: what fails while it opens is a value too.
                open_work: OpenWork = pickle.loads(self._open)  # nosec B301
                self._work = open_work(self._device)
            part = Part(int(row["number"]), int(row["first"]), int(row["stop"]))
            answer = pickle.dumps(self._work(part))
        except TerraFMError as reason:
            error, usage = str(reason), isinstance(reason, UsageError)
        except OSError as reason:
            fault = explain(reason, "write", str(reason.filename or "the output"))
            error, usage = str(fault), isinstance(fault, UsageError)
        return {**row, "answer": answer, "error": error, "usage": usage}
