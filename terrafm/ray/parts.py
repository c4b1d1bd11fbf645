"""Work on the rows of a plan, part by part, in this process or by workers of a cluster.

What a part is depends on the plan alone, never on the number of workers. A part may be done
twice, after a lost worker for one: what it writes has to be a function of the part.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from terrafm.errors import UsageError

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
    # Ray takes seconds to load: not before there is work for it.
    from terrafm.ray.actors import run_on_ray

    yield from run_on_ray(open_work, parts, workers, device)
