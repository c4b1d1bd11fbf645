"""Checkpoints free of world size and ZeRO stage: complete or invisible, checked when read.

A checkpoint is the folder `step_00000040` of a run's `checkpoints/`, where 40 steps are done:

    student.safetensors    encoder and head
    teacher.safetensors    the same names, moving averages
    optimizer.safetensors  moments per parameter, update count per group
    centers.safetensors    all centers
    state.json             step, time, metrics, cursor, dataset, contract, configuration, versions
    complete.json          bytes and SHA-256 of every other file; written last

A folder without a matching `complete.json` is not a checkpoint. On a disk the whole folder
appears by one rename; in an object store the marker's upload is the commit. Nothing in it is a
pickle. Format 1 had neither time nor metrics and is read as if they were unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor
from typing_extensions import TypedDict

from terrafm.config import Config
from terrafm.errors import TerraFMError, UsageError
from terrafm.models.contract import WeightsContract
from terrafm.storage import (
    is_local,
    join,
    list_names,
    parse_record,
    read_bytes,
    remove,
    remove_empty,
    remove_files,
    resolve,
    upload,
)
from terrafm.storage.faults import explain, one_line
from terrafm.storage.limits import WHOLE_FILE_BYTES
from terrafm.storage.records import Count, open_keys, validated
from terrafm.train.checkpoints.files import (
    FILES,
    MARKER,
    STATE,
    Digest,
    digest_of,
    write_json,
    write_tensors,
)
from terrafm.train.checkpoints.staging import rename, staging_folder
from terrafm.train.run_folder import CHECKPOINTS as CHECKPOINTS
from terrafm.train.run_folder import step_name
from terrafm.train.step.engine import EngineState

FORMAT_VERSION = 2
HEAD = ("format_version", "step", "saved_at", "metrics")
"""What state.json holds beside a state's record."""


def _check_time(stamp: str) -> str:
    datetime.fromisoformat(stamp)
    return stamp


@open_keys
class DatasetOf(TypedDict):
    """The dataset that a run trains on."""

    fingerprint: str


@open_keys
class _Cursor(TypedDict):
    consumed: NotRequired[Count]


@open_keys
class _Averaged(TypedDict):
    step: Count


@open_keys
class _Record(TypedDict):
    """What state.json says; the contract and the settings are held against theirs when needed."""

    step: Count
    saved_at: NotRequired[Annotated[str, AfterValidator(_check_time)] | None]
    metrics: NotRequired[dict[str, Any]]
    cursor: NotRequired[_Cursor]
    dataset: NotRequired[DatasetOf]
    contract: NotRequired[dict[str, Any]]
    config: NotRequired[dict[str, dict[str, Any]]]
    versions: NotRequired[dict[str, str]]
    averaged: NotRequired[list[_Averaged]]


def _check_inside(name: str) -> str:
    """What a marker names is read, and must lie in the checkpoint."""
    if not name.isprintable() or name in ("", ".", "..") or set(name) & set("/\\"):
        raise ValueError("must name a file of the checkpoint's folder")
    return name


@open_keys
class _File(TypedDict):
    bytes: Count
    sha256: str


class _Files(TypedDict):
    files: dict[Annotated[str, AfterValidator(_check_inside)], _File]


class _Marker(TypedDict):
    """What complete.json says, in every version."""

    format_version: Count


@dataclass
class TrainingState:
    """Everything a run needs to go on.

    Attributes:
        step: finished optimizer steps.
        engine: student and optimizer.
        teacher: parameter name -> float32 tensor.
        centers: buffer name -> (K,) float32 tensor.
        record: JSON-able: cursor, dataset, contract, configuration, library versions.
        metrics: the newest line of metrics.jsonl; empty where there was none.
        uri: of the checkpoint that it was read from, for errors.
    """

    step: int
    engine: EngineState
    teacher: dict[str, Tensor]
    centers: dict[str, Tensor]
    record: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    uri: str = "the checkpoint"

    def file(self, name: str) -> str:
        """URI of the file that a part of it was read from."""
        return join(self.uri, f"{name}.safetensors")


class CheckpointGoneError(UsageError):
    """There is no checkpoint, or no longer."""


class DamagedCheckpointError(TerraFMError):
    """A checkpoint whose files do not match its marker."""


def step_of(name: str) -> int | None:
    """The step that a folder's name stands for; None where it is no checkpoint's name.

    A step has one name only: `step_6` is none, a copy that somebody made perhaps.
    """
    step = number_in(name)
    return step if step is not None and name == step_name(step) else None


