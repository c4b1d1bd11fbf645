"""The Ray Data stream with crops against the same work in plain processes; and what order costs.

    python benchmarks/stream.py [--json]

- Stream: `terrafm.data.stream.stream_batches`, one rank, two data CPUs, Ray's workers at the
  niceness of everything else; the consumer takes batches and does nothing. Bar: at least 0.80 of
  plain processes.
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


def measure(work: Workload, rounds: int) -> list[Figure]:
    """Both ratios, and the rates behind them."""
    whole = replace(work, config={"keep_probability": 1.0})
    contestants = {
        "plain": replace(work, name="plain"),
        "stream": replace(work, name="stream"),
        "ordered": replace(whole, name="stream"),
        "unordered": replace(whole, name="unordered"),
    }
    firsts: list[float] = []

    def once(work: Workload) -> float:
        answer = run_child("contestant.py", asdict(work))
        if work.name == "stream":
            firsts.append(answer["first"])
        return float(answer["rate"])

    runs = {name: partial(once, contestant) for name, contestant in contestants.items()}
    results = alternate(runs, rounds)
    against_plain = median_ratio(results, "stream", "plain")
    order = median_ratio(results, "ordered", "unordered")
    first = statistics.median(firsts)
    rates = {name: statistics.median(values) for name, values in results.items()}
    return [
        Figure("stream with crops / plain processes", against_plain, STREAM_BAR, "higher", "x"),
        Figure("ordered / unordered stream", order, ORDER_BAR, "higher", "x"),
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
    arguments = parse(options)
    if arguments.quick:
        arguments.tiles, arguments.seconds, arguments.warm_up = 4, 2, 1
    made = prepare(arguments.work, arguments.real, arguments.tiles)
    work = Workload(
        "", made.dataset, seconds=arguments.seconds, warm_up=arguments.warm_up, workers=2
    )
    report(measure(work, arguments.rounds), arguments, made.data)


if __name__ == "__main__":
    main()
