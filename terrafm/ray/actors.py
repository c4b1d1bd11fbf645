"""Parts of a plan in Ray Data's actors, each of which loads a model once."""

import logging
import pickle
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
from ray.util.annotations import RayDeprecationWarning

from terrafm.errors import TerraFMError, UsageError
from terrafm.ray.parts import OpenWork, Part, Work
from terrafm.ray.runtime import ensure_ray, is_autoscaled
from terrafm.storage.faults import explain, one_line

# One to work on and one at the door.
_PARTS_AT_A_WORKER = 2
# Ray counts CPUs in ten-thousandths.
_LEAST_CPUS = 0.01
_LOSSES_IN_A_ROW = 3


def run_on_ray(
    open_work: OpenWork, parts: Sequence[Part], workers: int | None, device: str | None
) -> Iterator[tuple[Part, Any]]:
    """See `terrafm.ray.parts.run_parts`."""
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
