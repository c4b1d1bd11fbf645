import errno
import os
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_proxy import Every, FaultProxy, Faults
from hypothesis import given
from hypothesis import strategies as st
from s3_servers import lead_to

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import (
    ensure_writable,
    exists,
    faults,
    file_size,
    join,
    list_names,
    read_bytes,
    remove,
    resolve,
    upload,
    write_bytes,
)
from terrafm.storage.ranges import open_ranges
from terrafm.storage.slots import request_slot


def test_files_come_and_go_on_s3(s3_bucket, tmp_path):
    where = join(s3_bucket, "folder", "file")
    assert not exists(where)
    assert file_size(where) is None
    with pytest.raises(FileNotFoundError):
        read_bytes(where)
    write_bytes(where, b"content")
    (tmp_path / "local").write_bytes(b"other")
    upload(tmp_path / "local", join(s3_bucket, "folder", "second"))
    assert exists(where)
    assert read_bytes(where) == b"content"
    assert file_size(where) == 7
    assert list_names(join(s3_bucket, "folder")) == ["file", "second"]
    ensure_writable(s3_bucket)
    remove(join(s3_bucket, "folder"))
    assert list_names(s3_bucket) == []


@pytest.mark.parametrize("fault", ["slow_down", "reset", "stall"])
def test_passing_faults_are_overcome(proxied, fault):
    bucket, proxy = proxied
    content = random.Random(0).randbytes(300_000)
    proxy.plan = Faults(stall_seconds=2, **{fault: Every(4, 2)})
    for number in range(3):
        where = join(bucket, f"file-{number}")
        write_bytes(where, content)
        assert read_bytes(where) == content
        chunk = faults.patiently(
            lambda n=number: open_ranges(bucket).read(f"file-{n}", 1000, 250_000), where
        )
        assert bytes(chunk) == content[1000:250_000]
    assert proxy.counters[fault] > 2


def test_a_store_that_is_gone_for_long_is_one_line(proxied, monkeypatch):
    bucket, proxy = proxied
    monkeypatch.setattr(faults, "RETRY_SECONDS", 1.0)
    proxy.close()
    start = time.monotonic()
    with pytest.raises(TerraFMError, match="tried again for 1 s") as error:
        read_bytes(join(bucket, "file"))
    assert not isinstance(error.value, UsageError)
    assert "\n" not in str(error.value)
    assert 0.3 < time.monotonic() - start < 30


