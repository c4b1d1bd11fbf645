"""Mutated files of every kind into the product's readers: no traceback, crash, or gigabytes.

    python tests/security/fuzzing/fuzz.py --count 100000 --seed 1 [--target weights] [--keep FOLDER]

A case is a function of (seed, target, number). It is read in a child process, many in one; a child
that dies or hangs is a finding like a traceback, and the next one goes on after it. A finding's
files are kept. A reader may end with the declared errors only, whose message is one line; it may
take no more than 512 MiB more than it had, and open, write or ask nothing outside of its folder.
Exit code 1 where there is a finding.
"""

import argparse
import collections
import contextlib
import json
import logging
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

GROWTH_BYTES = 512 << 20
"""Resident memory that a case may take beside what the process had before it."""
_ADDRESS_BYTES = 4 << 30
_HANGS_AFTER = 60.0
_CANARIES = ("/etc/hostname", "/etc/passwd")


def main() -> int:
    """Runs all targets, or one; prints a line for each, and the findings."""
    arguments = _arguments()
    if arguments.child:
        return _child(arguments)
    if arguments.replay:
        return _replay(arguments)
    import targets

    chosen = [arguments.target] if arguments.target else list(targets.TARGETS)
    shares = sum(targets.TARGETS[name].share for name in chosen)
    folder = Path(tempfile.mkdtemp(prefix="terrafm-fuzz-"))
    findings = 0
    try:
        for name in chosen:
            count = -(-arguments.count * targets.TARGETS[name].share // shares)
            findings += _run(name, count, arguments, folder / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if findings else 0


def _arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--target")
    parser.add_argument("--keep", help="folder for the files of findings")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--replay", type=int, help="number of one case, with --target")
    return parser.parse_args()


def _run(name, count, arguments, folder):
    """All cases of a target, through as many children as it takes."""
    import targets

    sample = folder / "pristine"
    sample.mkdir(parents=True)
    targets.TARGETS[name](sample).build()
    (folder / "outside.json").write_text('{"outside": 1}')
    outcomes, kinds, first, began = collections.Counter(), {}, 0, time.monotonic()
    peak = 0
    while first < count:
        command = [
            sys.executable, __file__, "--child", str(folder), "--target", name,
            "--seed", str(arguments.seed), "--first", str(first), "--count", str(count),
        ]  # fmt: skip
        first, ending, told = _watch(command)
        for line in told:
            outcomes[line["outcome"]] += 1
            peak = max(peak, line["growth"])
            if line["outcome"] == "finding":
                _note(kinds, line["kind"], line["number"], line["told"])
        if ending is not None:
            outcomes["finding"] += 1
            _note(kinds, ending, first, ending)
            first += 1
    seconds = time.monotonic() - began
    _say(
        f"{name}: {sum(outcomes.values())} inputs, {outcomes['read']} read, "
        f"{outcomes['refused']} refused, {outcomes['finding']} findings of {len(kinds)} kinds, "
        f"at most {peak >> 20} MiB more, {seconds:.0f} s"
    )
    for kind, (numbers, told) in sorted(kinds.items(), key=lambda item: -len(item[1][0])):
        _say(f"  {len(numbers)} x {kind}\n    numbers {numbers[:5]}: {told}")
        if arguments.keep:
            _keep(name, numbers[0], arguments, folder)
    return outcomes["finding"]


def _say(text):
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _note(kinds, kind, number, told):
    kinds.setdefault(kind, ([], told))[0].append(number)


def _keep(name, number, arguments, folder):
    import targets

    target = targets.TARGETS[name](folder / "pristine")
    target.load()
    for path, content in _case(target, arguments.seed, name, number).items():
        file = Path(arguments.keep) / f"{name}-{arguments.seed}-{number}" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)


def _case(target, seed, name, number):
    return target.mutate(random.Random(f"{seed}/{name}/{number}"))


def _watch(command):
    """One child to its end: the number of the case it died of or the count, how, what it told."""
    told, current = [], 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as errors:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        waiting, buffer = 120.0, b""
        while True:
            ready, _, _ = select.select([child.stdout], [], [], waiting)
            chunk = os.read(child.stdout.fileno(), 1 << 16) if ready else b""
            if not chunk:
                break
            *lines, buffer = (buffer + chunk).split(b"\n")
            waiting = _HANGS_AFTER
            for line in lines:
                if line.startswith(b"{"):
                    told.append(json.loads(line))
                elif line.isdigit():
                    current = int(line)
        if not ready:
            child.kill()
            child.wait()
            return current, f"no end within {_HANGS_AFTER:g} s", told
        code = child.wait()
        if code == 0:
            return current + 1, None, told
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-3:]
        if not told and not current:
            raise SystemExit(f"the child did not begin: {last}")
        return current, f"the process ended with {code}: {' | '.join(last)[:300]}", told


