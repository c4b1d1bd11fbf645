"""`make audit` asks about every package, and what it finds ends it; the service is a stand-in."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
HOLE = {
    "id": "GHSA-0000-0000-0000",
    "summary": "a hole",
    "affected": [
        {
            "package": {"name": "ray", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.61.0"}]}],
        }
    ],
}


class Advisories(BaseHTTPRequestHandler):
    """Answers as OSV does; remembers what it was asked."""

    def do_POST(self):
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = canonicalize_name(query["package"]["name"]), query["version"]
        self.server.asked.add(asked)
        holes = [HOLE] if asked[0] == self.server.holed else []
        content = json.dumps({"vulns": holes} if holes else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def service():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Advisories)
    server.asked, server.holed = set(), None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def audit(service, tmp_path):
    """Runs it with this interpreter's packages."""
    settings = {
        "PIP_AUDIT_VULNERABILITY_SERVICE": "osv",
        "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{service.server_port}/v1/query",
        "PIP_AUDIT_PROGRESS_SPINNER": "off",
        "XDG_CACHE_HOME": str(tmp_path),
    }
    installed = ["-o", "install", f"BIN={Path(sys.executable).parent}"]
    return subprocess.run(
        ["make", "audit", *installed],
        cwd=ROOT,
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_package_is_asked_for(service, tmp_path):
    done = audit(service, tmp_path)
    assert done.returncode == 0, done.stderr
    pins = [
        Requirement(line.removesuffix("\\"))
        for line in (ROOT / "cluster" / "requirements.txt").read_text().splitlines()
        if line and not line.startswith(("#", " "))
    ]
    wanted = {
        (canonicalize_name(pin.name), str(pin.specifier).removeprefix("=="))
        for pin in pins
        if pin.marker is None or pin.marker.evaluate()
    }
    assert len(wanted) > 100
    assert wanted <= service.asked
    assert ("ray", metadata.version("ray")) in service.asked
    assert ("bandit", metadata.version("bandit")) in service.asked


def test_a_hole_ends_it(service, tmp_path):
    service.holed = "ray"
    done = audit(service, tmp_path)
    assert done.returncode != 0
    assert HOLE["id"] in done.stdout
    assert "2.61.0" in done.stdout