def number_in(name: str) -> int | None:
    """The number after `step_` in a name, however it is written; None without one."""
    number = name.removeprefix("step_")
    return int(number) if number != name and number.isdecimal() else None


def save_checkpoint(folder: str, state: TrainingState) -> str:
    """Writes the checkpoint of `state.step` into `folder` so that it is complete or invisible.

    Args:
        folder: URI of the run's `checkpoints`.
        state: what to write; tensors on the CPU.

    Returns:
        URI of the checkpoint.

    Raises:
        StoreRefusedError, StoreFailedError: it could not be written; nothing of it is visible,
            and what was there before still is.
    """
    target = join(folder, step_name(state.step))
    tensors = {
        "student": state.engine.student,
        "teacher": state.teacher,
        "optimizer": state.engine.optimizer,
        "centers": state.centers,
    }
    head = {"step": state.step, "metrics": state.metrics}
    run_folder = Path(resolve(folder)[1]).parent if is_local(folder) else None
    write_checkpoint(target, tensors, head | state.record, run_folder)
    return target


def write_checkpoint(
    target: str,
    tensors: Mapping[str, Mapping[str, Tensor]],
    document: Mapping[str, Any],
    scratch: Path | None,
) -> None:
    """Writes one folder of tensors with its marker, complete or invisible.

    Args:
        target: URI of the checkpoint.
        tensors: file name without suffix -> name -> tensor on the CPU.
        document: what state.json holds beside format and time.
        scratch: a folder on the same disk as a local target; None for a store.

    Raises:
        StoreRefusedError, StoreFailedError: as `save_checkpoint`.
    """
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    document = {"format_version": FORMAT_VERSION, "saved_at": stamp, **document}
    try:
        with staging_folder(scratch) as staging:
            files = {
                f"{name}.safetensors": write_tensors(staging / f"{name}.safetensors", group)
                for name, group in tensors.items()
            }
            files[STATE] = write_json(staging / STATE, document)
            write_json(staging / MARKER, {"format_version": FORMAT_VERSION, "files": files})
            if scratch is not None:
                rename(staging, Path(resolve(target)[1]))
                return
            # One that is written anew must not be seen with files of both.
            remove(join(target, MARKER))
            for name in (*files, MARKER):
                upload(staging / name, join(target, name))
    except OSError as error:
        raise explain(error, "write", target) from error


def fork_checkpoint(uri: str, folder: str, config: Config) -> str:
    """Makes a checkpoint the beginning of a run with other settings.

    Args:
        uri: of the checkpoint.
        folder: URI of the new run's `checkpoints`.
        config: of the new run; tensors must keep their shapes.

    Returns:
        URI of the new checkpoint, of the same step.

    Raises:
        UsageError, DamagedCheckpointError: as `load_checkpoint`.
    """
    state = load_checkpoint(uri)
    state.record["config"] = config.model_dump(mode="json")
    return save_checkpoint(folder, state)


def remove_checkpoint(uri: str) -> None:
    """Removes a checkpoint, marker first; what else lies in its folder stays, and so does that.

    Raises:
        OSError: the disk does not remove it.
        StoreRefusedError, StoreFailedError: the store does not.
    """
    remove(join(uri, MARKER))
    remove_files(uri, [name for name in list_names(uri) if name in FILES])
    remove_empty(uri)


def list_checkpoints(folder: str) -> list[tuple[int, str]]:
    """All checkpoints with a marker as (step, URI), oldest first."""
    found = []
    for name in list_names(folder):
        uri, step = join(folder, name), step_of(name)
        if step is not None and is_there(uri):
            found.append((step, uri))
    return sorted(found)


def read_marker(uri: str) -> dict[str, Any]:
    """The checkpoint's `complete.json`: `format_version`, and `files` by name.

    Raises:
        UsageError: there is no checkpoint, or a newer version of this library wrote it.
        DamagedCheckpointError: it is not readable, or names files that no checkpoint holds.
    """
    try:
        content = read_bytes(join(uri, MARKER))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointGoneError(
            f"{uri} is not a complete checkpoint: it has no {MARKER}"
        ) from None
    where = f"checkpoint {uri}: {MARKER}"
    version = parse_record(content, _Marker, where, error=DamagedCheckpointError)["format_version"]
    if version > FORMAT_VERSION:
        raise UsageError(
            f"checkpoint {uri} has format {version}, this version reads up to {FORMAT_VERSION}: "
            "upgrade terrafm"
        )
    # After the version: a later one may name files otherwise.
    files = parse_record(content, _Files, where, error=DamagedCheckpointError)["files"]
    return {"format_version": version, "files": files}


