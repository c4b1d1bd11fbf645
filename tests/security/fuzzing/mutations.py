"""Mutations of bytes, of JSON and YAML by their structure, and of Parquet tables by their columns.

All randomness comes from the generator that is handed in: a case is a function of its number.
"""

import json
import random

import pyarrow as pa

# Written as text into the document: Python's own encoder refuses them.
_DEEP, _LONG = "@deep@", "@long@"
OUTSIDE = ("../outside.json", "../../outside.json", "/etc/hostname", "file:///etc/hostname")
ODD = (
    None, True, False, 0, -1, 1, 3, 2**31, 2**63, 2**64, -(2**63), 10**30, 0.5, 1e308, -0.0,
    float("nan"), float("inf"), "", "x", "0", "1e5", "nan", "a\0b", "a\nb", "\ud800", "\udcff",
    "\u202e", "x" * 10_000, *OUTSIDE, [], {}, [[]], [{}], {"": None}, [None], [1, "x"], {"x": []},
    "2026-13-45T99:99:99", "9999-12-31T23:59:59+00:00", "0001-01-01T00:00:00+14:00",
    _DEEP, _LONG,
)  # fmt: skip
_NUMBERS = (0, 1, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63)


def flip(content: bytes, rng: random.Random, other: bytes = b"") -> bytes:
    """Some bytes changed, cut, doubled, or taken from elsewhere."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        size = len(data)
        at = rng.randrange(size + 1)
        length = min(rng.choice((1, 2, 4, 8, 64, 1024)), size - at)
        kind = rng.randrange(8)
        if kind < 3 and at < size:
            data[at] ^= 1 << rng.randrange(8) if kind else rng.randrange(1, 256)
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            del data[at : at + length]
        elif kind == 5:
            source = other or content
            start = rng.randrange(len(source) + 1)
            data[at : at + rng.choice((0, length))] = source[start : start + max(length, 1)]
        elif kind == 6:
            data[at : at + length] = bytes(length)
        else:
            width = rng.choice((1, 2, 4, 8))
            number = rng.choice(_NUMBERS) % 256**width
            data[at : at + width] = number.to_bytes(width, rng.choice(("little", "big")))
    return bytes(data)


def places(value, path=()):
    """Paths to every value of a document, the document itself first."""
    yield path
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, item in inner:
        yield from places(item, (*path, key))


def change(value, rng: random.Random):
    """A copy of a document with one to three of its values replaced, dropped, swapped, renamed."""
    document = json.loads(json.dumps(value))
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        document = _change_once(document, rng)
    return document


def _change_once(document, rng):
    path = rng.choice(list(places(document)))
    if not path:
        return rng.choice(ODD) if rng.random() < 0.3 else document
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    key, kind = path[-1], rng.randrange(10)
    if kind < 5:
        holder[key] = rng.choice(ODD)
    elif kind == 5:
        del holder[key]
    elif kind == 6 and isinstance(holder, dict):
        holder[rng.choice(("", "x", "0", "-1", "1e3", "\ud800", "__class__", *OUTSIDE))] = (
            holder.pop(key)
        )
    elif kind == 7:
        holder[key] = [holder[key]] * rng.choice((0, 1, 2, 1000))
    elif kind == 8:
        other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
        holder[key], holder[other] = holder[other], holder[key]
    else:
        holder[key] = _near(holder[key], rng)
    return document


def _near(value, rng):
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return rng.choice((-value, value + 1, value * 1000, str(value), float(value), value + 0.5))
    if isinstance(value, str):
        return rng.choice(
            (value + "x", value[:-1], value.upper(), value * 50, [value], f" {value}")
        )
    return {"x": value} if isinstance(value, list) else list(value)


def json_text(document, rng: random.Random) -> bytes:
    """A document as bytes, sometimes not quite as JSON is written."""
    depth = rng.choice((20, 90, 150, 400, 900, 5_000, 100_000))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = opening * depth + "1" + closing * depth
    text = json.dumps(document).replace(f'"{_DEEP}"', deep)
    content = text.replace(f'"{_LONG}"', "1" * 5_000).encode()
    kind = rng.randrange(25)
    if kind == 0:
        return flip(content, rng)
    if kind == 1:
        return rng.choice(
            (b"\xef\xbb\xbf" + content, content.decode().encode("utf-16"), content + b"}", b"")
        )
    if kind == 2 and content.startswith(b"{"):
        return b'{"format_version": 1, "step": 3, "x": 1, ' + content[1:]
    return content


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """A JSON file by its structure mostly, else by its bytes."""
    if rng.random() < 0.2:
        return flip(content, rng)
    return json_text(change(json.loads(content), rng), rng)


def mutate_lines(content: bytes, rng: random.Random) -> bytes:
    """A file of JSON lines, one of them mutated."""
    lines = content.split(b"\n")
    at = rng.randrange(len(lines) - 1)
    lines[at] = mutate_json(lines[at], rng)
    return b"\n".join(lines)


YAML_PIECES = (
    "&a [*a]", "*nowhere", "<<: *a", "? [x]", "!!python/object:os.system x", "!!binary x",
    "!!float x", "!!int 1e3", "0x" + "f" * 300, "1" * 5_000, ".nan", "-.inf", "~", "{}", "[]",
    "- x", "key: [", "'", '"\\ud800"', '"\\x00"', "{a: {a: {a: 1}}}", "[" * 300, "{a: " * 5_000,
    "&a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]", "\t", "--- x", "%YAML 3.0", "#",
    "base: demo", "base: ../outside.json", "base: /etc/hostname", "9999-12-31", "\u202e",
)  # fmt: skip


def mutate_yaml(content: bytes, rng: random.Random) -> bytes:
    """A YAML file: a line dropped, doubled, indented, or its value replaced."""
    if rng.random() < 0.25:
        return flip(content, rng)
    lines = content.decode().split("\n")
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(lines))
        kind = rng.randrange(5)
        if kind == 0:
            del lines[at]
            lines = lines or [""]
        elif kind == 1:
            lines.insert(at, lines[rng.randrange(len(lines))])
        elif kind == 2:
            lines[at] = " " * rng.randrange(4) + lines[at].lstrip()
        else:
            odd = rng.choice((json.dumps(rng.choice(ODD)), rng.choice(YAML_PIECES)))
            key, colon, _ = lines[at].partition(":")
            lines[at] = f"{key}{colon} {odd}" if colon and kind == 3 else odd
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def mutate_table(table: pa.Table, rng: random.Random) -> pa.Table:
    """A table with a column of another type, with nulls or odd values, dropped or doubled."""
    for _ in range(rng.choice((1, 1, 2))):
        if table.num_columns == 0:
            return table
        at = rng.randrange(table.num_columns)
        kind = rng.randrange(10)
        if kind == 0:
            table = table.remove_column(at)
        elif kind == 1:
            names = [*table.column_names]
            names[at] = rng.choice(("", "x", *table.column_names))
            table = table.rename_columns(names)
        elif kind == 2:
            table = rng.choice((table.slice(1), table.slice(0, 0), pa.concat_tables([table] * 3)))
        elif kind == 3:
            order = [rng.randrange(max(table.num_rows, 1)) for _ in range(table.num_rows)]
            table = table.take(pa.array(order, pa.int64()))
        else:
            table = _change_column(table, at, rng)
    return table


def _change_column(table, at, rng):
    column = table.column(at)
    values = column.to_pylist()
    if values:
        row = rng.randrange(len(values))
        values[row] = _odd_value(values[row], rng)
    for kind in rng.sample(
        (column.type, pa.string(), pa.int64(), pa.float64(), pa.binary(), None), 6
    ):
        try:
            array = pa.array(values, kind)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
            continue
        if rng.random() < 0.15:
            array = pa.array([None] * len(values), array.type)
        return table.set_column(at, pa.field(table.column_names[at], array.type), array)
    return table


def _odd_value(value, rng):
    if rng.random() < 0.2:
        return None
    if isinstance(value, str):
        if value[:1] in ("{", "[") and rng.random() < 0.8:
            return mutate_json(value.encode(), rng).decode("utf-8", "replace")
        return rng.choice(("", "x", "a\0b", "\u202e", value * 2, *OUTSIDE))
    if isinstance(value, bytes):
        return flip(value, rng)
    if isinstance(value, bool) or value is None:
        return rng.choice((None, 1, "x"))
    if isinstance(value, int):
        return rng.choice(
            (-1, 0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, value + 1, -value)
        )
    if isinstance(value, float):
        return rng.choice((float("nan"), float("inf"), 1e308, -1e308, 91.0, 181.0, 1e-320, 0.0))
    if isinstance(value, list):
        return rng.choice(([], value[:-1], value * 2, [_odd_value(v, rng) for v in value[:3]]))
    if isinstance(value, dict):
        return {key: _odd_value(v, rng) for key, v in value.items()}
    return rng.choice((None, 0, "x"))
