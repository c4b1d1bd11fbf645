"""Inputs that failed once: each folder of them says in its README what is right."""

import sys
from pathlib import Path

import pytest

# Tests are not a package.
sys.path.insert(0, str(Path(__file__).parent))

from stand_ins import dashboard, proxy  # noqa: F401


@pytest.fixture(scope="session")
def cases(shared_folder):
    """(name) -> folder of a case, such as "archives/04"; skips where the cases are not at hand."""

    def folder(name):
        found = shared_folder / "cases" / name
        if not found.is_dir():
            pytest.skip(f"no such case: {found} does not exist")
        return found

    return folder


@pytest.fixture
def training(cases):
    """A folder of ../shared/cases/training, or a skip: the tests hold what its README says."""
    return lambda number: cases(f"training/{number}")
