"""Serves a folder on loopback with ranges and a delay before every answer; ends with its parent.

    python benchmarks/harness/range_server.py FOLDER

Prints its address. `PUT /-/latency/MILLISECONDS` sets the delay, `GET /-/counts` answers the
requests and bytes since the last such question. It lives until its standard input is closed.
"""

import json
import os
import sys
import threading
import time
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """Files of a folder.

    Attributes:
        root: the folder.
        latency: seconds before an answer.
        requests, sent: requests and bytes of bodies since they were last asked for.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.latency = root, 0.0
        self.requests, self.sent = 0, 0
        self._lock = threading.Lock()

    def count(self, size: int) -> None:
        """Adds an answer."""
        with self._lock:
            self.requests += 1
            self.sent += size

    def take_counts(self) -> dict[str, int]:
        """What was counted, which begins anew."""
        with self._lock:
            found = {"requests": self.requests, "bytes": self.sent}
            self.requests, self.sent = 0, 0
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are measured hang up when they have what they want."""


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD with ranges; no listings."""

    server: RangeServer
    protocol_version = "HTTP/1.1"
    # Head and body go separately: else the second waits for the first to be acknowledged.
    disable_nagle_algorithm = True

    def do_PUT(self) -> None:
        """Sets the delay."""
        self.server.latency = float(self.path.rpartition("/")[2]) / 1000
        self._json({})

    def do_HEAD(self) -> None:
        """The length of a file."""
        self._file(body=False)

    def do_GET(self) -> None:
        """A file, or a range of it."""
        if self.path == "/-/counts":
            self._json(self.server.take_counts())
        else:
            self._file(body=True)

    def _json(self, content: dict[str, int]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _file(self, *, body: bool) -> None:
        time.sleep(self.server.latency)
        path = self.server.root / self.path.lstrip("/")
        try:
            file = os.open(path, os.O_RDONLY)
        except OSError:
            self.server.count(0)
            self.send_error(404)
            return
        try:
            size = os.fstat(file).st_size
            first, last = 0, size - 1
            wanted = self.headers.get("Range")
            if wanted:
                start, _, stop = wanted.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(stop or last), last)
            length = max(0, last + 1 - first)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.server.count(length if body else 0)
            self.wfile.flush()
            while body and length > 0:
                done = os.sendfile(self.connection.fileno(), file, first, length)
                first, length = first + done, length - done
        finally:
            os.close(file)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def ask(address: str, path: str, method: str = "GET") -> dict[str, int]:
    """What a server answers to `/-/PATH`."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=60)
    try:
        connection.request(method, f"/-/{path}")
        found: dict[str, int] = json.loads(connection.getresponse().read())
        return found
    finally:
        connection.close()


def main() -> None:
    """Serves until the parent is gone."""
    server = RangeServer(Path(sys.argv[1]))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
