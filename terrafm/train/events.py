"""The story of a run: what happened to its workers, what was lost, how it went on.

One line of events.jsonl for each event, written by the driver:

    started    a worker group trains: `workers`, `step` it goes on from
    training   its first step is done: `seconds` since the fault or stop before it
    lost       workers failed after `step`: `reason`, `seconds` since their last word
    stopping   workers were asked to save and stop: `reason`
    stopped    they did, at `step`
    hung       no rank moved on: `reason` names the rank
    waiting    for machines: `reason`
    resumed    from `step` after a failure; `steps`, `seconds` of work are done again
    warning    of a rank: `warning`; a checkpoint that could not be written, for one
    damaged    a checkpoint that is passed over
    validated  the checkpoint at `step`: `metric`, `value`, whether it is the `best`
    not_validated  it could not be: `reason`; `last` where it is not tried again
    finished   at `step`
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from terrafm.storage import exists, is_local, join, read_bytes, resolve, to_json, write_bytes

logger = logging.getLogger(__name__)

EVENTS_FILE = "events.jsonl"


class EventLog:
    """events.jsonl of one run; keeps what earlier commands wrote.

    Args:
        run_folder: URI of the run.
    """

    def __init__(self, run_folder: str) -> None:
        self._uri = join(run_folder, EVENTS_FILE)
        self._local = is_local(run_folder)
        self._lines = b""
        if not self._local and exists(self._uri):
            self._lines = read_bytes(self._uri)

    def add(self, event: str, text: str | None = None, **facts: Any) -> None:
        """Writes one line; where there is a text, a person is told as well."""
        if text is not None:
            logger.warning("%s", text)
        line = {"time": round(time.time(), 3), "event": event, **facts}
        content = (to_json(line) + "\n").encode()
        if self._local:
            with open(resolve(self._uri)[1], "ab") as file:
                file.write(content)
        else:
            # Object stores take no appends.
            self._lines += content
            write_bytes(self._uri, self._lines)


def read_events(run_folder: str) -> list[dict[str, Any]]:
    """All events of a run, oldest first; empty where there are none."""
    uri = join(run_folder, EVENTS_FILE)
    if not exists(uri):
        return []
    return [json.loads(line) for line in read_bytes(uri).decode().splitlines()]
