"""Buckets whose readers pay: every client that reads S3 says so where the user does."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from s3_servers import lead_to

from terrafm.storage import exists, faults, list_names, read_bytes
from terrafm.storage.parquet import open_parquet
from terrafm.storage.ranges import open_ranges

CONTENT = b"PAR1\0\0\0\0PAR1"
LISTING = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<Prefix>f/</Prefix><KeyCount>1</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>
<Contents><Key>f/a</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"e"</ETag>
<Size>4</Size><StorageClass>STANDARD</StorageClass></Contents></ListBucketResult>"""


@pytest.fixture
def heard(monkeypatch):
    """What the requests to a store said of who pays."""
    payers = []

    class Store(BaseHTTPRequestHandler):
        def answer(self, body=CONTENT, status=200):
            payers.append(self.headers.get("x-amz-request-payer"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"e"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            if status == 206:
                asked = self.headers["Range"].removeprefix("bytes=")
                self.send_header("Content-Range", f"bytes {asked}/{len(CONTENT)}")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            if "list-type" in self.path:
                self.answer(LISTING)
            else:
                first, last = (self.headers.get("Range") or "=-").rpartition("=")[2].split("-")
                if last:
                    self.answer(CONTENT[int(first) : int(last) + 1], status=206)
                else:
                    self.answer()

        def do_HEAD(self):
            self.answer()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Store)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(faults, "RETRY_SECONDS", 2.0)
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "key")
    lead_to({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}"} | keys, monkeypatch)
    yield payers
    server.shutdown()


def footer(uri):
    with pytest.raises(OSError, match="thrift"):
        open_parquet(uri)


@pytest.mark.parametrize("says", ["requester", None])
@pytest.mark.parametrize(
    "request_of",
    [
        read_bytes,
        exists,
        lambda uri: list_names(uri.rpartition("/")[0]),
        lambda uri: open_ranges(uri.rpartition("/")[0]).read("a", 0, 4),
        footer,
    ],
    ids=["read", "exists", "list", "ranges", "parquet"],
)
def test_every_request_says_who_pays(heard, monkeypatch, request_of, says):
    monkeypatch.delenv("AWS_REQUEST_PAYER", raising=False)
    if says:
        monkeypatch.setenv("AWS_REQUEST_PAYER", says)
    request_of("s3://bucket/f/a")
    assert heard
    assert set(heard) == {says}
