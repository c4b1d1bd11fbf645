"""The mean of several checkpoints' weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrafm.config.yaml_text import shortened
from terrafm.errors import TerraFMError, UsageError
from terrafm.shell import command_line
from terrafm.storage import is_local, list_names, resolve
from terrafm.storage.addresses import recorded
from terrafm.storage.lease import lease
from terrafm.storage.lease_record import LEASE_FILE
from terrafm.train.checkpoints.staging import remove_abandoned
from terrafm.train.checkpoints.store import (
    HEAD,
    contract_of,
    load_network,
    part_of,
    read_record,
    step_of,
    write_checkpoint,
)

NETWORKS = ("student", "teacher")


def average_checkpoints(uris: Sequence[str], output: str) -> dict[str, Any]:
    """Averages students and teachers, adding up in float64.

    The result is a folder like a checkpoint, with student, teacher, state.json and the marker:
    `terrafm export` makes weights of its teacher, and it can be verified. It has no optimizer and
    no centers, so that no run goes on from it. Cursor, contract and configuration are those of
    the checkpoint with the most steps; `averaged` in state.json names all of them.

    Args:
        uris: two or more checkpoints of one model, whose input is normalised alike.
        output: URI of the folder to write; empty, absent, or what the same call has left before,
            and not named as a run's checkpoint.

    Returns:
        JSON-able: uri, averaged (uri and step of each), parameters of one network.

    Raises:
        UsageError: fewer than two, no checkpoints, different models, or an output in use.
        DamagedCheckpointError: a file is not what was written.
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    output = output.rstrip("/")
    if len(uris) < 2:
        raise UsageError("an average takes two checkpoints or more")
    if step_of(output.rpartition("/")[2]) is not None:
        raise UsageError(
            f"--output {output} is named like a checkpoint that a run goes on from: choose "
            "another name"
        )
    with lease(output, "terrafm checkpoint average"):
        return _average(uris, output)


def _average(uris: Sequence[str], output: str) -> dict[str, Any]:
    records = [read_record(uri) for uri in uris]
    averaged = [{"uri": u, "step": r["step"]} for u, r in zip(uris, records, strict=True)]
    if [name for name in list_names(output) if name != LEASE_FILE]:
        # A command that was killed when all was done is given again.
        if not _holds(output, averaged):
            raise UsageError(f"--output {output} is not empty: choose another folder")
        parameters = sum(tensor.numel() for tensor in load_network(output, "teacher").values())
        return {"uri": output, "averaged": averaged, "parameters": parameters}
    for uri, record in zip(uris[1:], records[1:], strict=True):
        _check_same_model(uris[0], records[0], uri, record)
    networks = {name: _mean(uris, name) for name in NETWORKS}
    newest = max(records, key=lambda record: int(record["step"]))
    kept = {key: value for key, value in newest.items() if key not in HEAD}
    document = {"step": newest["step"], "metrics": {}, **kept, "averaged": averaged}
    scratch = Path(resolve(output)[1]).parent if is_local(output) else None
    remove_abandoned(scratch)
    write_checkpoint(output, networks, document, scratch)
    parameters = sum(tensor.numel() for tensor in networks["teacher"].values())
    return {"uri": output, "averaged": averaged, "parameters": parameters}


def _holds(output: str, averaged: list[dict[str, Any]]) -> bool:
    """Whether a folder is the average of these checkpoints, whole."""
    try:
        return bool(read_record(output).get("averaged") == recorded(averaged))
    except TerraFMError:
        return False


def describe(result: dict[str, Any]) -> str:
    """What `average_checkpoints` wrote, and what to do with it."""
    parts = result["averaged"]
    steps = ", ".join(f"{part['step']:,}" for part in parts)
    export = command_line(
        "terrafm", "export", "--checkpoint", result["uri"], "--output", "weights",
        "--format", "safetensors",
    )  # fmt: skip
    return (
        f"wrote {result['uri']}: the mean of {len(parts)} checkpoints (steps {steps})\n\n"
        f"Make weights of its teacher with:\n\n{export}"
    )


def _check_same_model(
    first: str, ours: Mapping[str, Any], other: str, theirs: Mapping[str, Any]
) -> None:
    for section, keys in (("model", ("name", "num_queries")), ("head", None)):
        a = part_of(ours, "config", first).get(section, {})
        b = part_of(theirs, "config", other).get(section, {})
        for key in keys or a:
            if a.get(key) != b.get(key):
                raise UsageError(
                    f"{other} is a checkpoint of another model than {first}: {section}.{key} is "
                    f"{shortened(b.get(key))}, not {shortened(a.get(key))}"
                )
    if contract_of(ours, first).modalities != contract_of(theirs, other).modalities:
        raise UsageError(
            f"{other} and {first} normalise their input differently (modalities or statistics of "
            "their datasets): the mean of their weights has no meaning"
        )


def _mean(uris: Sequence[str], name: str) -> dict[str, Tensor]:
    """Of all tensors of one network; one checkpoint and the sums are held at a time."""
    sums: dict[str, Tensor] = {}
    dtypes: dict[str, torch.dtype] = {}
    for uri in uris:
        tensors = load_network(uri, name)
        if not sums:
            sums = {key: tensor.double() for key, tensor in tensors.items()}
            dtypes = {key: tensor.dtype for key, tensor in tensors.items()}
            continue
        if {k: t.shape for k, t in tensors.items()} != {k: t.shape for k, t in sums.items()}:
            raise UsageError(
                f"{uri} is a checkpoint of another model than {uris[0]}: its {name} has other "
                "parameters"
            )
        for key, tensor in tensors.items():
            sums[key] += tensor
    return {key: (total / len(uris)).to(dtypes[key]) for key, total in sums.items()}