def read_record(uri: str) -> dict[str, Any]:
    """The checkpoint's `state.json`, checked against the marker.

    Raises:
        UsageError, DamagedCheckpointError: as `read_marker`; a file is missing or differs from
            what was written.
    """
    content = _read_checked(uri, STATE, read_marker(uri)["files"])
    where = f"checkpoint {uri}: {STATE}"
    record = parse_record(content, _Record, where, error=DamagedCheckpointError)
    return {"saved_at": None, "metrics": {}, **record}


def part_of(record: Mapping[str, Any], name: str, uri: str) -> dict[str, Any]:
    """The dataset, contract or configuration in a checkpoint's record.

    Raises:
        UsageError: the record has none: a person has made it.
    """
    found: dict[str, Any] | None = record.get(name)
    if found is None:
        raise UsageError(
            f"checkpoint {uri}: {STATE} has no {name}: give one that a run has written"
        )
    return found


def contract_of(record: Mapping[str, Any], uri: str, network: str = "teacher") -> WeightsContract:
    """What a network of a checkpoint expects of its input.

    Args:
        record: as from `read_record`.
        uri: of the checkpoint, for the error.
        network: "teacher" or "student".

    Raises:
        UsageError: the record states no contract, or a broken one.
    """
    stated = {**part_of(record, "contract", uri), "network": network, "step": record.get("step")}
    try:
        return validated(stated, WeightsContract)
    except ValueError as error:
        raise UsageError(f"checkpoint {uri}: the contract in {STATE} is broken: {error}") from None


def load_checkpoint(uri: str) -> TrainingState:
    """Reads and checks a whole checkpoint.

    Raises:
        UsageError, DamagedCheckpointError: as `read_record`; an average of checkpoints, which no
            run can go on from.
    """
    files = read_marker(uri)["files"]
    record = read_record(uri)
    if "averaged" in record:
        raise UsageError(
            f"{uri} is an average of checkpoints and has no optimizer: no run can go on from it; "
            "terrafm export makes weights of it"
        )
    return TrainingState(
        step=record["step"],
        engine=EngineState(_tensors(uri, "student", files), _tensors(uri, "optimizer", files)),
        teacher=_tensors(uri, "teacher", files),
        centers=_tensors(uri, "centers", files),
        record={key: value for key, value in record.items() if key not in HEAD},
        metrics=record["metrics"],
        uri=uri,
    )


def load_network(uri: str, name: str) -> dict[str, Tensor]:
    """Only the tensors of the "student" or of the "teacher", checked.

    Raises:
        UsageError, DamagedCheckpointError: as `read_record`.
    """
    return _tensors(uri, name, read_marker(uri)["files"])


def load_encoder_state(uri: str, name: str) -> dict[str, Tensor]:
    """The encoder's tensors alone, without the head's, under the encoder's own names.

    Raises:
        UsageError, DamagedCheckpointError: as `read_record`.
    """
    return encoder_part(load_network(uri, name))


def encoder_part(network: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a network's tensors those of its encoder, under the encoder's own names."""
    prefix = "encoder."
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in network.items()
        if key.startswith(prefix)
    }


def is_there(uri: str) -> bool:
    """Whether a folder has the marker of a checkpoint."""
    return MARKER in list_names(uri)


def _read_checked(uri: str, name: str, files: Mapping[str, Digest]) -> bytes:
    try:
        content = read_bytes(join(uri, name), WHOLE_FILE_BYTES)
    except FileNotFoundError:
        raise DamagedCheckpointError(f"checkpoint {uri}: {name} is missing") from None
    if digest_of(content) != files.get(name):
        raise DamagedCheckpointError(f"checkpoint {uri}: {name} is not what was written")
    return content


def _tensors(uri: str, name: str, files: Mapping[str, Digest]) -> dict[str, Tensor]:
    file = f"{name}.safetensors"
    content = _read_checked(uri, file, files)
    try:
        tensors: dict[str, Tensor] = load(content)
    # Of types that the library does not name, PyTorch or of none: whoever wrote the checksum too.
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError) as error:
        raise DamagedCheckpointError(f"checkpoint {uri}: {file}: {one_line(error)}") from None
    return tensors
