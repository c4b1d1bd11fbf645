"""The table of limits in docs/security.md has the values of the code, and all of them."""

import re
from pathlib import Path

import pytest

from terrafm.config import yaml_text
from terrafm.data.shards.manifest import LARGEST_TILE
from terrafm.models import weights
from terrafm.storage import limits

ROOT = Path(__file__).parents[2]
UNITS = {"MiB": 1 << 20, "GiB": 1 << 30, "million": 10**6, "pixels": 1, "": 1, "characters": 1}


def table():
    page = (ROOT / "docs" / "security.md").read_text().partition("### Limits")[2]
    lines = [line for line in page.split("\n\n## ")[0].splitlines() if line.startswith("| ")]
    return [[part.strip() for part in line.strip("|").split("|")] for line in lines[1:]]


def numbers():
    """Every number of the table's first two columns."""
    found = set()
    for what, value, *_ in table():
        for number, unit in re.findall(r"(\d[\d ]*\d|\d+) ?(MiB|GiB|million|)", f"{what} {value}"):
            found.add(int(number.replace(" ", "")) * UNITS[unit])
    return found


@pytest.mark.parametrize("name", [name for name in vars(limits) if name.isupper()])
def test_every_limit_of_the_code_is_in_the_table(name):
    assert getattr(limits, name) in numbers()


def test_those_that_stand_beside_what_they_limit_are_as_well():
    beside = {yaml_text.YAML_LENGTH, yaml_text._MOST_VALUES, LARGEST_TILE, weights._MOST_NAMES}
    assert beside <= numbers()


def test_the_files_of_the_table_are_there():
    for _, _, where, _ in table():
        for file in re.findall(r"`(.*?)`", where):
            assert (ROOT / file).is_file(), file
