"""The verbs as functions: their options, errors that end nothing, page and notebooks that run."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import typer
from nbclient import NotebookClient
from pages import code_blocks

import terrafm
from terrafm.cli import app
from terrafm.config import load_config
from terrafm.terminal import Result

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ("first_run", "embeddings")
VERBS = {
    ("ingest",): terrafm.ingest,
    ("inspect",): terrafm.inspect,
    ("verify",): terrafm.verify,
    ("tile",): terrafm.tile,
    ("pretrain",): terrafm.pretrain,
    ("export",): terrafm.export,
    ("embed",): terrafm.embed,
    ("search",): terrafm.search,
    ("report",): terrafm.report,
    ("evaluate", "compare"): terrafm.evaluate,
    ("evaluate", "table"): terrafm.evaluate_table,
    ("evaluate", "knn"): terrafm.evaluate_knn,
    ("evaluate", "retrieval"): terrafm.evaluate_retrieval,
}
# What only a command line has, and what Python has instead.
NOT_FOR_PYTHON = {"json", "help", "watch", "quiet"}


@pytest.mark.parametrize("words", VERBS, ids=" ".join)
def test_arguments_are_named_as_the_options_and_have_their_defaults(words):
    command = typer.main.get_command(app)
    for word in words:
        command = command.commands[word]
    parameters = dict(inspect.signature(VERBS[words]).parameters)
    # Which is `--quiet`.
    assert parameters.pop("progress").default is True
    for option in command.params:
        long = [name for name in option.opts if name.startswith("--")]
        name = (long or option.opts)[0].lstrip("-").replace("-", "_")
        if name in NOT_FOR_PYTHON:
            continue
        # Arguments without a name of their own: the first of the function.
        name = name if name in parameters else next(iter(parameters))
        parameter = parameters.pop(name)
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        if option.required:
            assert parameter.default in (inspect.Parameter.empty, ()), name
        else:
            given = option.default
            wanted = ",".join(default) if isinstance(default, tuple) else default
            assert (given or None) == (wanted or None), name
    assert not parameters


def test_importing_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, terrafm\n"
        "print(sorted({'torch', 'ray', 'numpy', 'typer', 'rich'} & set(sys.modules)))\n"
        "terrafm.pretrain, terrafm.embed\n"
        "print(sorted({'torch', 'ray', 'timm', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]


@pytest.mark.parametrize("name", ["embed", "export", "report", "search"])
def test_a_package_named_as_a_verb_is_called_and_still_a_package(name):
    code = (
        f"import terrafm, inspect\nfirst = inspect.signature(terrafm.{name})\n"
        f"import importlib; importlib.import_module('terrafm.{name}')\n"
        f"from terrafm import {name}\nfrom terrafm.api import {name} as function\n"
        f"assert inspect.signature({name}) == first == inspect.signature(function)\n"
        f"assert {name}.__doc__ == function.__doc__\nassert {name}.__path__\n"
        f"assert terrafm.{name} is {name}\n"
        f"try:\n    {name}()\nexcept TypeError as error:\n    assert '{name}()' in str(error)\n"
        f"else:\n    raise SystemExit('called without arguments')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("call", "why"),
    [
        (lambda data, out: terrafm.inspect("nothing"), "dataset nothing does not exist"),
        (lambda data, out: terrafm.inspect(data, set={"data.x": 1}), "data.x"),
        (lambda data, out: terrafm.inspect(data, set="data.fusion=false"), "set takes"),
        (lambda data, out: terrafm.ingest("no-such", data, out), "no source named 'no-such'"),
        (lambda data, out: terrafm.ingest("geotiff", data, out, modalities=()), "none given"),
        (lambda data, out: terrafm.pretrain("nodemo", data, out), "no recipe named 'nodemo'"),
        (lambda data, out: terrafm.pretrain("demo", "nothing", out), "does not exist"),
        (lambda data, out: terrafm.export("nothing", out, "hf"), "does not exist"),
        (lambda data, out: terrafm.export(data, out, "pdf"), "unknown format 'pdf'"),
        (lambda data, out: terrafm.export(data, out, "hf", model="both"), "model is one of"),
        (lambda data, out: terrafm.embed("nothing", data, out), "weights nothing do not exist"),
        (lambda data, out: terrafm.embed(data, data, out, batch=0), "batch must be 1 or more"),
        (lambda data, out: terrafm.embed(data, data, out, readout="sum"), "readout is one of"),
        (lambda data, out: terrafm.embed(data, data, out, normalise="x"), "normalise is one of"),
        (lambda data, out: terrafm.evaluate(data, "nothing"), "weights nothing do not exist"),
        (lambda data, out: terrafm.evaluate_table(["nothing"], data), "nothing does not exist"),
        (lambda data, out: terrafm.evaluate_table([], data), "no labelled set"),
        (lambda data, out: terrafm.evaluate_knn("nothing", data), "weights nothing do not exist"),
        (lambda data, out: terrafm.evaluate_retrieval(data, data, samples=1), "2 or more"),
        (lambda data, out: terrafm.report(data, out), "ends in .html"),
        (lambda data, out: terrafm.search("nothing", tile="a"), "no embeddings"),
        (lambda data, out: terrafm.tile(data, "no tile", out), "no tile"),
        (lambda data, out: terrafm.verify(data, version=9), "no version 9"),
    ],
)
def test_a_mistake_raises_one_line_and_leaves_nothing(small_dataset, tmp_path, call, why):
    out = tmp_path / "out"
    with pytest.raises(terrafm.UsageError) as error:
        call(small_dataset, out)
    assert why in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not out.exists()


def test_settings_are_a_mapping_or_texts(small_dataset):
    from terrafm.api.arguments import config_of

    wanted = load_config("demo", ["train.steps=7", "optim.base_lr=0.00001", "data.fusion=false"])
    given = {"train.steps": 7, "optim.base_lr": 1e-5, "data.fusion": False}
    assert config_of("demo", given) == wanted
    assert config_of("demo", ["train.steps=7", "optim.base_lr=1e-5", "data.fusion=false"]) == wanted
    lists = {"data.modalities": ("s1", "s2_l2a"), "train.workers": [1, 2], "model.init": None}
    config = config_of("demo", lists)
    assert (config.data.modalities, config.train.workers) == (("s1", "s2_l2a"), (1, 2))


def test_a_result_is_values_and_a_table(small_dataset):
    found = terrafm.inspect(Path(small_dataset))
    assert isinstance(found, Result)
    assert json.loads(json.dumps(found))["tiles"] == found["tiles"] == 11
    assert "Land cover" in str(found)
    assert "\x1b" not in str(found)


def test_a_notebook_shows_what_the_verb_shows(small_dataset, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    from IPython.core.formatters import DisplayFormatter

    from terrafm.train.driver.pretrain import RunResult

    def shown(value):
        return DisplayFormatter().format(value)[0]["text/plain"]

    found = terrafm.inspect(small_dataset)
    assert shown(found) == str(found)
    assert "\x1b" not in shown(found)
    run = RunResult("run", "run/checkpoints/step_00000003", 3, 0, {"loss": 2.5})
    assert shown(run) == "3 steps, loss 2.5000, checkpoint run/checkpoints/step_00000003"


def test_progress_is_told_or_silent(small_dataset, capsys):
    seen = []
    assert terrafm.verify(small_dataset, progress=lambda *both: seen.append(both))["faults"] == []
    assert seen
    assert all(0 <= done <= total for done, total in seen)
    assert seen[-1][0] == seen[-1][1]
    terrafm.verify(small_dataset, progress=False)
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_notebook_is_one_line_that_goes_away(monkeypatch):
    from terrafm import progress
    from terrafm.terminal import PlainConsole

    written = []

    class Line:
        def update(self, shown):
            written.append(shown.data)

    monkeypatch.setattr("IPython.display.display", lambda *_, **__: Line())
    monkeypatch.setattr(progress, "_NOTEBOOK_SECONDS", 0)
    console = PlainConsole(force_jupyter=True)
    with progress.progress_bar(console, "steps", "pretraining") as advance:
        advance(0, 4)
        advance(2, 4, {"loss": 1.5, "tiles_per_second": 3.0})
        advance(4, 4)
    assert len(written) == 5
    assert written.pop(0) == "pretraining"
    assert written[0].startswith("░" * 24 + " 0/4 steps")
    assert written[1].startswith("█" * 12 + "░" * 12 + " 2/4 steps")
    assert "left" in written[1]
    assert "loss 1.500" in written[1]
    assert written[2:] == ["█" * 24 + " 4/4 steps", ""]
    written.clear()
    with progress.working(console, "features") as tell:
        tell("more [b]of[/b] it\x1b")
    assert written == ["features", "more [b]of[/b] it\ufffd", ""]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name):
    notebook = nbformat.read(ROOT / "docs/notebooks" / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebooks_run_one_after_the_other(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    # Theirs draws into the notebook.
    monkeypatch.delenv("MPLBACKEND", raising=False)
    shown = {}
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / "docs/notebooks" / f"{name}.ipynb", as_version=4)
        client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}})
        client.execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [o for o in outputs if o.get("name") == "stderr"], outputs
        shown[name] = outputs
    texts = {
        name: "\n".join(o["data"]["text/plain"] for o in outputs if "data" in o)
        for name, outputs in shown.items()
    }
    assert "tiles of 24 cells" in texts["first_run"]
    assert "Land cover (majority class" in texts["first_run"]
    assert "20 steps, loss" in texts["first_run"]
    assert "mean spectrum" in texts["first_run"]
    assert "embeddings of length 96" in texts["embeddings"]
    for name in NOTEBOOKS:
        assert sum("image/png" in o.get("data", {}) for o in shown[name]) >= 1
    assert (tmp_path / "run.html").stat().st_size > 10_000
    assert (tmp_path / "similar.png").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_code_of_the_page_runs(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    code = "\n".join(code_blocks("docs/python_api.md", "python"))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "data nothing does not exist" in done.stdout
    assert (tmp_path / "page.html").exists()


def test_the_page_lists_every_function():
    page = (ROOT / "docs/python_api.md").read_text()
    for function in VERBS.values():
        name = function.__name__.rpartition(".")[2]
        assert f"| `terrafm.{name}(" in page, name
