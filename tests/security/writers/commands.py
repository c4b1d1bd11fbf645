"""Commands as processes that start within milliseconds: forked from one that has imported all."""

import contextlib
import importlib
import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

_SLOWEST = 900.0


_MODULES = (
    "deepspeed", "ray.data", "ray.train", "ray.tune", "terrafm.cli", "terrafm.data.ingest.append",
    "terrafm.data.ingest.job", "terrafm.embed.job", "terrafm.train.checkpoints.average",
    "terrafm.train.driver.supervisor", "terrafm.train.driver.validator", "tuning.sweep",
)  # fmt: skip


def import_all():
    """What the verbs import, and nothing that starts a thread."""
    for name in _MODULES:
        importlib.import_module(name)


class Command:
    """`terrafm ARGUMENTS` in a child of this process.

    Args:
        arguments: what follows `terrafm`.
        log: file that gets what it prints.
        environment: beside this process's.
        gate: both ends of a pipe; it begins once the write end is closed.
        delay: seconds from then to its begin.
        dies: number of the change of a file at which it kills itself; None where it does not.
        under: changes count below this path only; of a store all requests that change something.
    """

    def __init__(self, arguments, log, environment, gate=(), delay=0.0, dies=None, under=None):
        self.log = Path(log)
        self.began = time.monotonic()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        self._code = None
        if not self.pid:
            _live(arguments, self.log, environment, gate, delay, dies, under)

    def poll(self):
        """The exit code, as a shell has it (137 for kill -9); None while it runs."""
        if self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                self._code = code if code >= 0 else 128 - code
        return self._code

    def wait(self, seconds=_SLOWEST):
        """The exit code; it is killed, and that is an error, where it takes longer."""
        deadline = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"no end within {seconds:g} s: {self.printed()[-2000:]}")
            time.sleep(0.01)
        return self._code

    def kill(self):
        """kill -9 of the command alone, as the kernel does it for want of memory."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def printed(self):
        """What it has printed until now, output and errors."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""


def _live(arguments, log, environment, gate, delay, dies, under):
    """The child: it never returns."""
    code, deadly = 70, None
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(environment)
        random.seed()
        if gate:
            os.close(gate[1])
            os.read(gate[0], 1)
            time.sleep(delay)
        if dies is not None:
            deadly = _Deadly(dies, under)
        from terrafm.cli import main

        main([str(a) for a in arguments])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001 - what a user would see
        traceback.print_exc()
        code = 1
    finally:
        if deadly is not None:
            Path(f"{log}.changes").write_text(str(deadly.made))
        with contextlib.suppress(Exception):
            import ray

            ray.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Deadly:
    """Counts the changes below a path, or the requests that change a store, and dies of one.

    Right before it is made: what comes after is the next command's to find.
    """

    def __init__(self, number, under):
        self.made, self._number, self._under = 0, number, under
        if "://" in under:
            self._watch_requests()
        else:
            sys.addaudithook(self._hook)

    def _change(self):
        if self.made == self._number:
            os.kill(os.getpid(), signal.SIGKILL)
        self.made += 1

    def _hook(self, event, arguments):
        if event == "open":
            path, flags = arguments[0], arguments[2] or 0
            if not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event in ("os.rename", "os.remove", "os.mkdir", "os.link", "os.rmdir"):
            path = arguments[0]
        else:
            return
        if isinstance(path, str | bytes) and os.fsdecode(path).startswith(self._under):
            self._change()

    def _watch_requests(self):
        from aiobotocore.client import AioBaseClient

        request = AioBaseClient._make_api_call

        async def counted(client, operation, arguments):
            if not operation.startswith(("Get", "Head", "List")):
                self._change()
            return await request(client, operation, arguments)

        AioBaseClient._make_api_call = counted


def ask(function, *arguments, environment=None):
    """What a function returns, run in a child: it may start threads, which no fork survives."""
    read, write = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)
            os.environ.update(environment or {})
            answer = {"value": function(*arguments)}
        except BaseException:  # noqa: BLE001 - told by the parent
            answer = {"error": traceback.format_exc()}
        with os.fdopen(write, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    answer = json.loads(text or '{"error": "it ended without an answer"}')
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return answer["value"]
