"""Records from anyone: JSON held against a schema once, where it is read.

What a file may hold is stated as a type: a pydantic model, a dataclass or a `TypedDict`. What does
not fit is one line with file, field and what was expected there. Keys that a schema does not name
are passed over, unless the schema forbids them.
"""

import json
import math
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage.faults import one_line
from terrafm.storage.files import read_bytes
from terrafm.storage.limits import JSON_CONTAINERS, JSON_VALUES

DEEPEST = 64
"""Levels of nesting in a record; what TerraFM writes has a dozen."""
_LONGEST = 200
# Sums of squares are longer than 64; what is longer than this is no float either.
_MOST_BITS = 1000

Schema = TypeVar("Schema")


def _not_nan(value: float) -> float:
    if math.isnan(value):
        raise ValueError("must be a number, not NaN")
    return value


Count = Annotated[int, Field(strict=True, ge=0, lt=2**63)]
"""A whole number, 0 or more."""
ProcessNumber = Annotated[int, Field(ge=0, lt=2**31)]
"""The number of a process."""
Code = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
"""A whole number of 32 bits."""
Number = Annotated[float, Field(strict=True), AfterValidator(_not_nan)]
"""A number; infinities count."""
Finite = Annotated[float, Field(strict=True, allow_inf_nan=False)]
"""A number that is finite."""


open_keys = with_config(ConfigDict(extra="allow"))
"""Of a `TypedDict`: keys that it does not name stay."""


@open_keys
class StepLine(TypedDict):
    """A line on what was so after a number of steps."""

    step: Count


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
        ValueError: it is no JSON, nested deeper than `DEEPEST`, has too many values, or holds a
            number that no float is as large as; one line.
    """
    check_json(content.encode() if isinstance(content, str) else content)
    try:
        value = json.loads(content)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ValueError(one_line(error)) from None
    level = [value]
    for _ in range(DEEPEST):
        if any(type(one) is int and one.bit_length() > _MOST_BITS for one in level):
            raise ValueError(f"it holds a whole number of more than {_MOST_BITS} bits")
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return value
    raise _too_deep()


def validated(value: Any, kind: type[Schema]) -> Schema:
    """A value held against a schema, as the schema's type.

    Raises:
        ValueError: it does not fit; one line with the first field that does not, and what was
            expected there.
    """
    try:
        adapter: TypeAdapter[Schema] = _adapter(cast(Any, kind))
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(first_fault(error)) from None


def parse_record(
    content: str | bytes,
    kind: type[Schema],
    where: str,
    remedy: str = "",
    error: type[TerraFMError] = UsageError,
) -> Schema:
    """A record from its text.

    Args:
        content: JSON.
        kind: what it has to be.
        where: URI of its file, for the error.
        remedy: what to do where it is damaged, for the error.
        error: which one is raised.

    Raises:
        TerraFMError: `error`, where it is no JSON or does not fit.
    """
    try:
        return validated(parse_json(content), kind)
    except ValueError as fault:
        advice = f": {remedy}" if remedy else ""
        raise error(f"{where} is not readable: {fault}{advice}") from None


def load_record(
    uri: str, kind: type[Schema], remedy: str = "", error: type[TerraFMError] = TerraFMError
) -> Schema | None:
    """The record in a file, as `parse_record`; None where there is no file.

    Raises:
        TerraFMError: `error`, where it is no JSON or does not fit.
    """
    try:
        content = read_bytes(uri)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return parse_record(content, kind, uri, remedy, error)


def first_fault(error: ValidationError) -> str:
    """The first of pydantic's faults, as one line: field, and what was expected there."""
    # Without its input, which may be as large as the record.
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(shortened(str(part)) for part in fault["loc"])
    message = one_line(fault["msg"].removeprefix("Value error, "))[:_LONGEST]
    return f"{where}: {message}" if where else message


def shortened(text: str) -> str:
    """A name that a stranger gave, for a message: whole where it is printable and short."""
    shown = text if text.isprintable() else ascii(text)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."


def _too_deep() -> ValueError:
    return ValueError(f"it is nested deeper than {DEEPEST} levels")


def _inside(value: Any) -> Any:
    # JSON makes no other kinds; the abstract ones take ten times as long to tell.
    if type(value) is dict:
        return value.values()
    return value if type(value) is list else ()


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
