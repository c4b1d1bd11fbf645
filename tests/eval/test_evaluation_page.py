"""The code of docs/evaluation.md runs."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import code_blocks

PAGE = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"


def blocks(language):
    return code_blocks("docs/evaluation.md", language)


def block_with(words):
    (found,) = [block for block in blocks("bash") if words in block]
    return found


def run_shell(script, tmp_path, shared_folder, weights):
    # Where the page has them.
    shutil.copytree(Path(weights).parent, tmp_path / "weights")
    environment = os.environ | {
        "EUROSAT": str(shared_folder / "realdata" / "eurosat_ms"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_commands_run(tmp_path, shared_folder, weights):
    assert "mean spectrum" in run_shell(blocks("bash")[0], tmp_path, shared_folder, weights)
    result = json.loads((tmp_path / "table.json").read_text())
    assert result["n"] == 100
    # Mean spectrum, five untrained encoders, the weights.
    assert len(list((tmp_path / "features").glob("*.parquet"))) == 7


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_of_fine_tuning_runs(tmp_path, shared_folder, weights):
    script = block_with("--epochs 40")
    short = script.replace("--epochs 40", "--epochs 1")
    printed = run_shell(short, tmp_path, shared_folder, weights)
    assert "best after epoch" in " ".join(printed.split())


def test_the_command_of_masks_runs(fields, weights, run, monkeypatch, tmp_path):
    weights = str(Path(weights).resolve())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m-cashew-plant").mkdir()
    monkeypatch.setattr("terrafm.eval.tables.compare.open_set", lambda *_: fields())
    monkeypatch.setattr("terrafm.eval.segmentation.upernet.WIDTH", 8)
    (command,) = block_with("m-cashew-plant").splitlines()
    program, *arguments = shlex.split(command)
    assert program == "terrafm"
    given = [weights if argument == "weights" else argument for argument in arguments]
    code, printed, errors = run(*given, "--size", "64", "--epochs", "1", "--resamples", "20")
    assert code == 0, errors
    words = " ".join(printed.split())
    assert "linear probe" in words
    assert "UPerNet: learning rate" in words


def test_the_command_of_the_table_runs(small_dataset, weights, run, monkeypatch, tmp_path):
    weights = str(Path(weights).resolve())
    monkeypatch.chdir(tmp_path)
    (command,) = block_with("evaluate table").splitlines()
    program, *arguments = shlex.split(command)
    assert program == "terrafm"
    where = {"weights": weights, "$EUROSAT": str(Path(small_dataset).resolve())}
    given = [where.get(argument, argument) for argument in arguments]
    given[given.index("untrained:resnet50")] = "untrained:test_resnet"
    code, printed, errors = run(*given, "--size", "32", "--resamples", "20")
    assert code == 0, errors
    assert (tmp_path / "table.md").read_text().strip() in printed
    assert "untrained test_resnet, 5 seeds" in printed


def test_the_command_of_retrieval_runs(small_dataset, weights, run):
    (command,) = block_with("evaluate retrieval").splitlines()
    program, *arguments = shlex.split(command)
    assert program == "terrafm"
    where = {"weights": weights, "tiles": small_dataset}
    given = [where.get(argument, argument) for argument in arguments]
    code, printed, errors = run(*given, "--size", "32", "--resamples", "20")
    assert code == 0, errors
    assert "s1>s2_l2a" in printed


def test_the_python_of_retrieval_runs(small_dataset, weights, capsys):
    names = {"tiles": small_dataset, "weights": weights}
    exec(compile(blocks("python")[1], str(PAGE), "exec"), names)
    assert "s2_l2a>s1" in capsys.readouterr().out


def test_the_python_runs(small_dataset, weights, capsys):
    names = {"data": small_dataset, "weights": weights}
    exec(compile(blocks("python")[0], str(PAGE), "exec"), names)
    assert "untrained" in capsys.readouterr().out
