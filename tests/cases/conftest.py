"""Inputs that failed once: each folder of them says in its README what is right."""

import pytest


@pytest.fixture(scope="session")
def cases(shared_folder):
    """(name) -> folder of a case, such as "archives/04"; skips where the cases are not at hand."""

    def folder(name):
        found = shared_folder / "cases" / name
        if not found.is_dir():
            pytest.skip(f"no such case: {found} does not exist")
        return found

    return folder
