"""What checkpoints there are, why they stay, and whether they are whole."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from terrafm.config import build_config
from terrafm.errors import UsageError
from terrafm.storage import file_size, join, list_names
from terrafm.train.checkpoints.best import Best, find_checkpoint, held_reasons, read_best
from terrafm.train.checkpoints.intact import seen_damage
from terrafm.train.checkpoints.retention import Retention
from terrafm.train.checkpoints.store import (
    CHECKPOINTS,
    CheckpointGoneError,
    DamagedCheckpointError,
    is_there,
    list_checkpoints,
    read_marker,
    read_record,
)
from terrafm.train.checkpoints.validations import read_validations
from terrafm.train.run_folder import RunFolder
from terrafm.units import human_bytes

_LOSS = "loss"


def list_run(uri: str) -> dict[str, Any]:
    """The checkpoints of a run. Reads their small files only; `verify` reads all of them.

    Args:
        uri: a run's folder, or its `checkpoints`.

    Returns:
        JSON-able: uri; keep, the rules in words; validated, the metric of validation that decides
        which checkpoint is the best, or None; and
        checkpoints, oldest first: step, uri, bytes, saved_at (ISO 8601, UTC; None where a version
        before format 2 wrote it), metrics, validation (the value of `validated`, or None), kept
        (why it stays) and damage ("" where file sizes and state.json are right).

    Raises:
        UsageError: there are none, or a newer version of this library wrote them.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    rows: list[dict[str, Any]] = []
    # All that were seen may have gone before they were looked at: the run has newer ones.
    while not rows:
        found = _checkpoints_in(uri)
        rows = [row for step, checkpoint in found if (row := _seen_row(step, checkpoint))]
    # The newest knows the rules that hold now.
    rules = next((r["rules"] for r in reversed(rows) if r["rules"] is not None), None)
    why = {} if rules is None else rules.reasons(row["step"] for row in rows)
    folder = found[0][1].rpartition("/")[0]
    held, chosen = held_reasons(folder), read_best(folder)
    scores = read_validations(folder.rpartition("/")[0] or ".") if chosen is not None else []
    values = {line["step"]: line["metrics"].get(chosen.metric) for line in scores if chosen}
    for row in rows:
        del row["rules"]
        reason = held.get(row["step"])
        row["kept"] = [*why.get(row["step"], []), *([reason] if reason else [])]
        row["validation"] = values.get(row["step"])
    return {
        "uri": uri,
        "keep": _words(rules, chosen),
        "validated": None if chosen is None else chosen.metric,
        "checkpoints": rows,
    }


