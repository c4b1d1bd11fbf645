"""Checks a prefix of a store or a folder: write, read, list, delete, and the clock."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from email.utils import parsedate_to_datetime

import requests

from terrafm.clusters.findings import FAULT, OK, WARNING, Finding
from terrafm.errors import TerraFMError
from terrafm.storage import (
    exists,
    is_local,
    join,
    list_names,
    read_bytes,
    read_range,
    remove,
    resolve,
    write_bytes,
)
from terrafm.storage.addresses import without_secrets
from terrafm.storage.faults import one_line

_BYTES = 1 << 20
_SECONDS = 10.0
# S3 refuses requests whose time is 15 minutes off; lines of several machines are compared before.
_SKEW_WARNING, _SKEW_FAULT = 30.0, 600.0


def examine_store(uri: str) -> Iterator[Finding]:
    """Writes, reads, lists and removes one small file under a prefix.

    Args:
        uri: of the prefix; a folder must exist.

    Yields:
        A finding for each thing; after one that fails, those that need it are left out.

    Raises:
        UsageError: the URI is none.
    """
    shown = without_secrets(uri)
    if is_local(uri):
        if not os.path.isdir(resolve(uri)[1]):
            yield Finding(FAULT, f"{shown} is no folder: make it, or name another")
            return
    else:
        endpoint = _endpoint(uri)
        clock = None if endpoint is None else _clock(endpoint)
        if clock is not None:
            yield clock
            if clock.level == FAULT:
                return
    probe = join(uri, f".writable-{uuid.uuid4().hex}")
    yield from _operations(probe, uri, shown)


def _operations(probe: str, uri: str, shown: str) -> Iterator[Finding]:
    content = os.urandom(_BYTES)
    name = probe.rpartition("/")[2]
    doing, seconds = "written", {}
    try:
        for doing, seconds_of in _PARTS.items():
            began = time.perf_counter()
            right = seconds_of(probe, uri, name, content)
            seconds[doing] = time.perf_counter() - began
            if not right:
                yield Finding(
                    FAULT, f"{shown}: a file that was {doing} is not what was written, or not "
                    "there: another program changes it, or the store is not consistent",
                )  # fmt: skip
    except (TerraFMError, OSError) as error:
        yield Finding(
            FAULT,
            f"{shown}: a file cannot be {doing}: {one_line(error)}; the credentials need "
            f"{_RIGHTS[doing]} there",
        )
        if doing in ("read", "listed"):
            yield from _clean_up(probe)
        elif doing == "removed":
            yield Finding(WARNING, f"{without_secrets(probe)} stays: remove it")
        return
    told = ", ".join(f"{what} in {1000 * s:.0f} ms" for what, s in seconds.items())
    yield Finding(OK, f"{shown}: a file of 1 MiB is {told}")


def _clean_up(probe: str) -> Iterator[Finding]:
    try:
        remove(probe)
    except (TerraFMError, OSError):
        yield Finding(WARNING, f"{without_secrets(probe)} stays: remove it")


def _write(probe: str, uri: str, name: str, content: bytes) -> bool:
    write_bytes(probe, content)
    return True


def _read(probe: str, uri: str, name: str, content: bytes) -> bool:
    return read_bytes(probe) == content and read_range(probe, 7, 4096) == content[7:4096]


def _list(probe: str, uri: str, name: str, content: bytes) -> bool:
    return name in list_names(uri)


def _remove(probe: str, uri: str, name: str, content: bytes) -> bool:
    remove(probe)
    return not exists(probe)


_PARTS = {"written": _write, "read": _read, "listed": _list, "removed": _remove}
_RIGHTS = {
    "written": "s3:PutObject (a disk: the right to write)",
    "read": "s3:GetObject",
    "listed": "s3:ListBucket",
    "removed": "s3:DeleteObject",
}


def _endpoint(uri: str) -> str | None:
    """URL of an S3 store; None of other kinds, and without credentials to ask with."""
    if not uri.startswith(("s3://", "s3a://")):
        return None
    filesystem, _ = resolve(uri)
    filesystem.connect()
    return str(filesystem.s3.meta.endpoint_url)


def _clock(endpoint: str) -> Finding | None:
    """How far this machine's clock is from the store's, by the Date of any answer."""
    shown = without_secrets(endpoint)
    before = time.time()
    try:
        answer = requests.head(endpoint, timeout=_SECONDS, allow_redirects=False)
    except requests.RequestException as error:
        return Finding(
            FAULT,
            f"nobody answers at {shown}: {one_line(error)}; see AWS_ENDPOINT_URL, the network and "
            "its proxy",
        )
    here = (before + time.time()) / 2
    try:
        there = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (KeyError, ValueError):
        return None
    return judge_skew(here - there, shown)


def judge_skew(skew: float, store: str) -> Finding:
    """Of the seconds that this machine's clock is ahead of a store's."""
    # The header has whole seconds.
    off = max(0.0, abs(skew) - 1)
    text = f"this machine's clock is {off:.0f} s {'ahead of' if skew > 0 else 'behind'} {store}'s"
    if off > _SKEW_FAULT:
        return Finding(
            FAULT, f"{text}: it refuses signatures that are 15 min off; set the clock (chrony, NTP)"
        )
    if off > _SKEW_WARNING:
        return Finding(WARNING, f"{text}: times of machines cannot be compared; set the clock")
    return Finding(OK, f"the clocks here and of {store} agree")
