"""JSON as others can read it, and files of JSON lines: read, written whole, grown line by line.

A writer that is killed, or whose disk is full, leaves the start of a line. Whoever adds the next
one ends it first, so that it swallows none; whoever reads passes over it.
"""

import json
import logging
import math
import os
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage.files import exists, is_local, read_bytes, resolve, write_bytes
from terrafm.storage.limits import JSON_CONTAINERS, JSON_VALUES, LINES_BYTES
from terrafm.storage.local import check_replaceable

logger = logging.getLogger(__name__)

# Stores take no appends: what two writers of this process add must not replace each other.
_store_lock = threading.Lock()


def to_json(value: Any, **options: Any) -> str:
    """A value as JSON; numbers that are not finite, which JSON has not, become null.

    Args:
        value: of plain types.
        options: of `json.dumps`.
    """
    try:
        return json.dumps(value, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_json(text: bytes) -> None:
    """Refuses a JSON text that would take far more memory than its length lets expect.

    Raises:
        ValueError: it has more than 2 million objects and arrays, or 16 million values.
    """
    # Marks inside of texts are counted as well: of those there are far fewer.
    containers = text.count(b"[") + text.count(b"{")
    if containers > JSON_CONTAINERS or containers + text.count(b",") > JSON_VALUES:
        raise ValueError(
            f"it has more than {JSON_CONTAINERS:,} objects and arrays or {JSON_VALUES:,} values"
        )


def parse_json(content: str | bytes) -> Any:
    """The value of a JSON text that others wrote.

    Raises:
        ValueError: it is no JSON, is nested too deeply, or has too many values.
    """
    check_json(content.encode() if isinstance(content, str) else content)
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(uri: str, remedy: str) -> dict[str, Any] | None:
    """The object in a file; None where there is no file.

    Args:
        uri: of the file.
        remedy: what to do where it is damaged, for the error.

    Raises:
        TerraFMError: a crash has left it empty or cut short, or it holds something else.
    """
    try:
        document = parse_json(read_bytes(uri))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise TerraFMError(f"{uri} is not readable: {remedy}")
    return document


def read_json_lines(uri: str, remedy: str | None = None) -> list[dict[str, Any]]:
    """All lines of a file, empty where there is none.

    Args:
        uri: of the file.
        remedy: what to do where a line is damaged, for the error. By default such lines are
            passed over: they were torn.

    Raises:
        TerraFMError: a line is damaged, and a remedy was given.
    """
    if not exists(uri):
        return []
    lines = []
    content = read_bytes(uri, LINES_BYTES)
    try:
        check_json(content)
    except ValueError as error:
        raise UsageError(f"cannot read {uri}: {error}") from None
    for line in content.split(b"\n"):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            lines.append(record)
        elif remedy is not None:
            raise TerraFMError(f"{uri} is not readable: {remedy}")
        else:
            logger.debug("passed over a torn line of %s", uri)
    return lines


def write_json_lines(uri: str, records: Iterable[Mapping[str, Any]]) -> None:
    """Replaces a file, whole or not at all.

    Raises:
        StoreRefusedError, StoreFailedError: disk or store do not take it.
    """
    write_bytes(uri, "".join(to_json(record) + "\n" for record in records).encode())


def append_json_line(uri: str, record: Mapping[str, Any]) -> None:
    """Adds a line to a file, which is made where there is none; ends a torn one before it.

    Raises:
        OSError: disk or store do not take it.
    """
    line = (to_json(record) + "\n").encode()
    if is_local(uri):
        path = resolve(uri)[1]
        check_replaceable(path)
        with open(path, "ab+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - 1, 0))
            file.write(_end_of(file.read()) + line)
        return
    with _store_lock:
        before = read_bytes(uri, LINES_BYTES) if exists(uri) else b""
        write_bytes(uri, before + _end_of(before) + line)


def _end_of(content: bytes) -> bytes:
    """What ends the last line of a content, where nothing does."""
    return b"\n" if content and not content.endswith(b"\n") else b""
