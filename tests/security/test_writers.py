"""A sample of the soak of writers; benchmarks/results has the long run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).with_name("writers") / "soak.py"


def soak(*arguments, environment=None):
    done = subprocess.run(
        [sys.executable, SOAK, *arguments],
        capture_output=True, text=True, timeout=1700, check=False,
        env=os.environ | (environment or {}),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if " times, " in line]
    assert all(" 0 failures" in line for line in lines), done.stdout
    return lines


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_two_writers_that_begin_at_once_one_wins():
    lines = soak("pairs", "--times", "2", "--only", "ingest+append,embed+average")
    assert [line.partition(",")[0] for line in lines] == ["ingest+append", "embed+average"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_writer_is_gone_on_with():
    lines = soak("kills", "--times", "3", "--only", "ingest,average")
    assert [line.partition(",")[0] for line in lines] == ["ingest", "average"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_writers_of_a_store(moto_server):
    for what, only in (("pairs", "ingest+ingest,embed+average"), ("kills", "ingest,average")):
        words = ["--times", "2", "--store", "s3", "--only", only]
        assert len(soak(what, *words, environment=moto_server)) == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_writers_that_train():
    assert len(soak("pairs", "--times", "2", "--only", "pretrain+average,pretrain+pretrain")) == 2
    assert len(soak("kills", "--times", "2", "--only", "pretrain")) == 1
