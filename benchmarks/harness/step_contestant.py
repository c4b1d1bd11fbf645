"""Runs one contestant of benchmarks/overhead.py in this process and prints its result as JSON.

    python benchmarks/harness/step_contestant.py '{"name": "plain", "batch": 4, ...}'

The argument is a `StepWork`. The result: "seconds", median of a step, and "losses" of all steps.
"""

import importlib
import json
import sys

from harness.step_work import StepWork

# Name -> module and function; imported late, since the libraries of one are missing to another.
CONTESTANTS = {
    "plain": ("harness.step_contestants", "plain"),
    "ddp": ("harness.step_contestants", "torchrun"),
    "ddp_rank": ("harness.step_contestants", "ddp_rank"),
    "ray": ("harness.step_ray", "ray_zero"),
    "lightly": ("harness.step_lightly", "lightly"),
}


def main() -> None:
    """Prints the contestant's result."""
    work = StepWork(**json.loads(sys.argv[1]))
    module, function = CONTESTANTS[work.name]
    answer = getattr(importlib.import_module(module), function)(work)
    if answer is not None:
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
