"""Checkpoints free of world size and ZeRO stage: complete or invisible, checked when read.

A checkpoint is the folder `step_00000040` of a run's `checkpoints/`, where 40 steps are done:

    student.safetensors    encoder and head
    teacher.safetensors    the same names, moving averages
    optimizer.safetensors  moments per parameter, update count per group
    centers.safetensors    both centers
    state.json             step, cursor, dataset, data contract, configuration, versions
    complete.json          bytes and SHA-256 of every other file; written last

A folder without a matching `complete.json` is not a checkpoint. On a disk the whole folder
appears by one rename; in an object store the marker's upload is the commit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load, save_file
from torch import Tensor

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import is_local, join, list_names, read_bytes, remove, resolve, upload
from terrafm.train.engine import EngineState

FORMAT_VERSION = 1
MARKER = "complete.json"
_STAGING = ".staging-"


@dataclass
class TrainingState:
    """Everything a run needs to go on.

    Attributes:
        step: finished optimizer steps.
        engine: student and optimizer.
        teacher: parameter name -> float32 tensor.
        centers: buffer name -> (K,) float32 tensor.
        record: JSON-able: cursor, dataset, contract, configuration, library versions.
    """

    step: int
    engine: EngineState
    teacher: dict[str, Tensor]
    centers: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)


class DamagedCheckpointError(TerraFMError):
    """A checkpoint whose files do not match its marker."""


def step_name(step: int) -> str:
    """Folder name of the checkpoint after `step` steps."""
    return f"step_{step:08d}"


def save_checkpoint(folder: str, state: TrainingState) -> str:
    """Writes the checkpoint of `state.step` into `folder` so that it is complete or invisible.

    Args:
        folder: URI of the run's `checkpoints`.
        state: what to write; tensors on the CPU.

    Returns:
        URI of the checkpoint.
    """
    target = join(folder, step_name(state.step))
    path = resolve(target)[1]
    local = is_local(folder)
    parent = Path(resolve(folder)[1]).parent if local else None
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=_STAGING, dir=parent))
    try:
        tensors = {
            "student": state.engine.student,
            "teacher": state.teacher,
            "optimizer": state.engine.optimizer,
            "centers": state.centers,
        }
        for name, group in tensors.items():
            save_file(group, staging / f"{name}.safetensors")
        document = {"format_version": FORMAT_VERSION, "step": state.step, **state.record}
        (staging / "state.json").write_text(json.dumps(document, indent=1))
        files = {p.name: _digest(p.read_bytes()) for p in sorted(staging.iterdir())}
        marker = {"format_version": FORMAT_VERSION, "files": files}
        (staging / MARKER).write_text(json.dumps(marker, indent=1))
        if local:
            staging.chmod(0o755)
            Path(path).parent.mkdir(exist_ok=True)
            if Path(path).exists():
                shutil.rmtree(path)
            staging.rename(path)
        else:
            for name in [*files, MARKER]:
                upload(staging / name, join(target, name))
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def list_checkpoints(folder: str) -> list[tuple[int, str]]:
    """All checkpoints with a marker as (step, URI), oldest first."""
    found = []
    for name in list_names(folder):
        uri = join(folder, name)
        if name.startswith("step_") and name[5:].isdigit() and MARKER in list_names(uri):
            found.append((int(name[5:]), uri))
    return sorted(found)


def read_record(uri: str) -> dict[str, Any]:
    """The checkpoint's `state.json`, checked against the marker.

    Raises:
        UsageError: there is no checkpoint, or a newer version of this library wrote it.
        DamagedCheckpointError: a file is missing or differs from what was written.
    """
    record: dict[str, Any] = json.loads(_read_checked(uri, "state.json", _read_marker(uri)))
    return record


def load_checkpoint(uri: str) -> TrainingState:
    """Reads and checks a whole checkpoint.

    Raises:
        UsageError, DamagedCheckpointError: as `read_record`.
    """
    marker = _read_marker(uri)
    record = json.loads(_read_checked(uri, "state.json", marker))
    step = record.pop("step")
    record.pop("format_version")
    return TrainingState(
        step=step,
        engine=EngineState(_tensors(uri, "student", marker), _tensors(uri, "optimizer", marker)),
        teacher=_tensors(uri, "teacher", marker),
        centers=_tensors(uri, "centers", marker),
        record=record,
    )


def load_teacher(uri: str) -> dict[str, Tensor]:
    """Only the teacher's tensors, checked.

    Raises:
        UsageError, DamagedCheckpointError: as `read_record`.
    """
    return _tensors(uri, "teacher", _read_marker(uri))


def verify_checkpoint(uri: str) -> None:
    """Reads every file and compares it with the marker.

    Raises:
        UsageError, DamagedCheckpointError: as `read_record`.
    """
    marker = _read_marker(uri)
    for name in marker["files"]:
        _read_checked(uri, name, marker)


def newest_intact(folder: str) -> tuple[str | None, list[str]]:
    """The newest checkpoint that is whole.

    Returns:
        Its URI, or None where no checkpoint was ever completed; and one line for each damaged
        checkpoint that was passed over.

    Raises:
        DamagedCheckpointError: there are checkpoints, and none of them is whole.
    """
    complaints = []
    for _, uri in reversed(list_checkpoints(folder)):
        try:
            verify_checkpoint(uri)
        except DamagedCheckpointError as error:
            complaints.append(str(error))
        else:
            return uri, complaints
    if complaints:
        raise DamagedCheckpointError(f"no checkpoint in {folder} is whole: {complaints[0]}")
    return None, []


def prune_checkpoints(folder: str, keep: int) -> None:
    """Removes all but the `keep` newest checkpoints, marker first."""
    for _, uri in list_checkpoints(folder)[:-keep]:
        remove(join(uri, MARKER))
        remove(uri)


def remove_staging(run_folder: str) -> None:
    """Clears what a killed writer left behind in a local run folder."""
    if is_local(run_folder):
        for path in Path(resolve(run_folder)[1]).glob(f"{_STAGING}*"):
            shutil.rmtree(path, ignore_errors=True)


def _digest(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _read_marker(uri: str) -> dict[str, Any]:
    try:
        marker: dict[str, Any] = json.loads(read_bytes(join(uri, MARKER)))
        version = marker["format_version"]
    except FileNotFoundError:
        raise UsageError(f"{uri} is not a complete checkpoint: it has no {MARKER}") from None
    except (ValueError, KeyError, TypeError):
        raise DamagedCheckpointError(f"checkpoint {uri}: {MARKER} is not readable") from None
    if version > FORMAT_VERSION:
        raise UsageError(
            f"checkpoint {uri} has format {version}, this version reads up to {FORMAT_VERSION}: "
            "upgrade terrafm"
        )
    return marker


def _read_checked(uri: str, name: str, marker: dict[str, Any]) -> bytes:
    try:
        content = read_bytes(join(uri, name))
    except FileNotFoundError:
        raise DamagedCheckpointError(f"checkpoint {uri}: {name} is missing") from None
    if _digest(content) != marker["files"].get(name):
        raise DamagedCheckpointError(f"checkpoint {uri}: {name} is not what was written")
    return content


def _tensors(uri: str, name: str, marker: dict[str, Any]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = load(_read_checked(uri, f"{name}.safetensors", marker))
    return tensors
