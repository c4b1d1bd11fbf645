"""Does training wait for its validation? Time of a step with it, over the time without.

    python benchmarks/validation.py [--json] [--steps 300] [--rounds 3]

The same run, alternately without and with a validation that is always under way: of every
checkpoint, 10 steps apart, on more pixels than it gets done meanwhile. Compared is the median
time of a step over all lines of metrics.jsonl after the first third. Where training, its data
workers and the validation share few cores, they take time from each other although none waits:
the figure is then what the operating system's priorities make of it.
"""

import json
import shutil
import statistics
from pathlib import Path

import ray
from common import Figure, note, parse, parser, report
from harness.tiles import prepare

from terrafm.config import load_config
from terrafm.eval.validation import CheckpointValidation
from terrafm.train.checkpoints.validations import read_validations
from terrafm.train.driver.pretrain import pretrain

BATCH = 8
SETTINGS = (
    f"train.global_batch={BATCH}",
    "train.checkpoint_every=10",
    "train.log_every=5",
    "data.local_crops=2",
    "data.global_size=96",
    "head.num_prototypes=256",
)
VALIDATION = ("validation.every_steps=10",)


def seconds_a_step(data: str, output: Path, settings: tuple[str, ...]) -> float:
    """Median over the lines of a run."""
    config = load_config("demo", [*SETTINGS, *settings])
    pretrain(config, data, str(output), validate=CheckpointValidation)
    # The next one needs a Ray of its own size.
    ray.shutdown()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    settled = lines[len(lines) // 3 :]
    return statistics.median(BATCH / line["tiles_per_second"] for line in settled)


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__, rounds=3)
    options.add_argument("--steps", type=int, default=300, help="of a run (%(default)s)")
    arguments = parse(options)
    made = prepare(arguments.work, arguments.real, 16)
    folder = Path(arguments.work) / "validation"
    shutil.rmtree(folder, ignore_errors=True)
    steps = f"train.steps={40 if arguments.quick else arguments.steps}"
    without: list[float] = []
    beside: list[float] = []
    scored = 0
    for number in range(arguments.rounds):
        for name, more, times in (("without", (), without), ("with", VALIDATION, beside)):
            output = folder / f"{number}-{name}"
            times.append(seconds_a_step(made.dataset, output, (steps, *more)))
            note(f"round {number + 1}, {name}: {times[-1]:.3f} s a step")
        scored += len(read_validations(str(output)))
    ratios = [one / other for one, other in zip(beside, without, strict=True)]
    report(
        [
            Figure("step with validation / without", statistics.median(ratios), None, "lower", "x"),
            Figure("step without validation", statistics.median(without), None, "lower", "s"),
            Figure("checkpoints validated in all runs", scored, None, "higher", ""),
        ],
        arguments,
        made.data,
    )


if __name__ == "__main__":
    main()
