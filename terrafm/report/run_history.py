"""What happened to a run, when, and what it cost: worker groups, faults, resizes, alarms."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.report.blocks import Level
from terrafm.report.run_record import RunRecord
from terrafm.train.advice import ALARMS
from terrafm.units import duration

_RUNNING, _VANISHED = "running", "vanished"
# Shares of metrics.jsonl by what a reader thinks of them.
_SHARES = {
    "computing": ("share_prepare", "share_teacher", "share_forward", "share_backward"),
    "waiting for data": ("data_wait",),
    "saving": ("share_checkpoint",),
    "reducing and updating": ("share_optimizer",),
    "other": ("share_other",),
}
_BESIDE_TRAINING = ("starting", "recovering", "repeating lost work", "not running")
# A long run of transient trouble must not fill the page.
_MOST_OF_A_KIND, _MOST = 40, 300


@dataclass
class Group:
    """Workers that trained together.

    Attributes:
        workers: how many.
        step: it went on from.
        started: seconds since 1970 at which it was started.
        facts: its `started` event.
        trained: when its first step was done; None where it came to none.
        ended: when it ended; of one that runs, now.
        ending: "finished", "stopped", "lost", "running" or "vanished": its command was killed.
        reason: why it ended, in words.
    """

    workers: int
    step: int
    started: float
    facts: dict[str, Any]
    trained: float | None = None
    ended: float = 0.0
    ending: str = _RUNNING
    reason: str = ""


@dataclass(frozen=True)
class Happening:
    """Something worth knowing on a run's time axis.

    Attributes:
        time: seconds since 1970; None where it is not known.
        step: finished steps then.
        level: how bad.
        text: what happened.
        cost: what it cost, in words; empty where it cost nothing.
        until_step: of what lasted.
    """

    time: float | None
    step: int | None
    level: Level
    text: str
    cost: str = ""
    until_step: int | None = None


class History:
    """The story of a run's worker groups, and an account of its time.

    Args:
        run: whose.
    """

    def __init__(self, run: RunRecord) -> None:
        self.run = run

    @cached_property
    def groups(self) -> list[Group]:
        """In order."""
        groups: list[Group] = []
        for event in self.run.events:
            kind, moment = event["event"], float(event["time"])
            if kind == "started":
                self._close_vanished(groups, moment)
                workers, step = event.get("workers", 0), event.get("step", 0)
                groups.append(Group(workers, step, moment, event))
            elif not groups or groups[-1].ending != _RUNNING:
                continue
            elif kind == "training":
                groups[-1].trained = groups[-1].trained or moment
            elif kind in ("stopped", "lost", "finished"):
                silent = float(event.get("seconds", 0.0)) if kind == "lost" else 0.0
                groups[-1].ended = max(moment - silent, groups[-1].started)
                groups[-1].ending = kind
                groups[-1].reason = event.get("reason") or ""
        if groups and groups[-1].ending == _RUNNING:
            if self.run.running:
                groups[-1].ended = self.run.now
            else:
                self._close_vanished(groups, math.inf)
        return groups

    def _close_vanished(self, groups: list[Group], before: float) -> None:
        """Ends a group whose driver was killed and could not say so, at its last sign of life."""
        if not groups or groups[-1].ending != _RUNNING:
            return
        last = groups[-1]
        times = self.run.column("time")
        signs = [last.started, last.trained or 0.0]
        for moments in (self._moments, times):
            inside = moments[(moments > last.started) & (moments < before)]
            signs += [float(inside.max())] if len(inside) else []
        last.ended, last.ending = float(max(signs)), _VANISHED
        last.reason = "the command ended without a word, or its machine was lost"

    @cached_property
    def _moments(self) -> NDArray[np.float64]:
        return np.array([e["time"] for e in self.run.events], dtype=np.float64)

    def _next(self, kinds: tuple[str, ...], moment: float) -> dict[str, Any]:
        """The first event of some kinds from a moment on; empty where there is none."""
        if kinds not in self._by_kinds:
            found = [e for e in self.run.events if e["event"] in kinds]
            self._by_kinds[kinds] = sorted(found, key=lambda e: e["time"])
        events = self._by_kinds[kinds]
        place = bisect_left(events, moment, key=lambda e: e["time"])
        return events[place] if place < len(events) else {}

    @cached_property
    def _by_kinds(self) -> dict[tuple[str, ...], list[dict[str, Any]]]:
        return {}

    @cached_property
    def account(self) -> dict[str, float]:
        """What the run's time went into -> seconds, from its first start to its end or now."""
        account = {
            "starting": 0.0,
            "recovering": 0.0,
            "repeating lost work": 0.0,
            "not running": 0.0,
        }
        training = 0.0
        before: Group | None = None
        for group in self.groups:
            fresh = before is None or before.ending == _VANISHED
            trained = group.ended if group.trained is None else group.trained
            account["starting" if fresh else "recovering"] += max(trained - group.started, 0.0)
            training += max(group.ended - trained, 0.0)
            if before is not None:
                gap = max(group.started - before.ended, 0.0)
                account["not running" if before.ending == _VANISHED else "recovering"] += gap
            before = group
        repeated = sum(
            float(e.get("seconds", 0)) for e in self.run.events if e["event"] == "resumed"
        )
        account["repeating lost work"] = min(repeated, training)
        useful = training - account["repeating lost work"]
        shares = self.shares()
        parts = {name: useful * share for name, share in shares.items()} or {"training": useful}
        return {name: seconds for name, seconds in (parts | account).items() if seconds > 0}

    def shares(self) -> dict[str, float]:
        """What the steps' time goes into -> share, over all lines; they add up to 1."""
        run = self.run
        if not run.lines:
            return {}
        # The first line of a group has the start of the data stream in it.
        firsts = np.searchsorted(run.steps, [g.step for g in self.groups], side="right")
        weights = np.diff(run.steps, prepend=0.0) / np.maximum(run.column("tiles_per_second"), 1e-9)
        weights[firsts[firsts < len(weights)]] = 0.0
        weights[~np.isfinite(weights)] = 0.0
        sums = {
            name: float(sum(np.nansum(weights * run.column(key)) for key in keys))
            for name, keys in _SHARES.items()
        }
        whole = sum(sums.values())
        return {name: part / whole for name, part in sums.items()} if whole > 0 else {}

    @cached_property
    def cost(self) -> dict[str, float]:
        """`seconds` from start to end, and `gpu_hours`, `core_hours` or `worker_hours` held."""
        held = {"gpu_hours": 0.0, "core_hours": 0.0, "worker_hours": 0.0}
        for group in self.groups:
            hours = max(group.ended - group.started, 0.0) / 3600
            held["gpu_hours"] += hours * group.facts.get("gpus", 0)
            held["core_hours"] += hours * group.facts.get("cpus", 0.0)
            held["worker_hours"] += hours * group.workers
        whole = self.groups[-1].ended - self.groups[0].started if self.groups else 0.0
        return {"seconds": whole} | {name: hours for name, hours in held.items() if hours}

    @property
    def cost_in_words(self) -> str:
        """What was held so far, in the unit that is paid for."""
        for name, words in (
            ("gpu_hours", "GPU"),
            ("core_hours", "core"),
            ("worker_hours", "worker"),
        ):
            if hours := self.cost.get(name):
                return f"{hours:.3g} {words} hours"
        return "not known"

    @cached_property
    def alarms(self) -> list[tuple[str, int, int]]:
        """Name of an alarm, first and last step of the lines at which it held; in order."""
        found: list[tuple[str, int, int]] = []
        held: dict[str, int] = {}
        last = 0
        for line in self.run.lines:
            raised = line.get("alarm")
            now = {a for a in raised if isinstance(a, str)} if isinstance(raised, list) else set()
            found += [(name, held.pop(name), last) for name in [*held] if name not in now]
            held |= {name: line["step"] for name in sorted(now) if name not in held}
            last = line["step"]
        found += [(name, first, last) for name, first in held.items()]
        return sorted(found, key=lambda one: (one[1], one[0]))

    @property
    def open_alarms(self) -> list[tuple[str, int]]:
        """Alarms that hold at the last line, with their first step."""
        last = int(self.run.steps[-1]) if len(self.run.lines) else 0
        return [(name, first) for name, first, until in self.alarms if until == last]

    def time_at(self, step: int) -> float | None:
        """When a step of the surviving history was done."""
        times = self.run.column("time")
        row = int(np.searchsorted(self.run.steps, step))
        if row >= len(times) or math.isnan(times[row]):
            return None
        return float(times[row])

    @cached_property
    def happenings(self) -> list[Happening]:
        """All that is worth a mark, by time; of each kind a bounded number."""
        found = [*self._of_groups(), *self._of_events(), *self._of_lines()]
        kept, counts = [], dict[str, int]()
        for one in found:
            kind = one.text.partition(":")[0]
            counts[kind] = counts.get(kind, 0) + 1
            if counts[kind] <= _MOST_OF_A_KIND:
                kept.append(one)
        for kind, count in counts.items():
            if count > _MOST_OF_A_KIND:
                more = f"{kind}: {count - _MOST_OF_A_KIND} more of the kind are not shown"
                kept.append(Happening(self.run.last_sign, None, "note", more))
        if len(kept) > _MOST:
            more = f"{len(kept) - _MOST} more are not shown"
            kept = [*kept[:_MOST], Happening(self.run.last_sign, None, "note", more)]
        return sorted(kept, key=lambda one: (one.time or 0.0, one.step or 0))

    def _of_groups(self) -> Iterator[Happening]:
        for number, group in enumerate(self.groups):
            before = self.groups[number - 1] if number else None
            if before is None:
                yield Happening(
                    group.started, group.step, "good", f"Started with {_workers(group.workers)}"
                )
            following = self.groups[number + 1] if number + 1 < len(self.groups) else None
            if group.ending == _RUNNING:
                continue
            level: Level = "bad" if group.ending in ("lost", _VANISHED) else "note"
            if group.ending == "finished":
                yield Happening(group.ended, self.run.done, "good", "Finished: all steps are done")
                continue
            cause = {"lost": "Fault", _VANISHED: "Killed"}.get(group.ending, "Saved and stopped")
            text = f"{cause}: {group.reason}" if group.reason else cause
            if following is not None and following.workers != group.workers:
                verb = "grew" if following.workers > group.workers else "shrank"
                text += f"; {verb} from {group.workers} to {_workers(following.workers)}"
            step = self._step_at_end(group, following)
            yield Happening(group.ended, step, level, text, self._cost_of(group, following))

    def _step_at_end(self, group: Group, following: Group | None) -> int:
        if group.ending != _VANISHED:
            return int(self._next(("lost", "stopped"), group.ended).get("step", group.step))
        return following.step if following is not None else self.run.done

    def _cost_of(self, group: Group, following: Group | None) -> str:
        """What the end of a group cost until its steps were done again."""
        if following is None:
            return "has not gone on since"
        until = following.trained or following.ended
        pause = duration(max(until - group.ended, 0.0))
        waits = following.trained is None and following.ending == _RUNNING
        parts = [f"{pause} so far" if waits else f"{pause} until it trained again"]
        if group.ending == "lost":
            again = self._next(("resumed",), group.ended)
            if again.get("steps"):
                seconds = duration(float(again.get("seconds", 0.0)))
                parts.append(f"{again['steps']:,} steps ({seconds} of work) done again")
        elif group.ending == _VANISHED:
            saved = self.time_at(following.step)
            if saved is not None and saved > group.started and group.ended > saved:
                parts.append(f"at least {duration(group.ended - saved)} of work done again")
            parts.append(f"went on from step {following.step:,}")
        return ", ".join(parts)

    def _of_events(self) -> Iterator[Happening]:
        titles: dict[str, tuple[Level, str]] = {
            "hung": ("bad", "Hung"),
            "waiting": ("note", "Waited"),
            "warning": ("note", "Warning"),
            "damaged": ("bad", "Damaged checkpoint passed over"),
            "not_validated": ("note", "Not validated"),
            "extended": ("note", "Extended"),
        }
        for event in self.run.events:
            if event["event"] not in titles:
                continue
            level, title = titles[event["event"]]
            why = event.get("warning") or event.get("reason") or ""
            if event["event"] == "extended":
                why = f"to {event.get('steps', 0):,} steps"
            yield Happening(
                event["time"], event.get("step"), level, f"{title}: {why}" if why else title
            )

    def _of_lines(self) -> Iterator[Happening]:
        for name, first, last in self.alarms:
            meaning = ALARMS.get(name, "").partition(". ")[0]
            text = f"Alarm {name}: {meaning}" if meaning else f"Alarm {name}"
            span = f"lasted {last - first + 1:,} steps"
            yield Happening(self.time_at(first), first, "bad", text, span, last)
        for step in sorted({line["step"] for line in self.run.nonfinite}):
            yield Happening(
                self.time_at(step + 1),
                step + 1,
                "bad",
                "A loss or gradient was not finite: the step was left out",
                "one update",
            )


def _workers(count: int) -> str:
    return f"{count:,} worker{'' if count == 1 else 's'}"
