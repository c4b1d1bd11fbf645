"""What a call does with memory that is limited; runs in a process of its own."""

import os
import resource
import sys


def evaluate(imports, expression, errors, limit, paths):
    """Evaluates an expression of `path` for each path, and prints a line about each.

    Its words: "ended", the code (2 where the file was refused, 3 without memory, else 0), MiB by
    which the process grew beyond its imports at its peak, and the answer or the refusal.
    """
    names = {"os": os}
    exec(
        f"from terrafm.errors import TerraFMError\n"
        f"from terrafm.data.archive import BadCellError\n{imports}\n"
        f"refusals = (TerraFMError, BadCellError, {errors})",
        names,
    )
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    before = _peak()
    for path in paths:
        code = 0
        try:
            said = repr(eval(expression, names | {"path": path}))[:200]
        except names["refusals"] as error:
            said, code = str(error), 2
        except MemoryError:
            said, code = "MemoryError", 3
        line = said.replace("\n", " | ")
        sys.stdout.write(f"ended {code} {_peak() - before} {line}\n")


def _peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) >> 10
