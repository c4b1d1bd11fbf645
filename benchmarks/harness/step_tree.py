"""The step of one working tree in a process of its own, for benchmarks/step.py --against.

    python benchmarks/harness/step_tree.py '{"work": {...}, "device": "cpu"}'

Whose `terrafm` is measured, PYTHONPATH decides; this harness is the same for both. The first line
of the output has what is counted; then every line of the input is answered by the seconds of a
step, by the clock and of the processor, the median of `work.steps`.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from harness.step_work import StepWork


class Tree:
    """A process that runs the step of another working tree, or of this one.

    Args:
        folder: the working tree.
        work: the step.
        device: where it runs.

    Attributes:
        counted: "operations" by phase, and "saved_bytes_per_sample".
        processor: seconds of a step on the processor, of each measurement: on a machine with
            other work they differ less than those by the clock.
    """

    def __init__(self, folder: Path, work: StepWork, device: str) -> None:
        here = Path(__file__).resolve().parents[1]
        request = json.dumps({"work": asdict(work), "device": device})
        paths = os.pathsep.join([str(folder), str(here)])
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(here / "harness" / "step_tree.py"), request],
            env=os.environ | {"PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.counted: dict[str, Any] = self._answer()
        self.processor: list[float] = []

    def seconds(self) -> float:
        """Of a step by the clock, measured now."""
        self._pipe(self._process.stdin).write("\n")
        self._pipe(self._process.stdin).flush()
        seconds, processor = self._answer()
        self.processor.append(processor)
        return float(seconds)

    def close(self) -> None:
        """Ends the process."""
        self._pipe(self._process.stdin).close()
        self._process.wait()

    def _answer(self) -> Any:
        line = self._pipe(self._process.stdout).readline()
        if not line:
            raise SystemExit(f"the step's process ended with exit code {self._process.wait()}")
        return json.loads(line)

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        assert pipe is not None
        return pipe


def main() -> None:
    """Counts, then measures as often as it is asked."""
    import torch

    from harness.step_counts import operations, saved_bytes
    from harness.step_work import build, one_step, seconds_per_step

    request = json.loads(sys.argv[1])
    work, device = StepWork(**request["work"]), torch.device(request["device"])
    distillation = build(work, device)
    batches = [batch.to(device) for batch in work.batches()]
    one_step(distillation, batches)
    counted = {
        "operations": operations(distillation, batches).by_phase,
        "saved_bytes_per_sample": saved_bytes(distillation, batches[0]) / work.micro_rows,
    }
    print(json.dumps(counted), flush=True)
    for _ in sys.stdin:
        busy = []

        def step(busy: list[float] = busy) -> None:
            begin = time.process_time()
            one_step(distillation, batches)
            busy.append(time.process_time() - begin)

        seconds = seconds_per_step(step, device, work.steps)
        print(json.dumps([seconds, statistics.median(busy)]), flush=True)


if __name__ == "__main__":
    main()
