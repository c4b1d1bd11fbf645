"""What `terrafm jobs list` prints."""

import io

import pytest
from rich.console import Console

from terrafm.cli.jobs import render_jobs

JOBS = [
    {"id": "pretrain-run-53a42422-12", "status": "SUCCEEDED", "started": 1795714866589,
     "output": "/data/runs/of/this/year/first"},
    {"id": "pretrain-run-53a42422-13", "status": "RUNNING", "started": None, "output": None},
]  # fmt: skip


@pytest.mark.parametrize("columns", [60, 80, 200])
def test_jobs_can_be_told_apart_and_named_however_narrow_the_terminal(columns):
    printed = io.StringIO()
    Console(file=printed, width=columns).print(render_jobs({"jobs": JOBS}))
    assert all(job["id"] in printed.getvalue() for job in JOBS)
