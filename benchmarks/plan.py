"""Time and memory of the plan of an epoch, for 6.1 and 18.7 million tiles of 11 classes.

    python benchmarks/plan.py [--json]

A plan with its hash and the first epoch, each time in a fresh process; the memory is the
process's peak (10^9 bytes), Python, NumPy and the tiles' classes included. Bars: 10 s and 1 GB,
30 s and 2.5 GB.
"""

import statistics

from common import Figure, alternate, parse, parser, report, run_child

BARS = {6_100_000: (10.0, 1.0), 18_700_000: (30.0, 2.5)}


def measure(scale: float, rounds: int) -> list[Figure]:
    """Medians for all sizes, each times `scale`."""
    peaks: dict[int, list[float]] = {tiles: [] for tiles in BARS}

    def once(tiles: int) -> float:
        answer = run_child("plan_once.py", {"tiles": int(tiles * scale), "exponent": 0.5})
        peaks[tiles].append(answer["gigabytes"])
        return float(answer["seconds"])

    results = alternate({str(t): lambda t=t: once(t) for t in BARS}, rounds)
    figures = []
    for tiles, (seconds, gigabytes) in BARS.items():
        name = f"plan of an epoch, {tiles * scale / 1e6:.3g} M tiles"
        took = statistics.median(results[str(tiles)])
        figures.append(Figure(f"{name}, time", took, seconds, "lower", "s"))
        peak = statistics.median(peaks[tiles])
        figures.append(Figure(f"{name}, peak memory", peak, gigabytes, "lower", "GB"))
    return figures


def main() -> None:
    """Measures and prints."""
    arguments = parse(parser(__doc__))
    report(measure(0.01 if arguments.quick else 1.0, arguments.rounds), arguments)


if __name__ == "__main__":
    main()
