"""A plain web server for tests: files with ranges, without listings."""

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(folder):
    """Serves a folder on loopback.

    Yields:
        The server: `address`; `sent`, a list that grows by (path, bytes) with every answer; and
        `fault`, the status that every request gets while it is set.
    """
    with answering(range_server(folder, RangeHandler)) as server:
        yield server


@contextmanager
def answering(server):
    """Has a server serve in a thread until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def range_server(folder, handler):
    """A server that does not serve yet."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.root, server.sent, server.fault = folder, [], None
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    return server


class RangeHandler(BaseHTTPRequestHandler):
    """Files with ranges and without listings, as a plain web server or the Hub's resolver."""

    protocol_version = "HTTP/1.1"
    # Head and body go separately: else the second waits 40 ms for the first to be acknowledged.
    disable_nagle_algorithm = True

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, body):
        path = self.server.root / self.path.lstrip("/")
        if self.server.fault or not path.is_file():
            self.send_response(self.server.fault or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        wanted = self.headers.get("Range")
        self.send_response(206 if wanted else 200)
        if wanted:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last or len(content)), len(content) - 1)
            self.send_header("Content-Range", f"bytes {start}-{stop}/{len(content)}")
            content = content[start : stop + 1]
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.server.sent.append((self.path, len(content)))
            self.wfile.write(content)

    def log_message(self, *_):
        """Quiet."""
