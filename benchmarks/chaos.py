"""Faults every 60 to 90 s, drawn by chance: does the run end in the right weights?

    python benchmarks/chaos.py [--json] [--steps 900] [--seed 0]

The faults of recovery.py befall one run until it has done its steps: SIGKILL of a worker, loss of
a node, a spot notice of 20 s, a new node, SIGKILL of the command and the same command again, a
flipped bit in the newest checkpoint with SIGKILL of all workers. The samples of every step must
be the planned ones, none missing, none twice. The weights are compared with those of undisturbed
runs at one and at two workers: a sum over two workers rounds otherwise than over one, and the run
changes between the two; the bar is the distance between the undisturbed runs.

Goodput is the share of the time in which steps were done that counted: not starting, not waiting,
not doing lost steps again.
"""

import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import ray
from common import Figure, note, parse, parser, report
from harness.elastic_run import SETTINGS, ElasticRun, elastic_run
from harness.tiles import prepare

from terrafm.config import load_config
from terrafm.train.checkpoints.store import TrainingState, list_checkpoints, load_checkpoint
from terrafm.train.driver.events import read_events
from terrafm.train.driver.pretrain import pretrain
from terrafm.train.worker.setup import TrainingSetup

PAUSE_SECONDS = (60.0, 90.0)
NOTICE_SECONDS = 20.0


def flip_bit(run: ElasticRun) -> None:
    """In the teacher of the newest checkpoint; then no worker lives to train on."""
    _, newest = list_checkpoints(str(run.output / "checkpoints"))[-1]
    path = Path(newest) / "teacher.safetensors"
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    run.kill_worker()


def disturb(run: ElasticRun, draw: random.Random) -> list[str]:
    """One fault after the other until the run is done; returns their names."""
    befallen: list[str] = []
    assert run.process is not None
    while True:
        pause = draw.uniform(*PAUSE_SECONDS)
        deadline = time.monotonic() + pause
        while time.monotonic() < deadline:
            if run.process.poll() is not None:
                return befallen
            time.sleep(0.5)
        faults: dict[str, Callable[[], object]] = {
            "worker": run.kill_worker,
            "command": run.restart,
            "bit": lambda: flip_bit(run),
        }
        if run.has_node:
            faults |= {"node": run.lose_node, "spot": lambda: run.take_node_away(NOTICE_SECONDS)}
        else:
            faults |= {"new node": run.add_node, "another new node": run.add_node}
        name = draw.choice(sorted(faults))
        note(f"step {run.step()}: {name}")
        faults[name]()
        befallen.append(name)


def distance(one: TrainingState, other: TrainingState) -> float:
    """Largest difference of any weight of student and teacher."""
    return max(
        float((mine[name] - theirs[name]).abs().max())
        for mine, theirs in (
            (one.engine.student, other.engine.student),
            (one.teacher, other.teacher),
        )
        for name in mine
    )


def wrong_samples(output: Path, data: str, settings: tuple[str, ...]) -> int:
    """Samples of the plan that are missing, and of samples.parquet that are not planned."""
    setup = TrainingSetup.open(load_config("demo", list(settings)), data)
    batch = setup.config.train.global_batch
    epochs, positions, rows = setup.plan.samples(0, setup.total_steps * batch)
    planned = [
        (i // batch, int(e), int(p), setup.dataset.tile_ids[r])
        for i, (e, p, r) in enumerate(zip(epochs, positions, rows, strict=True))
    ]
    found = [
        (row["step"], row["epoch"], row["position"], row["tile_id"])
        for row in pq.read_table(output / "samples.parquet").to_pylist()
    ]
    doubled = len(found) - len(set(found))
    return doubled + len(set(found) ^ set(planned))


def goodput(output: Path) -> float:
    """Share of the time that went into steps that counted."""
    events = read_events(str(output))
    elapsed = events[-1]["time"] - events[0]["time"]
    first = next(e["time"] for e in events if e["event"] == "training") - events[0]["time"]
    still = sum(e.get("seconds", 0.0) for e in events if e["event"] == "training")
    again = sum(e["seconds"] for e in events if e["event"] == "resumed")
    return float(1.0 - (first + still + again) / elapsed)


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__, rounds=1)
    options.add_argument("--steps", type=int, default=900, help="of the run (%(default)s)")
    options.add_argument("--seed", type=int, default=0, help="of the faults (%(default)s)")
    arguments = parse(options)
    made = prepare(arguments.work, arguments.real, 16)
    folder = Path(arguments.work) / "chaos"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    steps = 40 if arguments.quick else arguments.steps
    settings = (f"train.steps={steps}", "train.global_batch=8", "train.checkpoint_every=10")
    with elastic_run(made.dataset, folder / "run", *settings) as run:
        begin = time.monotonic()
        befallen = disturb(run, random.Random(arguments.seed))
        minutes = (time.monotonic() - begin) / 60
        assert run.process is not None
        if run.process.returncode:
            raise SystemExit(f"the run ended with exit code {run.process.returncode}")
    states = {"run": _final(folder / "run", steps)}
    for workers in (1, 2):
        note(f"undisturbed, {workers} workers")
        config = load_config("demo", [*SETTINGS, *settings, f"train.workers={workers}"])
        pretrain(config, made.dataset, str(folder / f"{workers}"))
        # The next one needs a Ray of its own size.
        ray.shutdown()
        states[str(workers)] = _final(folder / f"{workers}", steps)
    spread = distance(states["1"], states["2"])
    apart = min(distance(states["run"], states[workers]) for workers in ("1", "2"))
    figures = [
        Figure("samples missing, doubled or not planned",
               wrong_samples(folder / "run", made.dataset, (*SETTINGS, *settings)), 0, "lower", ""),
        Figure("largest difference of a weight to an undisturbed run", apart, spread, "lower", ""),
        Figure("the same between undisturbed runs of 1 and 2 workers", spread, None, "lower", ""),
        Figure(f"goodput, {len(befallen)} faults in {minutes:.0f} min", goodput(folder / "run"),
               None, "higher", "x"),
    ]  # fmt: skip
    note(f"faults: {', '.join(befallen)}")
    report(figures, arguments, made.data)


def _final(output: Path, steps: int) -> TrainingState:
    return load_checkpoint(str(output / "checkpoints" / f"step_{steps:08d}"))


if __name__ == "__main__":
    main()
