"""What a run records of the code that it runs from."""

import subprocess
from pathlib import Path

import pytest

import terrafm
from terrafm.clusters import versions
from terrafm.clusters.versions import own_versions, source_commit
from terrafm.train.driver.hardware import group_facts

ROOT = Path(terrafm.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def asked_anew():
    source_commit.cache_clear()
    yield
    source_commit.cache_clear()


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=b", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    assert source_commit().removesuffix("-dirty") == git(ROOT, "rev-parse", "HEAD")
    facts = group_facts({"CPU": 4.0, "node:127.0.0.1": 1.0}, 2, 3.0, 0)
    assert facts["commit"] == source_commit()
    assert facts["versions"].items() >= own_versions().items()
    assert facts["cluster"] == {"nodes": 1, "cpus": 4.0, "gpus": 0.0, "accelerators": []}


def test_changed_files_are_told_and_tags_are_not(tmp_path, monkeypatch):
    monkeypatch.setattr(versions, "_PACKAGE", tmp_path / "package")
    assert source_commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "one")
    head = git(tmp_path, "rev-parse", "HEAD")
    source_commit.cache_clear()
    assert source_commit() == head
    (tmp_path / "file").write_text("2")
    source_commit.cache_clear()
    assert source_commit() == f"{head}-dirty"
