"""YAML of strangers: the one reader and writer of the product.

Values are those of YAML 1.2's core schema (https://yaml.org/spec/1.2.2/#103-core-schema), not of
1.1, which PyYAML reads by itself: 010 is ten and not eight, 1:30 is text and not ninety, 1e-3 is a
number, and yes, no, on and off are text. A key that stands twice in a mapping is refused: readers
of 1.1 keep the last one without a word.
"""

import re
import reprlib
from typing import Any, ClassVar

import yaml

# Aliases of aliases are a billion values in 400 bytes, or one that holds itself.
_MOST_VALUES = 100_000
YAML_LENGTH = 1_000_000
"""Characters of a YAML text: to read so many takes seconds."""
# Python refuses to write longer ones out; a setting needs no more.
_MOST_BITS = 64
_MOST_DIGITS = 100
_TOO_MANY = f"more than {_MOST_VALUES:,} values, aliases followed"
_TOO_LARGE = f"a number of more than {_MOST_BITS} bits"

_Pair = tuple[yaml.Node, yaml.Node]
_TAG = "tag:yaml.org,2002:"
_MERGE = _TAG + "merge"
_NULL = re.compile(r"null|Null|NULL|~|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
# Tag, what is of it, and the first characters that it may have. The first that fits decides.
_CORE = (
    ("null", _NULL, ["~", "n", "N", ""]),
    ("bool", re.compile(f"{_TRUE.pattern}|{_FALSE.pattern}"), list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
)

_SHORT = reprlib.Repr()
_SHORT.maxlevel = 2
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def parse_yaml(text: str | bytes) -> Any:
    """The plain values of a text.

    Raises:
        ValueError: it is no YAML, a key stands twice, it is nested too deeply, is longer than a
            million characters, or holds more than 100 000 values; one line.
    """
    if len(text) > YAML_LENGTH:
        raise ValueError(f"longer than {YAML_LENGTH:,} characters")
    try:
        # The loader makes the plain values of the core schema and nothing else.
        value = yaml.load(text, Loader=_Loader)  # nosec B506
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check_size(value)
    return value


def dump_yaml(value: Any) -> str:
    """Plain values as YAML that readers of 1.1 and of 1.2 understand alike, keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False)


def shortened(value: Any) -> str:
    """A value as a person would write it, cut to what fits into an error of one line."""
    words = {None: "null", True: "true", False: "false"}
    return words[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)


class _Loader(yaml.SafeLoader):
    """The core schema of YAML 1.2, and `<<` to merge mappings."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - PyYAML's own name

    def __init__(self, stream: str | bytes) -> None:
        super().__init__(stream)
        self._finished: set[yaml.Node] = set()
        self._merged = 0

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping whose keys differ, with what `<<` brings along."""
        node = super().compose_mapping_node(anchor)
        pairs: dict[Any, _Pair] = {}
        for pair in node.value:
            key = self._key(pair[0])
            if key in pairs:
                first, again = (p.start_mark.line + 1 for p in (pairs[key][0], pair[0]))
                name = "'<<'" if key == _MERGE else shortened(key)
                raise ValueError(f"the key {name} stands twice, on lines {first} and {again}")
            pairs[key] = pair
        # PyYAML 6.0.4, left to merge by itself, takes a wrong value where a mapping that merges
        # another is merged in its turn.
        if merge := pairs.pop(_MERGE, None):
            pairs = self._sources(merge[1]) | pairs
        node.value = list(pairs.values())
        self._finished.add(node)
        return node

    def _key(self, node: yaml.Node) -> Any:
        # What is no scalar is refused where the mapping is made.
        plain = isinstance(node, yaml.ScalarNode) and node.tag != _MERGE
        return self.construct_object(node, deep=True) if plain else node.tag

    def _sources(self, value: yaml.Node) -> dict[Any, _Pair]:
        pairs: dict[Any, _Pair] = {}
        for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
            if source not in self._finished:
                line = value.start_mark.line + 1
                raise ValueError(f"line {line}: << takes mappings, and none that it stands in")
            self._merged += len(source.value)
            if self._merged > _MOST_VALUES:
                raise ValueError(_TOO_MANY)
            # Of several mappings the first decides.
            pairs = {self._key(pair[0]): pair for pair in source.value} | pairs
        return pairs

    def construct_null(self, node: yaml.ScalarNode) -> None:
        self._text(node, _NULL)

    def construct_truth(self, node: yaml.ScalarNode) -> bool:
        return bool(_TRUE.fullmatch(self._text(node, _CORE[1][1])))

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        text = self._text(node, _INTEGER)
        if len(text) > _MOST_DIGITS:
            raise ValueError(_TOO_LARGE)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return float(self._text(node, _FLOAT).lower().replace(".inf", "inf").replace(".nan", "nan"))

    def _text(self, node: yaml.ScalarNode, pattern: re.Pattern[str]) -> str:
        """The text of a scalar, whose tag may have been written out over anything."""
        text = str(self.construct_scalar(node))
        if not pattern.fullmatch(text):
            kind = node.tag.removeprefix(_TAG)
            raise ValueError(f"line {node.start_mark.line + 1}: {shortened(text)} is no {kind}")
        return text

    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        _TAG + "null": construct_null,
        _TAG + "bool": construct_truth,
        _TAG + "int": construct_integer,
        _TAG + "float": construct_number,
        _TAG + "str": yaml.SafeLoader.construct_yaml_str,
        _TAG + "seq": yaml.SafeLoader.construct_yaml_seq,
        _TAG + "map": yaml.SafeLoader.construct_yaml_map,
        # Where it is no key.
        _MERGE: yaml.SafeLoader.construct_yaml_str,
        # Any other tag.
        None: yaml.SafeLoader.construct_undefined,
    }


class _Dumper(yaml.SafeDumper):
    """Quotes text that either version of YAML would take for something else."""


for _name, _pattern, _first in _CORE:
    _whole = re.compile(rf"(?:{_pattern.pattern})\Z")
    _Loader.add_implicit_resolver(_TAG + _name, _whole, _first)
    _Dumper.add_implicit_resolver(_TAG + _name, _whole, _first)
_Loader.add_implicit_resolver(_MERGE, re.compile(r"<<\Z"), ["<"])


def _check_size(value: Any) -> None:
    waiting, seen = [value], 0
    while waiting:
        value = waiting.pop()
        seen += 1
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise ValueError(_TOO_LARGE)
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
        if seen + len(waiting) > _MOST_VALUES:
            raise ValueError(_TOO_MANY)
