"""Files of JSON lines that are only ever written whole."""

import json
from typing import Any

from terrafm.errors import TerraFMError
from terrafm.storage.files import exists, read_bytes


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
