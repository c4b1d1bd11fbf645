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
from harness.option_mistakes import OPTION_MISTAKES

ALL = (*MISTAKES, *OPTION_MISTAKES)
# Options whose mistakes show once a file was read or a cluster has answered, and their tests.
LATER = {
    "embed": {"--modality", "--bands"},  # tests/embed
    "export": {"--modality", "--image-size", "--license", "--scores"},  # tests/export
    "evaluate retrieval": {"--modality"},  # tests/eval
    # tests/eval
    "evaluate compare": {
        "--baseline", "--protocol", "--modality", "--bands", "--partition", "--features",
    },
    "evaluate table": {"--baseline", "--protocol", "--features"},
    "submit": {"--working-dir", "--python"},  # tests/jobs
}  # fmt: skip
BLOCKED = ("ray", "torch", "timm", "torchvision", "deepspeed")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    at = Places.below(tmp_path_factory.mktemp("mistakes"))
    at.prepare()
    return at


def test_a_mistake_is_told_before_ray_and_torch_are_loaded(places):
    before = snapshot(places)
    commands = {mistake.name: list(mistake.words(places)) for mistake in ALL}
    request = json.dumps({"blocked": BLOCKED, "commands": commands})
    done = subprocess.run(
        [sys.executable, __file__, request], capture_output=True, text=True, timeout=300, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    for mistake in ALL:
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


def test_the_tables_have_mistakes_of_every_verb_and_of_every_option_that_takes_a_value():
    assert len({mistake.name for mistake in ALL}) == len(ALL) >= 120
    given = [list(mistake.words(Places.below(Path("/at")))) for mistake in ALL]
    lacking = {}
    for verb, command in verbs(typer.main.get_command(app)):
        words = verb.split()
        mine = [line for line in given if line[: len(words)] == words]
        assert mine, verb
        options = [
            one for one in command.params if one.param_type_name == "option" and not one.is_flag
        ]
        untried = {
            option.opts[0]
            for option in options
            if not any(name in line for line in mine for name in option.opts)
        }
        if untried:
            lacking[verb] = untried
    assert lacking == LATER


def verbs(command, name=""):
    """Verb as it is typed, and its command."""
    if not hasattr(command, "commands"):
        yield name, command
        return
    for word, inner in command.commands.items():
        yield from verbs(inner, f"{name} {word}".strip())


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
