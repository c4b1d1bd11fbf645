"""Cases of one place by many names: it is one run, and one archive."""

from pathlib import Path

import pytest
from typer.main import get_command

from terrafm.cli import app
from terrafm.jobs.arguments import read_command
from terrafm.jobs.submit import _run_key
from terrafm.storage import absolute, canonical

SAME = {
    "disk": ["{here}/run", "run", "run/", "./run", "run//", "././run", "x/../run",
             "file://{here}/run", "file://{here}/run/", "{here}//run", "link"],
    "store": ["s3://bucket/run", "s3://bucket/run/", "s3a://bucket/run", "s3a://bucket/run/",
              "s3://bucket//run", "s3://bucket/run//"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in SAME.items() for name in names]
)
def test_all_spellings_of_a_place_are_one_run(training, kind, name, tmp_path, monkeypatch):
    training("20")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "x").mkdir()
    (tmp_path / "link").symlink_to("run")

    def key(output):
        words = ["pretrain", "--config", "demo", "--data", "d", "--output", output]
        return _run_key(read_command(get_command(app), words, Path()))

    first = SAME[kind][0].format(here=tmp_path)
    assert key(name.format(here=tmp_path)) == key(first)
    assert canonical(name.format(here=tmp_path)) == canonical(first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("run", "run2"), ("run", "Run"), ("s3://bucket/run", "s3://bucket/run/1"),
        ("s3://bucket/run", "s3://bucket/Run"), ("s3://bucket/run", "s3://bucket2/run"),
        ("https://host/a//b", "https://host/a/b"), ("run", "run "),
    ],
)  # fmt: skip
def test_other_places_have_other_names(one, other):
    assert canonical(one) != canonical(other)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("s3a://b//x/", "s3://b/x"), ("s3://b", "s3://b"), ("s3://b/", "s3://b"),
        ("file:///a//b/", "/a/b"), ("//a/b", "/a/b"), ("/", "/"), ("/a/./b", "/a/b"),
        ("https://h/x?y=a//b", "https://h/x?y=a//b"),
    ],
)  # fmt: skip
def test_the_name_of_a_place(name, wanted):
    assert absolute(name) == wanted


def test_one_archive_by_two_names_is_one_archive(tmp_path):
    from terrafm.data.ingest.job import canonical_input

    (tmp_path / "archive").mkdir()
    (tmp_path / "link").symlink_to("archive")
    assert canonical_input(f"{tmp_path}/link/") == canonical_input(f"file://{tmp_path}/archive")
    assert canonical_input("synthetic:cells=9") == "synthetic:cells=9"
