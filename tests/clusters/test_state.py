"""The private folder of the local cluster, and whose processes it names."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from terrafm.clusters import state
from terrafm.clusters.local import down, up
from terrafm.errors import UsageError


@pytest.fixture(autouse=True)
def own_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("TERRAFM_CLUSTER_DIR", str(tmp_path / "cluster"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def sleeper():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    yield process
    process.kill()
    process.wait()


def record(tmp_path, pid, start):
    folder = state.make_folder()
    state.make_token(folder / "token")
    cluster = state.LocalCluster(
        "127.0.0.1:1", "http://127.0.0.1:2", str(folder / "token"), state.make_scratch(),
        [[pid, start]],
    )  # fmt: skip
    state.write(cluster)
    return cluster


def test_folder_and_files_are_private(tmp_path):
    old = os.umask(0)
    try:
        cluster = record(tmp_path, 1, 0.0)
    finally:
        os.umask(old)
    modes = {
        path: stat.S_IMODE(os.stat(path).st_mode)
        for path in (state.folder(), cluster.token_path, cluster.scratch)
    }
    assert modes == {state.folder(): 0o700, cluster.token_path: 0o600, cluster.scratch: 0o700}
    record_file = state.folder() / "cluster.json"
    assert stat.S_IMODE(record_file.stat().st_mode) == 0o600
    token = Path(cluster.token_path).read_text()
    assert len(token) == 64
    assert token not in record_file.read_text()
    state.forget(cluster)
    assert not os.path.exists(cluster.scratch)
    assert state.read() is None


def test_another_process_of_the_same_number_is_left_alone(tmp_path, sleeper):
    start = psutil.Process(sleeper.pid).create_time()
    cluster = record(tmp_path, sleeper.pid, start - 100)
    assert cluster.keeper is None
    assert down() == 0
    assert sleeper.poll() is None
    assert state.read() is None


def test_its_own_process_is_ended(tmp_path, sleeper):
    record(tmp_path, sleeper.pid, psutil.Process(sleeper.pid).create_time())
    assert down() == 1
    assert not psutil.pid_exists(sleeper.pid)


def test_a_second_up_is_refused(refused, tmp_path, sleeper):
    record(tmp_path, sleeper.pid, psutil.Process(sleeper.pid).create_time())
    line = refused("cluster", "up", "--local")
    assert "runs already, at http://127.0.0.1:2: terrafm cluster down" in line
    assert sleeper.poll() is None


def test_forget_removes_nothing_but_what_was_made(tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    cluster = record(tmp_path, 1, 0.0)
    os.rmdir(cluster.scratch)
    state.forget(state.LocalCluster("", "", cluster.token_path, str(precious), []))
    inside = tempfile.mkdtemp(prefix="other-")
    state.forget(state.LocalCluster("", "", cluster.token_path, inside, []))
    assert precious.is_dir()
    os.rmdir(inside)


@pytest.mark.parametrize("verb", ["status", "down"])
def test_no_cluster(refused, verb):
    assert "no local cluster runs" in refused("cluster", verb)


def test_up_elsewhere_than_here(refused):
    assert "--local" in refused("cluster", "up")


@pytest.mark.parametrize(("workers", "cpus"), [(0, 2), (2, 0)])
def test_no_cluster_at_all(workers, cpus):
    with pytest.raises(UsageError, match="at least one worker"):
        up(workers, cpus)


def test_a_damaged_record(refused):
    (state.make_folder() / "cluster.json").write_text("{")
    assert "cluster.json is not readable" in refused("cluster", "status")
