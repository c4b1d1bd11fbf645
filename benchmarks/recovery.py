"""How long a run stands still after a fault, on a cluster of two nodes of this machine.

    python benchmarks/recovery.py [--json]

Two raylets with two logical CPUs each hold one worker each; the model is terrafm_tiny. From the
fault to the end of the next step: detection, the end of the old workers, the start of new ones
(processes, process group, engine, checkpoint, first blocks of data). With two processors for all
of it, the processes that wait for the next group (train.standby) take a minute and more to import:
the faults come when they have; one comes right after a start, before. A spot notice counts from its
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
# Until the processes that wait for the next group have imported everything.
_STANDBY_SECONDS = 90.0


def measure(run: ElasticRun, rounds: int) -> dict[str, list[float]]:
    """Seconds of each fault, once a round."""
    names = ("grow", "kill", "soon", "spot", "node")
    seconds: dict[str, list[float]] = {name: [] for name in names}

    def took(name: str, value: float) -> None:
        seconds[name].append(value)
        note(f"{name}: {value:.1f} s")

    _settle(run)
    for _ in range(rounds):
        took("grow", run.seconds_to_training(run.add_node(), 2))
        _settle(run)
        took("kill", run.seconds_to_training(run.kill_worker()))
        run.wait_for_step(run.step() + 5)
        took("soon", run.seconds_to_training(run.kill_worker()))
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
    time.sleep(_STANDBY_SECONDS)


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
        "soon": ("the same, right after a start", None),
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
