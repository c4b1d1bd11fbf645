"""Every verb: something true at once, --quiet with results alone, --json with one object alone."""

import json
import logging
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer
from rich.console import Group

from terrafm.cli import app
from terrafm.terminal import console

# What a verb puts before another one's words, all of which travel to the job: its options would
# be taken from that verb.
TAKE_ANOTHERS_OPTIONS = {"submit"}
SMALL = ("--set", "train.steps=4", "--set", "train.global_batch=4")
DASHBOARD = ("--address", "http://127.0.0.1:8265")
SCORED = ("--weights", "WEIGHTS", "--data", "TILES", "--size", "32", "--resamples", "5")

# Verb -> arguments of a small but real one. Capitals are places of the fixtures.
REAL = {
    "inspect": ("TILES",),
    "verify": ("TILES",),
    "tile": ("TILES", "tile_01", "--output", "OUT"),
    "ingest": ("--source", "synthetic", "--input", "synthetic:cells=2,seed=0,px=96",
               "--output", "OUT", "--tile-size", "96", "--set", "ingest.workers=0"),
    "checkpoint list": ("RUN",),
    "checkpoint verify": ("RUN",),
    "checkpoint average": ("RUN/step_00000002", "RUN/step_00000002", "--output", "OUT"),
    "export": ("--checkpoint", "RUN/step_00000002", "--output", "OUT", "--format", "safetensors"),
    "evaluate knn": ("--weights", "WEIGHTS", "--data", "TILES", "--size", "32"),
    "evaluate retrieval": SCORED,
    "evaluate compare": (*SCORED, "--protocol", "knn5"),
    "evaluate table": (*SCORED, "--protocol", "knn5"),
    "embed": ("--weights", "WEIGHTS", "--data", "TILES", "--output", "OUT", "--size", "32",
              "--workers", "0"),
    "search": ("EMBEDDINGS", "--tile", "tile_01", "--output", "OUT.png"),
    "report": ("TILES", "--output", "OUT.html"),
    "pretrain": ("--config", "demo", "--data", "TILES", "--output", "OUT", *SMALL, "--dry-run"),
}  # fmt: skip
# Verb -> its arguments, where what it does takes Ray or a cluster and is a stand-in here.
STANDING_IN = {
    "demo": ("--output", "OUT"),
    "sweep": ("--config", "sweep_demo", "--data", "TILES", "--output", "OUT"),
    "doctor": (),
    "cluster up": ("--local",),
    "cluster status": (),
    "cluster down": (),
    "jobs list": DASHBOARD,
    "jobs status": ("job", *DASHBOARD),
    "jobs logs": ("job", *DASHBOARD),
    "jobs stop": ("job", *DASHBOARD),
}

# How lines begin that say what is being done, or how far it is.
SAID = ("reading ", "looking at ", "averaging ", "scoring ", "searching ", "comparing ",
        "embedding ", "measuring ", "pretraining ", "TerraFM demo ", "a sweep of ", "examining ",
        "starting ", "ending ", "asking ", "  start 1.0 s", "  trial 0")  # fmt: skip


def commands(command=None, name=""):
    """(verb, its command) of the whole command line."""
    command = command or typer.main.get_command(app)
    for word, inner in command.commands.items():
        full = f"{name} {word}".strip()
        if hasattr(inner, "commands"):
            yield from commands(inner, full)
        else:
            yield full, inner


@pytest.fixture(scope="module")
def places(small_dataset, checkpoint, tmp_path_factory):
    """Weights and embeddings beside the dataset and the checkpoint."""
    from terrafm.embed.job import embed
    from terrafm.embed.request import EmbedOptions
    from terrafm.export import export_checkpoint

    folder = tmp_path_factory.mktemp("verbs")
    (weights, *_), _ = export_checkpoint(checkpoint, str(folder / "weights"), "safetensors")
    embed(weights, small_dataset, str(folder / "embeddings"), EmbedOptions(size=32, workers=0))
    return {
        "TILES": small_dataset,
        "RUN": checkpoint.rpartition("/")[0],
        "WEIGHTS": weights,
        "EMBEDDINGS": str(folder / "embeddings"),
    }


@pytest.fixture
def arguments(places, tmp_path):
    def of_verb(verb):
        known = {**places, "OUT": str(tmp_path / "out")}
        words = (REAL | STANDING_IN)[verb]
        for name, place in known.items():
            words = tuple(word.replace(name, place) if word.isupper() or name in word else word
                          for word in words)  # fmt: skip
        return [*verb.split(), *words]

    return of_verb


