"""How long a run stands still after a fault, on a cluster of two nodes of this machine.

    python benchmarks/recovery.py [--json]

Two raylets with two logical CPUs each hold one worker each; the model is terrafm_tiny. From the
fault to the end of the next step: detection, the end of the old workers, the start of new ones
(imports, process group, engine, checkpoint, first blocks of data). A spot notice counts from its
deadline: below 0 the run trained again before the node was gone.
"""

import shutil
import statistics
import time
from pathlib import Path

from common import Figure, note, parse, parser, report
from harness.elastic_run import ElasticRun, elastic_run
from harness.tiles import prepare

KILL_BAR, SPOT_BAR = 30.0, 20.0
NOTICE_SECONDS = 30.0


def measure(run: ElasticRun, rounds: int) -> dict[str, list[float]]:
    """Seconds of each fault, once a round."""
    seconds: dict[str, list[float]] = {name: [] for name in ("grow", "kill", "spot", "node")}

    def took(name: str, value: float) -> None:
        seconds[name].append(value)
        note(f"{name}: {value:.1f} s")

    run.wait_for_step(3)
    for _ in range(rounds):
        took("grow", run.seconds_to_training(run.add_node(), 2))
        _settle(run)
        took("kill", run.seconds_to_training(run.kill_worker()))
        _settle(run)
        notice = run.take_node_away(NOTICE_SECONDS)
        took("spot", run.seconds_to_training(notice, 1) - NOTICE_SECONDS)
        run.seconds_to_training(run.add_node(), 2)
        _settle(run)
        took("node", run.seconds_to_training(run.lose_node(), 1))
        _settle(run)
    return seconds


def _settle(run: ElasticRun) -> None:
    run.wait_for_step(run.step() + 5)
    time.sleep(1)


def main() -> None:
    """Measures and prints."""
    arguments = parse(parser(__doc__, rounds=1))
    made = prepare(arguments.work, arguments.real, 16)
    output = Path(arguments.work) / "recovery"
    shutil.rmtree(output, ignore_errors=True)
    settings = ("train.steps=100000", "train.global_batch=8", "train.checkpoint_every=10")
    with elastic_run(made.dataset, output, *settings) as run:
        seconds = measure(run, arguments.rounds)
    names = {
        "kill": ("SIGKILL of a worker to the next step", KILL_BAR),
        "spot": (f"deadline of a spot notice ({NOTICE_SECONDS:g} s) to the next step", SPOT_BAR),
        "node": ("loss of a node to the next step", None),
        "grow": ("a new node to the next step with it", None),
    }
    figures = [
        Figure(text, statistics.median(seconds[name]), bar, "lower", "s")
        for name, (text, bar) in names.items()
    ]
    report(figures, arguments, made.data)


if __name__ == "__main__":
    main()
