"""A checkpoint's encoder written in one of the formats, with the lines of Python that load it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from terrafm.errors import TerraFMError, UsageError
from terrafm.export.benchmark_folders import (
    write_pangaea_folder,
    write_torchgeo_bench_folder,
)
from terrafm.export.graphs import write_onnx, write_torch_export
from terrafm.export.hub_folder import write_hub_folder
from terrafm.export.request import (
    Export,
    ExportFormat,
    ExportOptions,
    Network,
    check_format,
    check_options,
    target_uri,
)
from terrafm.export.snippets import loading_snippet
from terrafm.export.stac_item import write_stac_item
from terrafm.export.terratorch_folder import write_terratorch_folder
from terrafm.models.weights import (
    WEIGHTS_SUFFIXES,
    WeightsContract,
    load_weights,
    save_released,
    save_safetensors,
)
from terrafm.train.checkpoints.best import find_checkpoint
from terrafm.train.checkpoints.store import contract_of, load_encoder_state, read_record

_NOTHING = ExportOptions()
_WRITERS: dict[ExportFormat, Callable[[Export], list[str]]] = {
    ExportFormat.SAFETENSORS: lambda e: save_safetensors(e.uri, e.state, e.contract),
    ExportFormat.RELEASED: lambda e: save_released(
        e.uri, e.state, e.contract, for_l2a=e.options.modality == "s2_l2a"
    ),
    ExportFormat.HF: write_hub_folder,
    ExportFormat.TERRATORCH: write_terratorch_folder,
    ExportFormat.TORCHGEO_BENCH: write_torchgeo_bench_folder,
    ExportFormat.PANGAEA: write_pangaea_folder,
    ExportFormat.TORCH_EXPORT: write_torch_export,
    ExportFormat.ONNX: write_onnx,
}


def export_weights(
    state: Mapping[str, Tensor],
    contract: WeightsContract,
    output_uri: str,
    format: str,
    options: ExportOptions = _NOTHING,
    record: Mapping[str, Any] | None = None,
) -> list[str]:
    """Writes an encoder.

    Args:
        state: the encoder's state dict.
        contract: what it expects of its input.
        output_uri: a file that ends in the format's suffix, or a folder, in which the file is
            named after the model; for formats that are a folder that folder.
        format: a value of `ExportFormat`.
        options: what only some formats take.
        record: the `state.json` of the checkpoint that the weights come from, for a model card.

    Returns:
        The URIs written: first what the format's own loader takes, last the STAC item.

    Raises:
        UsageError: unknown format, a file name of another format, an option that does not fit,
            or a library that the format needs is not installed.
        TerraFMError: the file cannot be written, or does not compute what the encoder computes.
    """
    known = check_format(format)
    check_options(known, contract, options)
    uri = target_uri(output_uri, known, contract, options)
    try:
        export = Export(state, contract, uri, options, record or {})
        written = _WRITERS[known](export)
        return [*written, write_stac_item(export, known, written)]
    except OSError as error:
        raise TerraFMError(f"cannot write weights {uri}: {error}") from None


def export_checkpoint(
    checkpoint_uri: str,
    output_uri: str,
    format: str,
    *,
    network: str = Network.TEACHER,
    options: ExportOptions = _NOTHING,
) -> tuple[list[str], str]:
    """Writes the encoder of a training checkpoint.

    Args:
        checkpoint_uri: a checkpoint folder of a run, such as `checkpoints/step_00000040`;
            `checkpoints/best` is the best one by the run's validation. Or weights with a
            contract, such as `exported/best.safetensors` of a run.
        output_uri: as in `export_weights`.
        format: as in `export_weights`.
        network: "teacher" or "student".
        options: as in `export_weights`.

    Returns:
        The URIs written, and the Python that loads them.

    Raises:
        UsageError: no checkpoint there, or as `export_weights`.
        TerraFMError: the checkpoint is damaged, or as `export_weights`.
    """
    if checkpoint_uri.endswith(WEIGHTS_SUFFIXES):
        return _export_again(checkpoint_uri, output_uri, format, network, options)
    checkpoint_uri = find_checkpoint(checkpoint_uri)
    record = read_record(checkpoint_uri)
    contract = contract_of(record, checkpoint_uri, network)
    # What is wrong should be said before gigabytes are read.
    snippet = loading_snippet(output_uri, format, contract, options)
    encoder = load_encoder_state(checkpoint_uri, network)
    written = export_weights(encoder, contract, output_uri, format, options, record)
    return written, snippet


def _export_again(
    weights_uri: str, output_uri: str, format: str, network: str, options: ExportOptions
) -> tuple[list[str], str]:
    state, contract = load_weights(weights_uri)
    if contract is None:
        raise UsageError(
            f"{weights_uri} has no data contract, which says what the weights expect: give a "
            "checkpoint, or weights that terrafm export wrote"
        )
    if contract.network != network:
        raise UsageError(
            f"{weights_uri} holds the {contract.network}, not the {network}: give a checkpoint, "
            "which has both"
        )
    snippet = loading_snippet(output_uri, format, contract, options)
    record = {} if contract.step is None else {"step": contract.step}
    return export_weights(state, contract, output_uri, format, options, record), snippet
