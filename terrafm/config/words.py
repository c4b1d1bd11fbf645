"""What the configuration's keys are and take, in the words of a user and never of pydantic's."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from terrafm.config.yaml_text import shortened

_COMPOSED = re.compile("mapping|list of 2")

Schema = Mapping[str, Any]
"""JSON schema of one key."""

# Faults of one configuration that are told in one line.
_TOLD = 8


def type_name(schema: Schema) -> str:
    """The kind of value alone, such as "integer | none"."""
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(type_name(option) for option in schema["anyOf"])
    return {"array": "list", "null": "none", "object": "mapping"}.get(
        schema["type"], str(schema["type"])
    )


def takes(schema: Schema) -> str:
    """The kind of value with its bounds, such as "none or an integer from 1 to 100"."""
    if "enum" in schema:
        return _either([str(value) for value in schema["enum"]])
    if "anyOf" in schema:
        # "none or a list, each an integer": the other way round none would be in the list.
        options = sorted(schema["anyOf"], key=lambda option: option.get("type") != "null")
        return _either([takes(option) for option in options])
    match schema["type"]:
        case "integer":
            return f"an integer {_interval(schema)}"
        case "number":
            return f"a number {_interval(schema)}"
        case "array" if "prefixItems" in schema:
            items = [takes(item) for item in schema["prefixItems"]]
            each = f"each {items[0]}" if len(set(items)) == 1 else ", ".join(items)
            return f"a list of {len(items)}, {each}"
        case "array":
            kind = takes(schema["items"])
            some = "a list of one or more" if schema.get("minItems") else "a list"
            return f"{some}, each {kind}"
        case kind:
            words = {"boolean": "true or false", "string": "text", "null": "none"}
            return words.get(kind, "a mapping")


def takes_none(schema: Schema) -> bool:
    """Whether nothing may stand there."""
    return any(option.get("type") == "null" for option in schema.get("anyOf", ()))


def explain(error: ValidationError, tree: Mapping[str, Any], schemas: Mapping[str, Schema]) -> str:
    """One line: each wrong key as the user wrote it, what it takes, what was given.

    Args:
        error: of the whole tree.
        tree: section -> key -> value that was validated.
        schemas: dotted key -> what it takes.
    """
    parts: dict[str, str] = {}
    for fault in error.errors():
        # What follows is inside of the value, or names an option of the library's own.
        where = ".".join(str(part) for part in fault["loc"][:2]).rstrip(".")
        message = str(fault["msg"]).removeprefix("Value error, ")
        if len(fault["loc"]) < 2 and fault["type"] == "value_error":
            # What holds between keys names them itself.
            parts[where] = message
        elif where not in schemas:
            sections = {key.partition(".")[0]: key for key in schemas}
            known = list(schemas) if "." in where else [*sections, *schemas]
            parts[where] = f"unknown configuration key {printed(where)}{nearest(where, known)}"
        else:
            section, _, key = where.partition(".")
            given = shortened(tree[section][key])
            if fault["type"] == "value_error":
                parts[where] = f"configuration key {where} {message}, not {given}"
            else:
                says = _says(schemas[where])
                parts.setdefault(where, f"configuration key {where} {says}, not {given}")
    told = list(parts.values())
    more = f"; and {len(told) - _TOLD} more" if len(told) > _TOLD else ""
    return "; ".join(told[:_TOLD]) + more


def printed(key: str) -> str:
    """A key as it stands in a line, whatever characters it has."""
    return key if key.isprintable() else repr(key)


def nearest(word: str, candidates: Sequence[str]) -> str:
    """A hint at the candidate that is spelled nearly like a word; empty where none is."""
    by_name = {c.rpartition(".")[2]: c for c in candidates}
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    near = near or [
        by_name[n] for n in difflib.get_close_matches(word.rpartition(".")[2], by_name, n=1)
    ]
    return f" (did you mean {near[0]}?)" if near else ""


def _says(schema: Schema) -> str:
    words = f"takes {takes(schema)}"
    # What a mapping or a pair is made of.
    return f"{words} ({schema['description']})" if _COMPOSED.search(words) else words


def _interval(schema: Schema) -> str:
    open_low = "exclusiveMinimum" in schema
    low = _plain(schema["exclusiveMinimum" if open_low else "minimum"])
    open_high = "exclusiveMaximum" in schema
    high = ("below " if open_high else "") + _plain(
        schema["exclusiveMaximum" if open_high else "maximum"]
    )
    ends = f"above {low}, up to {high}" if open_low else f"from {low} to {high}"
    return f"{ends}, a multiple of {schema['multipleOf']}" if "multipleOf" in schema else ends


def _plain(number: float) -> str:
    """1e9 and not 1000000000, where that is the same."""
    short = f"{number:g}".replace("e+0", "e").replace("e+", "e").replace("e-0", "e-")
    return short if float(short) == number else str(number)


def _either(options: Sequence[str]) -> str:
    return " or ".join([", ".join(options[:-1]), options[-1]] if len(options) > 1 else options)
