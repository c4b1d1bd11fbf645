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
from terrafm.storage.addresses import without_secrets
from terrafm.storage.files import exists, is_local, read_bytes, resolve, write_bytes
from terrafm.storage.limits import LINES_BYTES
from terrafm.storage.local import check_replaceable
from terrafm.storage.records import check_json, load_record, parse_json, validated

logger = logging.getLogger(__name__)

# Stores take no appends: what two writers of this process add must not replace each other.
_store_lock = threading.Lock()


def to_json(value: Any, **options: Any) -> str:
    """A value as JSON, without secrets in addresses; numbers that are not finite become null.

    Args:
        value: of plain types.
        options: of `json.dumps`.
    """
    try:
        text = json.dumps(value, allow_nan=False, **options)
    except ValueError:
        # JSON has no NaN and no infinities.
        text = json.dumps(_finite(value), allow_nan=False, **options)
    return without_secrets(text)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(uri: str, remedy: str, kind: type[Any] = dict[str, Any]) -> dict[str, Any] | None:
    """The object in a file; None where there is no file.

    Args:
        uri: of the file.
        remedy: what to do where it is damaged, for the error.
        kind: schema that the object has to fit, a `TypedDict`; it is returned as it stands.

    Raises:
        TerraFMError: a crash has left it empty or cut short, or it holds something else.
    """
    found: dict[str, Any] | None = load_record(uri, kind, remedy)
    return found


def read_json_lines(
    uri: str, remedy: str | None = None, kind: type[Any] = dict[str, Any]
) -> list[dict[str, Any]]:
    """All lines of a file, empty where there is none.

    Args:
        uri: of the file.
        remedy: what to do where a line is damaged, for the error. By default such lines are
            passed over: they were torn.
        kind: schema that each line has to fit, a `TypedDict`; a line that does not is damaged.

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
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            lines.append(validated(parse_json(line), kind))
        except ValueError as fault:
            if remedy is not None:
                where = f"{uri} is not readable: line {number}: {fault}"
                raise TerraFMError(f"{where}: {remedy}") from None
            logger.debug("passed over a torn line of %s: %s", uri, fault)
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