def render_list(result: dict[str, Any]) -> RenderableType:
    """The result of `list_run` for the terminal."""
    rows = result["checkpoints"]
    table = Table()
    table.add_column("step", justify="right", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("saved", no_wrap=True)
    validated = [result["validated"]] if result["validated"] else []
    table.add_column(_LOSS, justify="right", no_wrap=True)
    for name in validated:
        # A long name breaks where its parts do.
        table.add_column(name.replace("/", "/\n"), justify="right")
    table.add_column("kept as")
    table.add_column("state")
    for row in rows:
        values = [row["metrics"].get(_LOSS), *(row["validation"] for _ in validated)]
        table.add_row(
            f"{row['step']:,}",
            human_bytes(row["bytes"]),
            _local_time(row["saved_at"]),
            *(f"{value:#.4g}" if isinstance(value, int | float) else "" for value in values),
            # The column beside it names the metric.
            ", ".join(
                "best" if why == f"best {result['validated']}" else why for why in row["kept"]
            ),
            Text(row["damage"], style="red") if row["damage"] else "whole",
        )
    total = human_bytes(sum(row["bytes"] for row in rows))
    count = "1 checkpoint" if len(rows) == 1 else f"{len(rows)} checkpoints"
    head = Text(f"{count} in {result['uri']}, {total}", overflow="fold")
    keep = [Text(f"kept: {result['keep']}")] if result["keep"] else []
    return Group(head, table, *keep)


def verify(uri: str, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Reads every file of one checkpoint, or of all of a run, and compares it with its SHA-256.

    Args:
        uri: a checkpoint, a run's folder, or its `checkpoints`; `checkpoints/best` is the best
            one by the run's validation.
        progress: called with (checkpoints done, checkpoints in all).

    Returns:
        JSON-able: uri, checkpoints (their URIs), and faults: checkpoint, file, what is wrong.

    Raises:
        UsageError: there is no checkpoint, or a newer version of this library wrote it.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    uri = find_checkpoint(uri.rstrip("/"))
    if is_there(uri):
        return _verify(uri, [uri], progress)
    while True:
        result = _verify(uri, [checkpoint for _, checkpoint in _checkpoints_in(uri)], progress)
        # As in `list_run`.
        if result["checkpoints"]:
            return result


def _verify(
    uri: str, found: list[str], progress: Callable[[int, int], None] | None
) -> dict[str, Any]:
    faults, looked_at = [], []
    for done, checkpoint in enumerate(found, 1):
        damage = seen_damage(checkpoint)
        # Else its run has removed it meanwhile.
        if damage is not None:
            looked_at.append(checkpoint)
            faults += [{"checkpoint": checkpoint, "file": file, "why": why} for file, why in damage]
        if progress is not None:
            progress(done, len(found))
    return {"uri": uri, "checkpoints": looked_at, "faults": faults}


def summary(result: dict[str, Any]) -> str:
    """One line on what `verify` found."""
    faults, number = result["faults"], len(result["checkpoints"])
    if not faults:
        many = f" ({number} checkpoints)" if number > 1 else ""
        return f"{result['uri']} is whole{many}"
    first, more = faults[0], len(faults) - 1
    rest = f", and {more} more {'file' if more == 1 else 'files'}" if more else ""
    return (
        f"checkpoint {first['checkpoint']}: {first['file']} {first['why']}{rest}; a run passes "
        "over damaged checkpoints and goes on from the newest whole one"
    )


def render_verify(result: dict[str, Any]) -> RenderableType:
    """The result of `verify` for the terminal."""
    if not result["faults"]:
        return Text(summary(result))
    table = Table("checkpoint", "file", "what is wrong")
    for fault in result["faults"]:
        table.add_row(fault["checkpoint"].rpartition("/")[2], fault["file"], fault["why"])
    return table


def _checkpoints_in(uri: str) -> list[tuple[int, str]]:
    inner = RunFolder(uri).checkpoints
    folder = inner if CHECKPOINTS in list_names(uri) else uri
    found = list_checkpoints(folder)
    if not found:
        raise UsageError(
            f"{uri} holds no complete checkpoint: give a run's folder, its {CHECKPOINTS}, or a "
            "checkpoint with its complete.json"
        )
    return found


def _seen_row(step: int, uri: str) -> dict[str, Any] | None:
    """`_describe` of a checkpoint that its run may write anew meanwhile: damage is seen twice."""
    row = _describe(step, uri)
    return _describe(step, uri) if row is not None and row["damage"] else row


def _describe(step: int, uri: str) -> dict[str, Any] | None:
    """The row of a checkpoint; None where its run has removed it meanwhile."""
    row: dict[str, Any] = {"step": step, "uri": uri, "bytes": 0, "saved_at": None}
    row |= {"metrics": {}, "kept": [], "damage": "", "rules": None}
    try:
        files = read_marker(uri)["files"]
        row["bytes"] = sum(file["bytes"] for file in files.values())
        record = read_record(uri)
    except CheckpointGoneError:
        return None
    except DamagedCheckpointError as error:
        row["damage"] = str(error).removeprefix(f"checkpoint {uri}: ")
        return row if is_there(uri) else None
    row["saved_at"], row["metrics"] = record["saved_at"], record["metrics"]
    row["damage"] = _wrong_size(uri, files)
    if row["damage"] and not is_there(uri):
        return None
    try:
        begun = build_config({"train": record["config"]["train"]}, of_run=True)
        row["rules"] = Retention.of(begun.train)
    except (KeyError, UsageError):
        # Made by hand, or by a version with other settings.
        row["rules"] = None
    return row


def _wrong_size(uri: str, files: dict[str, Any]) -> str:
    for name, written in files.items():
        size = file_size(join(uri, name))
        if size is None:
            return f"{name} is missing"
        if size != written["bytes"]:
            return f"{name} has {size:,} of {written['bytes']:,} bytes"
    return ""


def _words(rules: Retention | None, chosen: Best | None) -> str:
    if rules is None:
        return ""
    parts = ["the newest" if rules.last == 1 else f"the newest {rules.last}"]
    if rules.every is not None:
        parts.append(f"every {rules.every} steps")
    if chosen is not None:
        parts.append(f"the best {chosen.metric}")
    return ", ".join(parts)


def _local_time(stamp: str | None) -> str:
    return "" if stamp is None else datetime.fromisoformat(stamp).astimezone().strftime("%F %R")
