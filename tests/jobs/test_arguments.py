"""A verb's arguments are checked here, and mean on the cluster what they mean here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from terrafm.cli import app
from terrafm.clusters.versions import VERSIONS_VARIABLE, differences, own_versions
from terrafm.errors import UsageError
from terrafm.jobs.arguments import read_command


def read(*words, folder=Path()):
    return read_command(get_command(app), list(words), folder)


def test_places_are_named_from_the_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = read(
        "pretrain", "--config=demo", "--data", "tiles", "--output", "s3://bucket/run",
        "--set", "train.steps=3", "--set", "train.seed=1", "--profile",
    )  # fmt: skip
    assert command.words == [
        "pretrain", "--config", "demo", "--data", f"{tmp_path}/tiles", "--output",
        "s3://bucket/run", "--profile", "--set", "train.steps=3", "--set", "train.seed=1",
    ]  # fmt: skip
    assert command.output == "s3://bucket/run"


def test_other_verbs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert read("evaluate", "knn", "--weights", "w", "--data", "d", "--json").words == [
        "evaluate", "knn", "--weights", f"{tmp_path}/w", "--data", f"{tmp_path}/d", "--json",
    ]  # fmt: skip
    ingest = read(
        "ingest", "--source", "synthetic", "--input", "synthetic:cells=9", "--output", "t"
    )
    assert ingest.words[3:] == ["--input", "synthetic:cells=9", "--output", f"{tmp_path}/t"]
    assert read("verify", "tiles").words == ["verify", f"{tmp_path}/tiles"]
    sweep = read("sweep", "--config", "sweep_demo", "--data", "d", "--output", "o")
    assert (sweep.verb, sweep.output) == ("sweep", f"{tmp_path}/o")
    export = read("export", "--checkpoint", "c", "--output", "o", "--format", "released")
    assert export.words[-2:] == ["--format", "released"]
    embed = read(
        "embed", "--weights", "w", "--data", "d", "--output", "o", "--modality", "s1", "--dense",
        "--device", "cuda",
    )  # fmt: skip
    assert embed.words == [
        "embed", "--weights", f"{tmp_path}/w", "--data", f"{tmp_path}/d", "--output",
        f"{tmp_path}/o", "--modality", "s1", "--dense", "--device", "cuda",
    ]  # fmt: skip
    assert embed.output == f"{tmp_path}/o"


def test_a_configuration_file_keeps_its_name_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    for path in ("in/my.yaml", "out.yaml"):
        (tmp_path / path).write_text("base: demo\n")
    rest = ("--data", "d", "--output", "o")
    command = read("pretrain", "--config", "in/my.yaml", *rest, folder=Path("in"))
    assert command.words[:3] == ["pretrain", "--config", "my.yaml"]
    with pytest.raises(UsageError, match=r"out\.yaml lies outside of in"):
        read("pretrain", "--config", "out.yaml", *rest, folder=Path("in"))


@pytest.mark.parametrize("words", [["demo"], ["submit", "pretrain"], ["cluster", "down"], ["x"]])
def test_verbs_that_are_not_for_a_cluster(words):
    with pytest.raises(UsageError, match=r"cannot submit .*evaluate, .*ingest, .*pretrain.*sweep"):
        read(*words)


def test_wrong_keys_are_found_before_anything_is_sent(refused):
    line = refused(
        "submit", "pretrain", "--config", "demo", "--data", "d", "--output", "o",
        "--set", "train.stepz=3", "--address", "http://127.0.0.1:1",
    )  # fmt: skip
    assert "train.stepz" in line


def test_unknown_options_are_the_verbs_own_fault(run):
    code, _, printed = run("submit", "pretrain", "--colour", "red", "--address", "127.0.0.1:1")
    assert code == 2
    assert "--colour" in printed


def test_nobody_answers(run, refused):
    words = ("--config", "demo", "--data", "d", "--output", "o")
    code, _, errors = run("submit", "pretrain", *words, "--address", "http://127.0.0.1:1")
    # What it does is said beside the job's output: Ray takes seconds to load.
    doing, line = errors.splitlines()
    assert (code, doing) == (2, "terrafm: asking the cluster at http://127.0.0.1:1")
    assert "cannot reach a cluster at http://127.0.0.1:1" in line
    assert "no address of a dashboard" in refused("jobs", "list", "--address", "ray://head:1")


def test_versions():
    own = own_versions()
    assert differences(own, own) is None
    assert differences(own, own | {"more": "1"}) is None
    told = differences(own, own | {"ray": "2.59.0", "python": "3.10"})
    assert "python 3.10 instead of" in told
    assert f"ray 2.59.0 instead of {own['ray']}" in told
    assert "torch" not in told


def test_a_job_with_other_versions_ends_before_it_begins():
    done = subprocess.run(
        [sys.executable, "-m", "ray_jobs", "pretrain", "--help"],
        env={**os.environ,
             VERSIONS_VARIABLE: json.dumps(own_versions() | {"torch": "1.0.0"})},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "instead of 1.0.0" in done.stderr
