"""Weights of a run that still trains, as `terrafm export` would write them.

Two files of a run's `exported/`, each replaced in one piece and with the data contract inside:

    last.safetensors  the teacher's encoder at the newest checkpoint; written by rank 0
    best.safetensors  the same at the best checkpoint by validation; written by the driver

The contract's `step` says which checkpoint a file is of. They follow from the checkpoints: what a
killed process has not brought up to date, the next command does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from terrafm.errors import TerraFMError
from terrafm.models.contract import WeightsContract
from terrafm.models.weights import contract_metadata, read_contract
from terrafm.storage import exists, is_local, remove, resolve, upload
from terrafm.storage.durable import replace
from terrafm.storage.faults import explain, one_line
from terrafm.train.checkpoints.best import read_best
from terrafm.train.checkpoints.files import write_tensors
from terrafm.train.checkpoints.staging import staging_folder
from terrafm.train.checkpoints.store import (
    TrainingState,
    contract_of,
    encoder_part,
    load_encoder_state,
    read_record,
)
from terrafm.train.run_folder import RunFolder

logger = logging.getLogger(__name__)

LAST, BEST = "last", "best"
# A name that whoever clears after a killed writer of checkpoints knows.
_STAGED = "teacher.safetensors"


def export_last(run_folder: str, state: TrainingState) -> None:
    """Writes the weights of a checkpoint that was just saved, from memory.

    Args:
        run_folder: URI of the run.
        state: what the checkpoint holds.

    Raises:
        UsageError: the state has no contract.
        StoreRefusedError, StoreFailedError: disk or store do not take it; the file before stays.
    """
    record = {**state.record, "step": state.step}
    contract = contract_of(record, RunFolder(run_folder).checkpoint(state.step))
    _write(run_folder, LAST, encoder_part(state.teacher), contract)


def export_best(run_folder: str) -> int | None:
    """Brings `best.safetensors` in line with best.json; reads the checkpoint where they differ.

    Returns:
        Step of the best checkpoint; None where there is none, and no file then either.

    Raises:
        TerraFMError, OSError: the checkpoint cannot be read, or disk or store do not take the
            file; the one before stays.
    """
    best = read_best(RunFolder(run_folder).checkpoints)
    if best is None:
        remove(RunFolder(run_folder).exported(BEST))
        return None
    _refresh(run_folder, BEST, best.step)
    return best.step


def bring_up_to_date(run_folder: str, newest: int) -> None:
    """Mends what a killed process has left behind; what cannot be mended is a warning.

    Args:
        run_folder: URI of a run in which nobody writes checkpoints now.
        newest: step of its newest whole checkpoint; 0 where there is none.
    """
    if not newest:
        return
    try:
        _refresh(run_folder, LAST, newest)
        export_best(run_folder)
    except (TerraFMError, OSError) as error:
        logger.warning("the exported weights are not those of now: %s", one_line(error))


def exported_weights(run_folder: str) -> list[str]:
    """URIs of the weights that are there, the newest first."""
    files = [RunFolder(run_folder).exported(name) for name in (LAST, BEST)]
    return [uri for uri in files if exists(uri)]


def exported_step(run_folder: str, name: str) -> int | None:
    """Step of the checkpoint that a file is of; None without the file, or where it is damaged."""
    try:
        contract = read_contract(RunFolder(run_folder).exported(name))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return None if contract is None else contract.step


def _refresh(run_folder: str, name: str, step: int) -> None:
    if exported_step(run_folder, name) == step:
        return
    checkpoint = RunFolder(run_folder).checkpoint(step)
    contract = contract_of(read_record(checkpoint), checkpoint)
    _write(run_folder, name, load_encoder_state(checkpoint, "teacher"), contract)


def _write(
    run_folder: str, name: str, encoder: Mapping[str, Tensor], contract: WeightsContract
) -> None:
    uri = RunFolder(run_folder).exported(name)
    local = is_local(run_folder)
    try:
        with staging_folder(Path(resolve(run_folder)[1]) if local else None) as staging:
            staged = staging / _STAGED
            # In blocks, since it runs beside the training: see `files`.
            write_tensors(staged, encoder, contract_metadata(contract))
            if not local:
                upload(staged, uri)
                return
            target = Path(resolve(uri)[1])
            target.parent.mkdir(exist_ok=True)
            replace(staged, target)
    except OSError as error:
        raise explain(error, "write", uri) from error
