"""The story of a run: what happened to its workers, what was lost, how it went on.

One line of events.jsonl for each event, written by the driver:

    started    a worker group trains: `workers`, `step` it goes on from; what it runs on, as
               `terrafm.train.driver.hardware.group_facts` has it
    training   its first step is done: `seconds` since the fault or stop before it
    lost       workers failed after `step`: `reason`, `seconds` since their last word
    stopping   workers were asked to save and stop: `reason`
    stopped    they did, at `step`
    hung       no rank moved on: `reason` names the rank
    waiting    for machines: `reason`
    resumed    from `step` after a failure; `steps`, `seconds` of work are repeated
    warning    of a rank: `warning`; a checkpoint that could not be written, for one
    damaged    a checkpoint that is passed over
    validated  the checkpoint at `step`: `metric`, `value`, whether it is the `best`
    not_validated  it could not be: `reason`; `last` where it is not tried again
    extended   to `steps` from `steps_before`, at `step`; `lr`, `weight_decay`, `teacher_momentum`
               of the last step on the old schedules and of the next on the new ones
    finished   at `step`
"""

from __future__ import annotations

import logging
import time
from typing import Any

from terrafm.storage import append_json_line, read_json_lines
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)


class EventLog:
    """events.jsonl of one run; keeps what earlier commands wrote.

    Args:
        run_folder: URI of the run.
    """

    def __init__(self, run_folder: str) -> None:
        self._uri = RunFolder(run_folder).events

    def add(self, event: str, text: str | None = None, **facts: Any) -> None:
        """Writes one line; where there is a text, a person is told as well."""
        if text is not None:
            logger.warning("%s", text)
        append_json_line(self._uri, {"time": round(time.time(), 3), "event": event, **facts})


def read_events(run_folder: str) -> list[dict[str, Any]]:
    """All events of a run, oldest first; empty where there are none."""
    return read_json_lines(RunFolder(run_folder).events)