def test_a_store_that_comes_back_is_waited_for(moto_server, monkeypatch, s3_bucket):
    monkeypatch.setattr(faults, "RETRY_SECONDS", 20.0)
    monkeypatch.setattr(faults, "_LONGEST_WAIT", 0.3)
    write_bytes(join(s3_bucket, "file"), b"content")
    host, port = moto_server["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        place = probe.getsockname()
    lead_to({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{place[1]}"}, monkeypatch)
    proxies = []

    def come_back():
        proxies.append(FaultProxy((host, int(port)), port=place[1]))

    timer = threading.Timer(1.5, come_back)
    timer.start()
    assert read_bytes(join(s3_bucket, "file")) == b"content"
    timer.join()
    proxies[0].close()


def test_a_missing_bucket_is_one_line_and_at_once(s3_bucket):
    for write in (lambda uri: write_bytes(uri, b"1"), ensure_writable):
        with pytest.raises(UsageError, match=r"terrafm-nowhere.*bucket.*does not exist") as error:
            write("s3://terrafm-nowhere/file")
        assert "\n" not in str(error.value)


def test_missing_credentials_are_one_line(s3_bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    lead_to({}, monkeypatch)
    start = time.monotonic()
    with pytest.raises(UsageError, match="check credentials"):
        write_bytes(join(s3_bucket, "file"), b"1")
    assert time.monotonic() - start < 60


def test_a_range_beyond_the_end_is_short_and_a_missing_file_is_missing(s3_bucket, tmp_path):
    for root in (s3_bucket, str(tmp_path), "memory://ranges"):
        write_bytes(join(root, "file"), b"0123456789")
        reader = open_ranges(root)
        assert bytes(reader.read("file", 2, 5)) == b"234"
        assert len(reader.read("file", 5, 50)) < 45
        assert bytes(reader.read("file", 20, 50)) == b""
        with pytest.raises(FileNotFoundError):
            reader.read("no file", 0, 1)


def test_what_passes_and_what_lasts():
    from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

    def client_error(status, code):
        answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
        translated = OSError(errno.EIO, code)
        translated.__cause__ = ClientError(answer, "GetObject")
        return translated

    for error in (
        ConnectionResetError(),
        TimeoutError(),
        EndpointConnectionError(endpoint_url="http://x"),
        client_error(503, "SlowDown"),
        client_error(429, "TooManyRequests"),
        client_error(400, "RequestTimeout"),
        client_error(500, "InternalError"),
    ):
        assert faults.is_passing(error), error
    for error in (
        FileNotFoundError(),
        PermissionError(),
        NoCredentialsError(),
        OSError(errno.ENOSPC, "full"),
        client_error(403, "SignatureDoesNotMatch"),
        client_error(404, "NoSuchBucket"),
        ValueError(),
    ):
        assert not faults.is_passing(error), error


@given(st.integers(1, 6), st.booleans())
def test_a_request_is_repeated_only_while_its_fault_passes(failures, passing):
    calls = []

    def request():
        calls.append(1)
        if len(calls) <= failures:
            raise ConnectionResetError if passing else PermissionError
        return len(calls)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "_FIRST_WAIT", 0.0001)
        patch.setattr(faults, "_LONGEST_WAIT", 0.001)
        if passing:
            assert faults.patiently(request, "uri") == failures + 1
        else:
            with pytest.raises(PermissionError):
                faults.patiently(request, "uri")
            assert len(calls) == 1


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UsageError, match=r"cannot write .*/file: no room left") as error:
        write_bytes(tmp_path / "file", b"1")
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_requests_of_a_node_are_bounded(tmp_path, monkeypatch):
    from terrafm.storage import slots

    monkeypatch.setattr(slots, "_folder", lambda limit: tmp_path)
    under_way, most = [], []

    def request(_):
        with request_slot(3):
            under_way.append(1)
            most.append(len(under_way))
            time.sleep(0.005)
            under_way.pop()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(request, range(60)))
    assert max(most) == 3


@pytest.mark.parametrize("name", ["../a", "a/../../b", "..", "/a", "s3://bucket/a", "file:///a"])
def test_a_name_never_leads_out_of_its_folder(name, tmp_path):
    with pytest.raises(UsageError, match="leads out of"):
        join(tmp_path, "inside", name)


@pytest.mark.parametrize("name", ["a", "a/b", "..a", "a..", "a...b", "a b", "tile:1", "ä"])
def test_other_names_are_appended_as_they_are(name, tmp_path):
    assert join(f"{tmp_path}/", "inside", name) == f"{tmp_path}/inside/{name}"


@pytest.mark.parametrize(
    "uri", ["reference://a::file:///refs.json", "simplecache::s3://b/c", "reference:///refs.json"]
)
def test_a_chain_of_file_systems_is_refused_before_it_is_opened(uri):
    with pytest.raises(UsageError, match="chained"):
        resolve(uri)


def test_a_file_and_its_new_name_reach_the_disk_in_this_order(tmp_path, monkeypatch):
    """After a power cut the old file is there or the new one, whole."""
    happened, real = [], os.fsync

    def fsync(number):
        name = Path(os.readlink(f"/proc/self/fd/{number}")).name
        happened.append(("folder" if name == tmp_path.name else "file", target.exists()))
        real(number)

    target = tmp_path / "name"
    monkeypatch.setattr(os, "fsync", fsync)
    write_bytes(str(target), b"content")
    assert happened == [("file", False), ("folder", True)]
