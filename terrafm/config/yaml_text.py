"""YAML of strangers: plain values of a size that can be walked through, and said in a line."""

import reprlib
from typing import Any

import yaml

# Aliases of aliases are a billion values in 400 bytes, or one that holds itself.
_MOST_VALUES = 100_000
# Python refuses to write longer ones out; a setting needs no more.
_MOST_BITS = 64

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a text.

    Raises:
        ValueError: it is no YAML, nested too deeply, or more than 100 000 values; one line.
    """
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_size(value)
    return value


def shortened(value: Any) -> str:
    """The `repr` of a value, cut to what fits into an error of one line."""
    return _SHORT.repr(value)


def _check_size(value: Any) -> None:
    waiting, seen = [value], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise ValueError("a number of more than 64 bits")
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple | set):
            waiting += value
        if seen + len(waiting) > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, aliases followed")