@pytest.fixture
def stand_ins(monkeypatch):
    """What takes minutes, or a cluster: it talks as the real one does, and ends at once."""
    import terrafm.clusters.doctor
    import terrafm.clusters.local
    import terrafm.clusters.machine
    import terrafm.demo
    import terrafm.jobs.client
    import tuning.sweep
    from terrafm.clusters.findings import OK, Finding

    def demo(output, console):
        console.say("  start 1.0 s")
        return terrafm.demo.DemoResult({"seconds": 1.0}, Group("a table"))

    class Sweep:
        def __init__(self, *_):
            pass

        def run(self, resume):
            console.say("  trial 0 done")
            logging.getLogger("terrafm").warning("a trial was started again")
            return tuning.sweep.SweepResult("out", {"done": 1}, None)

    job = SimpleNamespace(status="RUNNING")
    server = SimpleNamespace(
        jobs=lambda: [job], job=lambda _: job, logs=lambda _: "a line\n", stop=lambda _: True
    )
    described = {"id": "job", "status": "RUNNING", "started": None, "ended": None, "output": None}
    nodes = {"address": "a:1", "dashboard_url": "http://a", "token_path": "/t", "nodes": []}
    monkeypatch.setattr(terrafm.demo, "run_demo", demo)
    monkeypatch.setattr(tuning.sweep, "Sweep", Sweep)
    monkeypatch.setattr(
        terrafm.clusters.machine, "examine_machine", lambda _: iter([Finding(OK, "fit")])
    )
    monkeypatch.setattr(terrafm.clusters.local, "up", lambda *_: SimpleNamespace(**nodes))
    monkeypatch.setattr(terrafm.clusters.local, "status", lambda: nodes)
    monkeypatch.setattr(terrafm.clusters.local, "down", lambda: 3)
    monkeypatch.setattr(terrafm.jobs.client, "JobServer", lambda _: server)
    monkeypatch.setattr(terrafm.jobs.client, "as_dict", lambda _: described)


def test_the_tables_above_have_every_verb():
    assert set(REAL) | set(STANDING_IN) | TAKE_ANOTHERS_OPTIONS == {v for v, _ in commands()}


@pytest.mark.parametrize("option", ["--json", "--quiet"])
def test_every_verb_has_both_options(option):
    lacking = {
        verb for verb, command in commands()
        if not any(option in parameter.opts for parameter in command.params)
    }  # fmt: skip
    assert lacking == TAKE_ANOTHERS_OPTIONS


@pytest.mark.parametrize("verb", [*REAL, *STANDING_IN])
def test_json_is_one_object_and_nothing_else(run, arguments, stand_ins, verb):
    code, out, errors = run(*arguments(verb), "--json")
    assert code == 0, errors
    assert len(out.splitlines()) == 1, out
    assert isinstance(json.loads(out), dict)


@pytest.mark.parametrize("verb", [*REAL, *STANDING_IN])
def test_quiet_prints_results_and_nothing_else(run, arguments, stand_ins, verb):
    code, out, errors = run(*arguments(verb), "--quiet")
    assert (code, errors) == (0, "")
    assert out.strip() or verb == "jobs stop"
    assert not [line for line in out.splitlines() if line.startswith(SAID)], out


def test_quiet_hides_warnings_of_one_command_only(run, arguments, stand_ins, monkeypatch):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    code, out, errors = run(*arguments("sweep"), "--quiet")
    assert (code, errors) == (0, "")
    assert out.startswith("1 trials")
    monkeypatch.setattr(root, "handlers", [])
    code, out, errors = run(*arguments("sweep"))
    assert "a trial was started again" in errors
    assert "trial 0 done" in out


def test_an_error_is_told_whatever_is_hidden(run, tmp_path):
    for option in ("--quiet", "--json"):
        code, out, errors = run("inspect", tmp_path / "nothing", option)
        assert (code, out) == (2, "")
        assert errors.startswith("terrafm: error: ")


AT_ONCE = """
import os, sys
from terrafm.terminal import PlainConsole

def say(self, text):
    heavy = {"torch", "ray", "deepspeed", "timm", "sklearn"} & set(sys.modules)
    os.write(1, f"{text.strip()}|{sorted(heavy)}".encode())
    os._exit(0)

PlainConsole.say = say
from terrafm.cli import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "verb",
    [*REAL, "demo", "sweep", "doctor", "cluster up", "cluster down",
     "jobs list", "jobs status", "jobs stop"],
)  # fmt: skip
def test_something_is_said_before_anything_heavy_is_loaded(arguments, verb):
    """Torch and Ray take seconds: what comes before them is on the screen at once."""
    done = subprocess.run(
        [sys.executable, "-c", AT_ONCE, *arguments(verb)],
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    said, _, heavy = done.stdout.partition("|")
    assert said.startswith(SAID), done.stderr
    assert heavy == "[]"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_and_deepspeed_add_nothing_to_a_real_run(small_dataset, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    words = ["pretrain", "--config", "demo", "--data", small_dataset, "--output", tmp_path / "run",
             *SMALL, "--set", "head.num_prototypes=32"]  # fmt: skip

    def terrafm(option):
        return subprocess.run(
            [sys.executable, "-m", "terrafm", *map(str, words), option],
            capture_output=True, text=True, check=True, env=environment,
        ).stdout  # fmt: skip

    found = json.loads(terrafm("--json"))
    assert found["steps"] == 4
    assert found["metrics"]["step"] == 4
    (line, *weights) = terrafm("--quiet").splitlines()
    assert line.startswith("nothing to do: ")
    assert weights == [f"weights {found['exported'][0]}"]
