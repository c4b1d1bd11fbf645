"""What lies in the folder of a dataset, for tests that compare it."""

import io
import json
from pathlib import Path

from rich.console import Console

from terrafm.config import load_config
from terrafm.data.inspect import inspect, render


def files_of(folder):
    """Content of a dataset by file name, without the entries of unfinished work."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and "archive" not in path.parts
    }


def faults_of(folder):
    """The lines of its quarantine."""
    lines = (folder / "quarantine.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def rendered(uri):
    """What `terrafm inspect` shows of it."""
    console = Console(width=120, file=io.StringIO())
    console.print(render(inspect(str(uri), load_config())))
    return console.file.getvalue()
