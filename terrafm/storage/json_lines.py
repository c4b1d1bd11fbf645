"""JSON as others can read it, and files of JSON lines that are only ever written whole."""

import json
import math
from typing import Any

from terrafm.errors import TerraFMError
from terrafm.storage.files import exists, read_bytes


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


def read_json_lines(uri: str, remedy: str) -> list[dict[str, Any]]:
    """All lines of a file, empty where there is none.

    Args:
        uri: of the file.
        remedy: what to do where it is damaged, for the error.

    Raises:
        TerraFMError: it is damaged.
    """
    if not exists(uri):
        return []
    try:
        return [json.loads(line) for line in read_bytes(uri).decode().splitlines()]
    except ValueError:
        raise TerraFMError(f"{uri} is not readable: {remedy}") from None
