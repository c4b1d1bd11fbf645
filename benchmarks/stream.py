"""The Ray Data stream with crops against the same work in plain processes; and what order costs.

    python benchmarks/stream.py [--json]

- Stream: `terrafm.data.samples.stream.stream_batches`, one rank, two data CPUs, Ray's workers at
  the niceness of everything else; the consumer takes batches and does nothing. Bar: at least 0.80
  of plain processes.
- Plain: as many processes as data CPUs, each running the tasks' own function on a stretch of the
  plan of its own; nothing is sent anywhere.
- Ordered against unordered: the stream with Ray Data's `preserve_order` on and off, all
  modalities drawn in every view (shapes are equal then, whatever block comes first). Bar: 0.95.

Every run is a process tree of its own. The first 8 s after its first batch are warm-up, then
20 s are measured.
"""

import statistics
from dataclasses import asdict, replace
from functools import partial

from common import Figure, alternate, median_ratio, parse, parser, report, run_child
from harness.tiles import prepare
from harness.workload import Workload

STREAM_BAR, ORDER_BAR = 0.80, 0.95


def measure(work: Workload, rounds: int, against: str) -> list[Figure]:
    """The ratios asked for, and the rates behind them."""
    whole = replace(work, config={"keep_probability": 1.0})
    plain = {"plain": replace(work, name="plain"), "stream": replace(work, name="stream")}
    order = {
        "ordered": replace(whole, name="stream"),
        "unordered": replace(whole, name="unordered"),
    }
    contestants = {"plain": plain, "unordered": order, "both": plain | order}[against]
    firsts: list[float] = []

    def once(work: Workload) -> float:
        answer = run_child("contestant.py", asdict(work))
        if work.name == "stream":
            firsts.append(answer["first"])
        return float(answer["rate"])

    runs = {name: partial(once, contestant) for name, contestant in contestants.items()}
    results = alternate(runs, rounds)
    ratios = [
        Figure(name, median_ratio(results, above, below), bar, "higher", "x")
        for name, above, below, bar in (
            ("stream with crops / plain processes", "stream", "plain", STREAM_BAR),
            ("ordered / unordered stream", "ordered", "unordered", ORDER_BAR),
        )
        if above in results
    ]
    first = statistics.median(firsts)
    rates = {name: statistics.median(values) for name, values in results.items()}
    return [
        *ratios,
        *(
            Figure(f"tiles per second, {name}", value, None, "higher", "tiles/s")
            for name, value in rates.items()
        ),
        Figure("stream, time to the first batch", first, None, "lower", "s"),
    ]


def main() -> None:
    """Measures and prints."""
    options = parser(__doc__)
    options.add_argument("--tiles", type=int, default=64, help="distinct tiles (%(default)s)")
    options.add_argument("--seconds", type=float, default=20, help="of a run (%(default)s)")
    options.add_argument("--warm-up", type=float, default=8, help="seconds (%(default)s)")
    options.add_argument(
        "--against",
        choices=("both", "plain", "unordered"),
        default="both",
        help="what the stream is held against (%(default)s)",
    )
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles, arguments.seconds, arguments.warm_up = 4, 2, 1
    made = prepare(arguments.work, arguments.real, arguments.tiles)
    work = Workload(
        "", made.dataset, seconds=arguments.seconds, warm_up=arguments.warm_up, workers=2
    )
    report(measure(work, arguments.rounds, arguments.against), arguments, made.data)


if __name__ == "__main__":
    main()
