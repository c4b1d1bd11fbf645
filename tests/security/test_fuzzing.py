"""A sample of the fuzzing: `make fuzz` is the long run, benchmarks/results has one."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzzing") / "fuzz.py"
TARGETS = {"state": 40, "manifest": 40, "embeddings": 30}


@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=() if name == "state" else pytest.mark.slow) for name in TARGETS],
)
def test_mutated_files_are_read_or_refused_in_one_line(target, tmp_path):
    command = [sys.executable, FUZZ, "--target", target, "--count", str(TARGETS[target])]
    done = subprocess.run(
        [*command, "--seed", "7", "--keep", tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert f"{target}: {TARGETS[target]} inputs" in done.stdout


def test_every_target_reads_its_sound_sample_to_the_end(tmp_path):
    # One that does not is never fuzzed, and of the long runs the night's are the first to tell.
    script = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import targets
for name, make in targets.TARGETS.items():
    folder = Path(sys.argv[2]) / name
    folder.mkdir()
    target = make(folder)
    target.build()
    target.load()
    target.read()
    print(name)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, FUZZ.parent, tmp_path],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.split()) == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "number"),
    [("manifest", 802), ("index", 1347), ("index", 915), ("index", 5851)],
)
def test_what_the_long_run_has_found_ends_in_a_declared_error(target, number):
    command = [sys.executable, FUZZ, "--target", target, "--seed", "1", "--replay", str(number)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("terrafm.errors."), last
    assert len(last) < 1000
