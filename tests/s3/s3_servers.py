"""S3 servers for tests: a light one in this process, a real one, and faults before it."""

import os
import uuid
from contextlib import contextmanager

import pytest
from fault_proxy import FaultProxy, Faults
from start_ceph import Ceph, free_port, installed

_OWN_SERVER = ("ENDPOINT", "KEY", "SECRET", "BUCKET")


@pytest.fixture(scope="session")
def moto_server():
    """Environment of a light S3 server in this process."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.fixture
def s3_bucket(moto_server, monkeypatch):
    """URI of a new bucket on the light server; the environment leads there."""
    yield from _bucket(moto_server, monkeypatch)


@pytest.fixture
def proxied(s3_bucket, moto_server, monkeypatch):
    """A bucket on the light server behind a proxy, with patience for tests, and the proxy."""
    from terrafm.storage import faults, files, ranges

    monkeypatch.setattr(faults, "RETRY_SECONDS", 8.0)
    monkeypatch.setattr(faults, "_LONGEST_WAIT", 0.3)
    monkeypatch.setattr(ranges, "STALL_SECONDS", 0.4)
    monkeypatch.setitem(
        files.S3_OPTIONS,
        "config_kwargs",
        {"connect_timeout": 0.4, "read_timeout": 0.4, "retries": {"total_max_attempts": 1}},
    )
    host, port = moto_server["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with FaultProxy((host, int(port))) as proxy:
        lead_to({"AWS_ENDPOINT_URL": proxy.endpoint}, monkeypatch)
        yield s3_bucket, proxy


class RealServer:
    """A real S3 server: its clients' environment, and the daemon where it is ours."""

    def __init__(self, environment, bucket=None, ceph=None):
        self.environment, self.bucket, self.ceph = environment, bucket, ceph

    @property
    def address(self):
        host, _, port = self.environment["AWS_ENDPOINT_URL"].rpartition("://")[2].rpartition(":")
        return host, int(port)

    @contextmanager
    def behind(self, faults=None):
        """Environment of the server behind a proxy, and the proxy."""
        with FaultProxy(self.address, faults or Faults()) as proxy:
            yield self.environment | {"AWS_ENDPOINT_URL": proxy.endpoint}, proxy


@pytest.fixture(scope="session")
def real_server(tmp_path_factory):
    """The S3 server that TERRAFM_TEST_S3_* name, else a private Ceph on loopback."""
    given = {name: os.environ.get(f"TERRAFM_TEST_S3_{name}") for name in _OWN_SERVER}
    if given["ENDPOINT"]:
        environment = {
            "AWS_ENDPOINT_URL": given["ENDPOINT"],
            "AWS_ACCESS_KEY_ID": given["KEY"] or "",
            "AWS_SECRET_ACCESS_KEY": given["SECRET"] or "",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        yield RealServer(environment, given["BUCKET"])
        return
    if not installed():
        pytest.skip(
            "no S3 server: set TERRAFM_TEST_S3_ENDPOINT, or install Ceph: "
            "python tests/s3/start_ceph.py FOLDER --install"
        )
    ceph = Ceph(tmp_path_factory.mktemp("ceph"), free_port())
    ceph.start()
    yield RealServer(ceph.environment, ceph=ceph)
    ceph.stop()


@pytest.fixture
def real_bucket(real_server, monkeypatch):
    """URI of an empty place on the real server; the environment leads there."""
    yield from _bucket(real_server.environment, monkeypatch, real_server.bucket)


def _bucket(environment, monkeypatch, given=None):
    lead_to(environment, monkeypatch)
    import s3fs

    name = uuid.uuid4().hex[:12]
    if given:
        yield f"s3://{given}/{name}"
    else:
        s3fs.S3FileSystem().mkdir(f"terrafm-{name}")
        yield f"s3://terrafm-{name}"
    forget_clients()


def lead_to(environment, monkeypatch):
    """Makes the clients of this process use a server."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()


def forget_clients():
    """Clients hold on to the server that the environment named when they were made."""
    import s3fs

    from terrafm.storage.ranges import _open_store

    s3fs.S3FileSystem.clear_instance_cache()
    _open_store.cache_clear()
