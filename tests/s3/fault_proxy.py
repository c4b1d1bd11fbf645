"""A TCP proxy before an S3 server that adds latency and makes faults.

    python tests/s3/fault_proxy.py 127.0.0.1:9000 --latency 0.02 --slow-down 10:3

prints the address that it listens on, and its counters when it is ended. FAULT EVERY:LENGTH hits
LENGTH requests in a row out of EVERY. The requests of all connections are counted together.

Bytes from the server are spliced inside the kernel, so that the proxy costs little next to what
is measured through it.
"""

import argparse
import fcntl
import json
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

_METHODS = (b"GET ", b"PUT ", b"HEAD ", b"POST ", b"DELETE ")
_CHUNK = 1 << 20
_SLOW_DOWN_BODY = b"<?xml version='1.0'?><Error><Code>SlowDown</Code><Message>no</Message></Error>"
_SLOW_DOWN = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n" % len(_SLOW_DOWN_BODY)
)


@dataclass(frozen=True)
class Every:
    """Hits `length` requests in a row out of `every`, after `skip` requests without fault."""

    every: int
    length: int = 1
    skip: int = 0

    def hits(self, number: int) -> bool:
        """Whether request `number`, from 0, is hit."""
        return number >= self.skip and (number - self.skip) % self.every < self.length


@dataclass
class Faults:
    """What the proxy does to requests; may be replaced while it runs.

    Attributes:
        latency: seconds added to every request and to every new connection.
        slow_down: answered with 503 SlowDown, never reaching the server.
        reset: reach the server, whose answer breaks off in its midst with a connection reset.
        stall: reach the server, whose answer pauses in its midst for `stall_seconds`.
        stall_seconds: length of the pause.
    """

    latency: float = 0.0
    slow_down: Every | None = None
    reset: Every | None = None
    stall: Every | None = None
    stall_seconds: float = 30.0

    def fault(self, number: int) -> str | None:
        """Name of the fault that hits a request."""
        for name in ("slow_down", "reset", "stall"):
            rule = getattr(self, name)
            if rule is not None and rule.hits(number):
                return str(name)
        return None


@dataclass
class FaultProxy:
    """Listens on a free port of loopback until closed; a context manager.

    Attributes:
        target: (host, port) of the server.
        plan: the faults.
        port: to listen on; a free one where 0.
        counters: requests seen, and hit by each fault.
    """

    target: tuple[str, int]
    plan: Faults = field(default_factory=Faults)
    port: int = 0
    counters: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=256)
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def endpoint(self) -> str:
        """URL that stands for the server."""
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        """Breaks all connections and ends."""
        self._closed.set()
        for end in (self._listener, *list(self._open)):
            _shut(end)

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._closed.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = None
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            time.sleep(self.plan.latency)
            server = socket.create_connection(self.target)
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open |= {client, server}
            connection = _Connection(client, server)
            threading.Thread(target=connection.answers, daemon=True).start()
            self._requests(connection)
        except OSError:
            # A server that is down looks to the client like a connection that ends.
            self._count("refused")
        finally:
            for end in (client, server):
                if end is not None:
                    _shut(end)
                    self._open.discard(end)

    def _requests(self, connection: "_Connection") -> None:
        while chunk := connection.client.recv(_CHUNK):
            if chunk.startswith(_METHODS):
                plan = self.plan
                fault = plan.fault(self._count("requests"))
                if fault is not None:
                    self._count(fault)
                time.sleep(plan.latency)
                if fault == "slow_down":
                    connection.refuse(with_body=not chunk.startswith(b"HEAD "))
                    return
                if fault is not None:
                    connection.pause = plan.stall_seconds if fault == "stall" else 0.0
                    connection.fault = fault
            connection.server.sendall(chunk)

    def _count(self, name: str) -> int:
        with self._lock:
            self.counters[name] += 1
            return self.counters[name] - 1


class _Connection:
    """The answers' way back, and the fault that waits for the next of them."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.fault: str | None = None
        self.pause = 0.0

    def answers(self) -> None:
        readable, writable = os.pipe()
        # Of 64 KiB by default: the client would be woken for each of these.
        fcntl.fcntl(writable, fcntl.F_SETPIPE_SZ, _CHUNK)
        try:
            while count := os.splice(self.server.fileno(), writable, _CHUNK):
                if self.fault is not None:
                    first = os.read(readable, count)
                    self.client.sendall(first[: len(first) // 2])
                    if self.fault == "reset":
                        _shut(self.client, reset=True)
                        return
                    self.fault = None
                    time.sleep(self.pause)
                    self.client.sendall(first[len(first) // 2 :])
                    continue
                while count:
                    count -= os.splice(readable, self.client.fileno(), count)
        except OSError:
            # One side has gone; the other learns of it below.
            pass
        finally:
            os.close(readable)
            os.close(writable)
            for end in (self.client, self.server):
                _shut(end)

    def refuse(self, with_body: bool) -> None:
        self.client.sendall(_SLOW_DOWN + (_SLOW_DOWN_BODY if with_body else b""))
        self.client.shutdown(socket.SHUT_WR)
        # A body still on its way would make the kernel reset the connection over the answer.
        self.client.settimeout(2)
        try:
            while self.client.recv(_CHUNK):
                continue
        except TimeoutError:
            return


def _shut(end: socket.socket, reset: bool = False) -> None:
    try:
        if reset:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # The thread that still receives from it would keep close() from taking effect.
            end.shutdown(socket.SHUT_RD)
        else:
            end.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It was closed from the other side.
        pass
    end.close()


def _every(text: str) -> Every:
    return Every(*(int(part) for part in text.split(":")))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", help="HOST:PORT of the server")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    for name in ("slow-down", "reset", "stall"):
        parser.add_argument(f"--{name}", type=_every, metavar="EVERY:LENGTH")
    parser.add_argument("--stall-seconds", type=float, default=30.0)
    arguments = parser.parse_args()
    host, _, port = arguments.target.rpartition(":")
    del arguments.target
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with FaultProxy((host, int(port)), Faults(**vars(arguments))) as proxy:
        print(proxy.endpoint, flush=True)  # noqa: T201
        try:
            while True:
                signal.pause()
        finally:
            print(json.dumps(proxy.counters), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
