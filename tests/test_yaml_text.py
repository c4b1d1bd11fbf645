"""YAML 1.2 as everybody writes it, and what no reader may do with it."""

import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from terrafm.config.yaml_text import dump_yaml, parse_yaml

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)
    | st.from_regex(r"[-+0-9oxeE.:_~]{1,6}", fullmatch=True)
    | st.sampled_from(["yes", "off", "null", "none", "~", "<<", "=", "1e3", ".inf", "2021-01-01"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", max_size=2), inner),
    max_leaves=6,
)  # fmt: skip

# Each mapping holds all that stands above it.
MERGES = "a0: &a0 {k0: 0}\n" + "".join(
    f"a{i}: &a{i} {{<<: *a{i - 1}, k{i}: 0}}\n" for i in range(1, 600)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10), ("-07", -7), ("+1", 1), ("0o17", 15), ("0x1F", 31), ("0b11", "0b11"),
        ("1:30", "1:30"), ("190:20:30.15", "190:20:30.15"), ("1_000", "1_000"),
        ("1e3", 1000.0), ("1e-3", 1e-3), ("1.", 1.0), (".5", 0.5), ("1E+2", 100.0),
        (".inf", math.inf), ("-.INF", -math.inf), ("inf", "inf"), ("nan", "nan"),
        ("true", True), ("FALSE", False), ("tRUE", "tRUE"),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("Off", "Off"), ("y", "y"),
        ("null", None), ("~", None), ("", None), ("none", "none"), ("None", "None"),
        ("2021-01-01", "2021-01-01"), ("2021-13-45", "2021-13-45"), ("12:30:45", "12:30:45"),
        ("'010'", "010"), ("!!str 010", "010"), ("!!int '010'", 10), ("!!float 5", 5.0),
        ("a: {<<: {x: 1, y: 2}, x: 3}", {"a": {"x": 3, "y": 2}}),
        ("a: &a {x: 1}\nb: {c: &c {<<: *a, x: 2}}\nd: {<<: *c}",
         {"a": {"x": 1}, "b": {"c": {"x": 2}}, "d": {"x": 2}}),
        ("a: &a {x: 1, y: 1}\nb: &b {x: 2}\nc: {<<: [*b, *a], z: 3}",
         {"a": {"x": 1, "y": 1}, "b": {"x": 2}, "c": {"x": 2, "y": 1, "z": 3}}),
        ("a: <<", {"a": "<<"}),
        ("{1: a, '1': b, 1.5: c}", {1: "a", "1": "b", 1.5: "c"}),
    ],
)  # fmt: skip
def test_scalars_mean_what_yaml_1_2_says(text, value):
    found = parse_yaml(text)
    assert found == value
    assert type(found) is type(value)


def test_not_a_number_is_a_number():
    assert math.isnan(parse_yaml(".nan"))


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "'a'", "1 and 3"),
        ("x:\n  arms:\n    a: {}\n    b: {}\n    a: {}\n", "'a'", "3 and 5"),
        ("{a: 1, 'a': 2}", "'a'", "1 and 1"),
        ("10: a\n010: b\n", "10", "1 and 2"),
        ("1: a\n1.0: b\n", "1.0", "1 and 2"),
        ("1: a\ntrue: b\n", "true", "1 and 2"),
        ("null: a\n~: b\n", "null", "1 and 2"),
        ("- {a: 1}\n- - {b: 1,\n     b: 1}\n", "'b'", "2 and 3"),
        ("<<: {a: 1}\n<<: {b: 1}\n", "'<<'", "1 and 2"),
        ("a: &x {y: 1, y: 2}\nb: *x\n", "'y'", "1 and 1"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_its_lines(text, key, lines):
    with pytest.raises(ValueError, match=f"the key {key} stands twice, on lines {lines}$"):
        parse_yaml(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("!!int foo", "'foo' is no int"),
        ("!!bool yes", "'yes' is no bool"),
        ("!!null 5", "'5' is no null"),
        ("!!float 1:30", "'1:30' is no float"),
        ("a: !!binary aGk=", "binary"),
        ("!!set {a}", "set"),
        ("!!timestamp 2021-01-01", "timestamp"),
        ("!!python/object/apply:os.getcwd []", "python"),
        ("!mine {a: 1}", "!mine"),
        ("{? [a] : 1}", "unhashable"),
        ("{? !!map x : 1}", "."),
        ("{<<: 5}", "line 1: << takes mappings"),
        ("a: {<<: [{x: 1}, 5]}", "<< takes mappings"),
        ("&a {<<: *a}", "none that it stands in"),
        ("a: &a {x: 1, b: {<<: *a}}", "none that it stands in"),
        (MERGES, "more than 100,000 values"),
        ("--- 1\n--- 2\n", "single document"),
        ("1" * 5000, "more than 64 bits"),
        ("0x" + "f" * 5000, "more than 64 bits"),
        ("a: [1", "expected"),
        ("a: \x00", "not allowed"),
        ("a: \tb: c", "."),
    ],
)
def test_what_is_none_is_one_line(text, words):
    with pytest.raises(ValueError, match=words) as error:
        parse_yaml(text)
    assert "\n" not in str(error.value)


@given(PLAIN)
def test_what_is_written_is_read_by_this_reader_and_by_those_of_1_1(value):
    text = dump_yaml(value)
    assert parse_yaml(text) == value
    assert yaml.safe_load(text) == value


@given(st.text("ab01.:_-+~!&*<>{}[]'\"?|,#% \n\t", max_size=30))
def test_any_text_is_values_or_one_line(text):
    told = ""
    try:
        parse_yaml(text)
    except ValueError as error:
        told = str(error)
    assert "\n" not in told
