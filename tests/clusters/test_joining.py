"""A process joins a cluster with a token, or without one where the cluster has none."""

import os
import subprocess
import sys
from contextlib import contextmanager

import pytest

WORK = """
import ray
from terrafm.errors import UsageError
from terrafm.ray.runtime import ensure_ray
try:
    ensure_ray()
except UsageError as error:
    raise SystemExit(f"refused: {error}")
@ray.remote(num_cpus=0)
class Actor:
    def answer(self):
        return "answered"
print(ray.get(Actor.remote().answer.remote(), timeout=60))
"""


@contextmanager
def gcs(folder, environment):
    """A Ray node of its own, a process tree that ends with it; yields its address."""
    start = (
        "import ray, sys; node = ray.init(num_cpus=1, include_dashboard=False,"
        f"_temp_dir={str(folder)!r}); print(node.address_info['gcs_address'], flush=True);"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", start], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.DEVNULL, env=environment,
    ) as process:  # fmt: skip
        yield process.stdout.readline().strip()
        process.stdin.close()


@pytest.fixture(scope="module")
def clean():
    return {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Of somebody who has a token, for some cluster."""
    folder = tmp_path_factory.mktemp("home")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text("1" * 64)
    return folder


def joined(address, clean, home, **more):
    return subprocess.run(
        [sys.executable, "-c", WORK], capture_output=True, text=True, timeout=120,
        env={**clean, "HOME": str(home), "RAY_ADDRESS": address, **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def without_tokens(clean, tmp_path_factory):
    with gcs(tmp_path_factory.mktemp("o"), {**clean, "RAY_AUTH_MODE": "disabled"}) as address:
        yield address


@pytest.mark.slow
def test_a_token_that_lies_ready_is_not_used_where_none_is_asked(without_tokens, clean, home):
    done = joined(without_tokens, clean, home)
    assert done.stdout.strip() == "answered", done.stderr


@pytest.mark.slow
def test_a_token_that_must_be_used_where_none_is_asked_is_one_line(without_tokens, clean, home):
    done = joined(without_tokens, clean, home, RAY_AUTH_MODE="token")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"refused: the cluster at {without_tokens} was started without a token")


@pytest.mark.slow
def test_a_cluster_with_tokens_takes_the_right_one(clean, home, tmp_path_factory):
    with_token = {**clean, "HOME": str(home), "RAY_AUTH_MODE": "token"}
    nobody = tmp_path_factory.mktemp("nobody")
    with gcs(tmp_path_factory.mktemp("t"), with_token) as address:
        for more in ({}, {"RAY_AUTH_MODE": "token"}):
            done = joined(address, clean, home, **more)
            assert done.stdout.strip() == "answered", done.stderr
        assert "asks for a token" in joined(address, clean, nobody).stderr
        wrong = joined(address, clean, nobody, RAY_AUTH_TOKEN="2" * 64)
        assert wrong.stderr.startswith("refused: "), wrong.stderr