def _child(arguments):
    """Reads cases one after the other in this process, and tells of each."""
    import targets

    # What the readers print is not of interest; the parent's pipe is.
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    folder = Path(arguments.child)
    shutil.rmtree(folder / "work", ignore_errors=True)
    shutil.copytree(folder / "pristine", folder / "work")
    target = targets.TARGETS[arguments.target](folder / "work")
    target.load()
    _warm(target)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _status("VmSize") + _ADDRESS_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    guard = Guard(folder / "work")
    for number in range(arguments.first, arguments.count):
        pipe.write(f"{number}\n")
        told = _one(target, arguments, number, guard)
        pipe.write(json.dumps(told) + "\n")
    return 0


def _warm(target):
    """Everything is imported and cached before memory and files are counted.

    What is sound is read to the end, or the refusals would mean nothing.
    """
    target.read()
    for path, content in target.mutate(random.Random(0)).items():
        (target.folder / path).write_bytes(content)
    for _ in range(2):
        # What it raises is told when its number comes.
        with contextlib.suppress(Exception):
            target.read()
        _restore(target)


def _restore(target):
    for path, content in target.sound.items():
        file = target.folder / path
        if not file.is_file() or file.read_bytes() != content:
            file.write_bytes(content)


def _one(target, arguments, number, guard):
    case = _case(target, arguments.seed, arguments.target, number)
    for path, content in case.items():
        (target.folder / path).write_bytes(content)
    before = _status("VmRSS")
    _reset_peak()
    told = _outcome(target, guard)
    growth = max(0, _status("VmHWM") - before)
    if guard.seen:
        told = {"outcome": "finding", "kind": f"outside of its folder: {guard.seen[0]}", "told": ""}
        guard.seen.clear()
    elif told["outcome"] != "finding" and growth > GROWTH_BYTES:
        told = {"outcome": "finding", "kind": "memory", "told": f"{growth >> 20} MiB"}
    for path in case:
        if path not in target.sound:
            (target.folder / path).unlink(missing_ok=True)
    _restore(target)
    return {"number": number, "growth": growth, **told}


def _outcome(target, guard):
    from terrafm.data.archive import BadCellError
    from terrafm.errors import TerraFMError

    try:
        with guard:
            target.read()
    except (TerraFMError, BadCellError) as error:
        text = str(error)
        if "\n" in text or not text or len(text) > 3000:
            what = "empty" if not text else "lines" if "\n" in text else "length"
            return {
                "outcome": "finding",
                "kind": f"message, {what}: {_place(error)}",
                "told": ascii(text[:300]),
            }
        return {"outcome": "refused"}
    except BaseException as error:  # noqa: BLE001 - that is what is looked for
        kind = f"{type(error).__name__} at {_place(error)}"
        return {"outcome": "finding", "kind": kind, "told": ascii(str(error)[:200])}
    return {"outcome": "read"}


def _place(error):
    """The innermost line of ours that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/terrafm/" in f.filename or "/tuning/" in f.filename]
    chosen = (ours or frames)[-1]
    return f"{'/'.join(Path(chosen.filename).parts[-2:])}:{chosen.lineno} {chosen.name}"


def _status(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) << 10


def _reset_peak():
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class Guard:
    """Watches what Python opens, starts and asks while a case is read."""

    def __init__(self, folder):
        self._folder, self._on, self.seen = os.path.realpath(folder), False, []
        self._above = os.path.dirname(self._folder)
        sys.addaudithook(self._hook)

    def __enter__(self):
        self._on = True

    def __exit__(self, *_):
        self._on = False

    def _hook(self, event, arguments):
        if not self._on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            self._opened(os.path.realpath(os.fsdecode(arguments[0])), arguments[2] or 0)
        elif event in ("os.remove", "os.rename", "os.rmdir", "shutil.rmtree", "os.mkdir"):
            self._changed(os.path.realpath(os.fsdecode(arguments[0])))
        elif event in (
            "subprocess.Popen",
            "os.system",
            "os.exec",
            "socket.connect",
            "pickle.find_class",
        ):
            self.seen.append(f"{event} {ascii(arguments)[:100]}")

    def _opened(self, path, flags):
        inside = path.startswith(self._folder + "/")
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        near = path.startswith(self._above + "/") or path in _CANARIES
        if not inside and (near or (writes and not path.startswith("/dev/"))):
            self.seen.append(f"open {path!a}")

    def _changed(self, path):
        if not path.startswith(self._folder + "/"):
            self.seen.append(f"change of {path!a}")


def _replay(arguments):
    """One case in this process, with its traceback."""
    import targets

    folder = Path(tempfile.mkdtemp(prefix="terrafm-fuzz-"))
    try:
        target = targets.TARGETS[arguments.target](folder)
        target.build()
        target.load()
        for path, content in _case(
            target, arguments.seed, arguments.target, arguments.replay
        ).items():
            _say(f"{path}: {len(content)} bytes: {content[:2000]!a}")
            (folder / path).write_bytes(content)
        target.read()
    finally:
        shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
