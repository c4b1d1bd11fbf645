"""The token is found as Ray finds it, and is never shown."""

import os
import subprocess
import sys

import pytest

from terrafm.clusters.token import find_token
from terrafm.errors import UsageError


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("RAY_AUTH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()


def test_none(tmp_path):
    assert find_token() is None


def test_the_variable_comes_before_the_named_file_and_that_before_the_default(
    monkeypatch, tmp_path
):
    (tmp_path / ".ray" / "auth_token").write_text("default\n")
    assert find_token().value == "default"
    (tmp_path / "named").write_text(" named \n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named"))
    assert find_token().value == "named"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    assert find_token().value == "said"
    assert find_token().headers == {"Authorization": "Bearer said"}


def test_ray_finds_the_same(monkeypatch, tmp_path):
    # In a process of its own: Ray keeps what it has found.
    read = (
        "from ray._raylet import AuthenticationTokenLoader as Loader;"
        "print(Loader.instance().get_raw_token(ignore_auth_mode=True))"
    )
    (tmp_path / "named").write_text(" named \n")
    for name, value in (("RAY_AUTH_TOKEN_PATH", str(tmp_path / "named")), ("RAY_AUTH_TOKEN", "b")):
        monkeypatch.setenv(name, value)
        done = subprocess.run(
            [sys.executable, "-c", read], capture_output=True, text=True, timeout=60
        )
        assert done.stdout.strip() == find_token().value


def test_turned_off(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "said")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token() is None


def test_it_is_not_shown(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "hush")
    assert "hush" not in repr(find_token())


@pytest.mark.parametrize("content", [None, "", b"\xff\xfe"])
def test_a_named_file_without_one(monkeypatch, tmp_path, content):
    path = tmp_path / "named"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    with pytest.raises(UsageError, match=r"named .*RAY_AUTH_TOKEN_PATH"):
        find_token()
