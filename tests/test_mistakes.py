"""Mistakes at the command line are one line and exit code 2, before torch and Ray are loaded."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from terrafm.cli import app

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from harness.mistakes import MISTAKES, Places

BLOCKED = ("ray", "torch", "timm", "torchvision", "deepspeed")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    at = Places.below(tmp_path_factory.mktemp("mistakes"))
    at.prepare()
    return at


def test_a_mistake_is_told_before_ray_and_torch_are_loaded(places):
    before = snapshot(places)
    commands = {mistake.name: list(mistake.words(places)) for mistake in MISTAKES}
    request = json.dumps({"blocked": BLOCKED, "commands": commands})
    done = subprocess.run(
        [sys.executable, __file__, request], capture_output=True, text=True, timeout=300, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for mistake in MISTAKES:
        code, said, printed = found[mistake.name]
        assert (mistake.name, code) == (mistake.name, 2), printed
        assert mistake.said in printed, mistake.name
        lines = [line for line in printed.splitlines() if line]
        # Of a verb or an option that is none the usage is shown besides.
        assert len(lines) == 1 or "Usage:" in lines[0], printed
        # What a verb said that it does, before it found the mistake.
        assert len(said.splitlines()) <= 1, said
    # Nothing is half written, and nothing of anybody's has changed. A synthetic archive is drawn
    # before its grid is known, and is whole: the corrected command takes it up.
    after = snapshot(places)
    drawn = {name for name in after.keys() - before.keys() if "new/tiles/archive/" in f"{name}/"}
    drawn |= {"new", "new/tiles"}
    assert {name: seen for name, seen in after.items() if name not in drawn} == before


def snapshot(places):
    """Every file and folder beside which the mistakes are made, with size and time."""
    root = places.dataset.parent
    return {
        str(path.relative_to(root)): path.is_file() and (path.stat().st_size, path.stat().st_mtime)
        for path in root.rglob("*")
    }


def test_the_table_has_mistakes_of_every_verb():
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 60
    given = {mistake.words(Places.below(Path("/at")))[0] for mistake in MISTAKES}
    verbs = set(typer.main.get_command(app).commands)
    assert verbs <= given, verbs - given


def main():
    request = json.loads(sys.argv[1])
    for name in request["blocked"]:
        sys.modules[name] = None
    from terrafm.cli import main

    found = {}
    for name, words in request["commands"].items():
        said, printed, code = io.StringIO(), io.StringIO(), 0
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(printed):
            try:
                main(words)
            except SystemExit as end:
                code = end.code
        found[name] = (code, said.getvalue(), printed.getvalue())
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
