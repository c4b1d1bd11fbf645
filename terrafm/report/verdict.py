"""How a run is, in words: what its owner should know before anything else."""

from __future__ import annotations

import math

import numpy as np

from terrafm.report.blocks import Level, Verdict
from terrafm.report.run_history import History
from terrafm.train.advice import ALARMS, BOTTLENECKS
from terrafm.units import duration

# Of the time: below it, waiting is not worth a reader's thought.
_NOTICEABLE = 0.15
# Of the run's time for starts, faults and repeated work.
_MUCH_LOST = 0.2
_INTO = {
    "starting": "went into starting",
    "recovering": "into recovering",
    "repeating lost work": "into repeating work that was lost",
}


def verdict_of(history: History, name: str = "") -> Verdict:
    """The verdict on a run.

    Args:
        history: of the run.
        name: shown with it, where a page has several runs.
    """
    run = history.run
    level, state = _state(history)
    headline = ", ".join([state, *_progress(history)])
    if waits := _waits(history):
        headline += f"; {waits}"
    details = [*_advice(history), *_lost(history)]
    if run.best is not None:
        details.append(
            f"The best checkpoint{'' if run.finished else ' so far'} is that of step "
            f"{run.best['step']:,}, by {run.best['metric']}: {run.best['value']:.4g}."
        )
    if history.groups:
        since = duration(history.cost["seconds"])
        details.append(
            f"It {'has cost' if run.running else 'cost'} {history.cost_in_words} over {since}."
        )
    total = run.total_steps
    done = None if not total else min(1.0, run.done / total)
    return Verdict(name, level, headline, details, done)


def _state(history: History) -> tuple[Level, str]:
    run = history.run
    losses = run.column("loss")
    if run.failure and not run.finished:
        return "bad", "failed"
    if not run.lines:
        return ("note", "starting") if run.running else ("note", "no step done yet")
    if run.running and history.groups and history.groups[-1].trained is None:
        again = len(history.groups) > 1
        return "note", "recovering, not training yet" if again else "starting"
    if history.open_alarms:
        if run.finished:
            return "bad", "finished with an alarm"
        return (
            "bad",
            "in trouble: alarm" if run.running else "stopped before its end, with an alarm",
        )
    # A step whose samples were all left out has no loss at all.
    if "loss" in run.lines[-1] and math.isnan(losses[-1]):
        return "bad", "the last step's loss is not finite"
    if run.finished:
        return "good", "finished"
    if not run.running:
        return "bad", "stopped before its end"
    if _silent_seconds(history) is not None:
        return "bad", "silent"
    return ("note", "healthy now") if history.alarms else ("good", "healthy")


def _silent_seconds(history: History) -> float | None:
    """How long a run that goes on has written nothing; None where that is usual."""
    run = history.run
    times = run.column("time")
    gaps = np.diff(times[-100:])
    if run.last_sign is None or not np.isfinite(gaps).any():
        return None
    silent = run.now - run.last_sign
    return silent if silent > max(300.0, 20 * float(np.nanmedian(gaps))) else None


def _progress(history: History) -> list[str]:
    run = history.run
    total = run.total_steps
    if not total:
        return [f"{run.done:,} steps done"]
    if run.finished:
        return [f"{run.done:,} steps"]
    parts = [f"{100 * run.done / total:.0f} % done"]
    seconds = run.seconds_per_step
    training = bool(history.groups) and history.groups[-1].trained is not None
    if run.running and training and seconds is not None and run.done:
        parts.append(f"ends in about {duration(seconds * (total - run.done))}")
    return parts


def _waits(history: History) -> str:
    shares = history.shares()
    if not shares:
        return ""
    waiting = round(100 * shares["waiting for data"])
    waits, saves = ("waits", "saves") if history.run.running else ("waited", "saved")
    told = [
        f"{waits} for data {waiting} % of its training time"
        if waiting
        else f"hardly {waits} for data"
    ]
    if shares["saving"] >= 0.05:
        told.append(f"{saves} {100 * shares['saving']:.0f} %")
    return ", ".join(told)


def _advice(history: History) -> list[str]:
    run = history.run
    told = []
    if run.failure:
        told.append(f"It failed: {run.failure}")
    for name, first in history.open_alarms:
        told.append(
            f"Alarm {name} since step {first:,}: {ALARMS.get(name, 'see docs/metrics.md')}."
        )
    for name, first, last in history.alarms:
        if (name, first) not in history.open_alarms:
            told.append(f"Alarm {name} lasted from step {first:,} to {last:,} and is over.")
    if (silent := _silent_seconds(history)) is not None and run.running:
        told.append(f"It has written nothing for {duration(silent)}.")
    if not run.finished and not run.running and run.lines:
        command = f": {run.command}" if run.command else ""
        told.append(f"The same command goes on from the newest whole checkpoint{command}")
    name = str(run.lines[-1].get("bottleneck")) if run.lines else ""
    if name in BOTTLENECKS:
        share = history.run.column("bottleneck_share")[-1]
        if share >= _NOTICEABLE:
            told.append(f"{100 * share:.0f} % of the last minutes are {BOTTLENECKS[name]}.")
    if run.nonfinite:
        steps = len({line["step"] for line in run.nonfinite})
        left = "1 step was" if steps == 1 else f"{steps:,} steps were"
        told.append(f"{left} left out because a loss or gradient was not finite.")
    if run.quarantined:
        arrays = len(run.quarantined)
        left = "1 damaged band array was" if arrays == 1 else f"{arrays:,} damaged band arrays were"
        told.append(f"{left} left out.")
    return told


def _lost(history: History) -> list[str]:
    account = history.account
    lost = {name: account.get(name, 0.0) for name in _INTO}
    idle = account.get("not running", 0.0)
    whole = sum(account.values())
    faults = sum(g.ending in ("lost", "vanished") for g in history.groups[:-1])
    faults += bool(history.groups) and history.groups[-1].ending in ("lost", "vanished")
    if not faults and (not whole or sum(lost.values()) + idle < _MUCH_LOST * whole):
        return []
    told = ", ".join(f"{duration(s)} {_INTO[name]}" for name, s in lost.items() if s >= 1)
    count = f"{faults} fault{'' if faults == 1 else 's'}" if faults else "No fault"
    if idle >= 1:
        told += f"{'; ' if told else ''}it stood still for {duration(idle)}"
    if not told:
        return [f"{count}, which cost no time."]
    return [f"{count}. Of {duration(whole)} in all, {told}."]
