"""Calls in processes of their own that start at once: forks of one that has imported already.

A new interpreter needs seconds to import torch, GDAL and Ray; its fork needs milliseconds. What a
test says about the start of an interpreter itself, or about what it imports, it must ask of a new
one.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path

_IMPORTED = (
    "torch", "ray", "rasterio", "h5py", "zarr", "timm", "safetensors.torch", "pyarrow.parquet",
    "terrafm.cli", "terrafm.data.ingest.job", "terrafm.eval.features.peers",
)  # fmt: skip


def _context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    return context


# Of the server's start: two threads would start two.
_STARTING = threading.Lock()


class CallFailedError(AssertionError):
    """A process did not end by itself in time."""


def call_in_process(function, *arguments, timeout=120, folder=None, environment=None):
    """Calls a function of a module in a process of its own.

    Returns:
        Its exit code (negative: the signal that ended it), and what was written to its standard
        output and to its standard errors.

    Raises:
        CallFailedError: it took longer than `timeout` seconds, and was killed.
    """
    with tempfile.TemporaryDirectory() as outputs:
        paths = [Path(outputs) / "out", Path(outputs) / "errors"]
        process = _context().Process(
            target=_run, args=(function, arguments, [str(p) for p in paths], folder, environment)
        )
        with _STARTING:
            process.start()
        process.join(timeout)
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.join()
            raise CallFailedError(f"no end in {timeout} s: {[p.read_text() for p in paths]}")
        return process.exitcode, *(path.read_text() for path in paths)


def _run(function, arguments, paths, folder, environment):
    os.setsid()
    for number, path in enumerate(paths, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    if environment is not None:
        os.environ.clear()
        os.environ.update(environment)
    if folder is not None:
        os.chdir(folder)
    try:
        function(*arguments)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run_script(words):
    """A script as `python WORDS` runs it."""
    import runpy

    sys.argv = [str(word) for word in words]
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def run_terrafm(words):
    """The command line, as `terrafm WORDS` calls it."""
    from terrafm.cli import main

    sys.argv = ["terrafm", *words]
    main()


def run_terrafm_nameless(words):
    """The command line, by a user id that has no name."""
    import pwd

    def nobody(_):
        raise KeyError("no name")

    pwd.getpwuid = nobody
    run_terrafm(words)
