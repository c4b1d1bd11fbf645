"""Folders for benchmarks that score frozen encoders: weights, and configurations that name them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from terrafm.config.yaml_text import dump_yaml
from terrafm.errors import UsageError
from terrafm.export.request import Export, ExportFormat, chosen_modality, file_name
from terrafm.export.torchgeo_weights import torchgeo_module
from terrafm.modalities import OPTICAL
from terrafm.models.encoder import ARCHITECTURES, dense_blocks
from terrafm.models.weights import TRAINING_ONLY, save_safetensors
from terrafm.storage import absolute, join, write_bytes

_OPTICAL_GROUP, _RADAR_GROUP = "optical", "sar"

_TORCHGEO_BENCH_HEAD = """\
# A model of torchgeo-bench, scored on one of its sets with
# torchgeo-bench run 'hydra.searchpath=[file://{folder}]' model={model} \\
#   dataset.names=[m-eurosat] dataset.bands=all dataset.normalization=model_native
# model_native normalises with the statistics of the weights' training, any other choice with the
# set's. TerraFM has to be importable: pip install terrafm, or its folder in PYTHONPATH.
"""
_PANGAEA_HEAD = """\
# An encoder of PANGAEA, taken with 'hydra.searchpath=[file://{folder}]' encoder={name}
# TerraFM has to be importable: pip install terrafm, or its folder in PYTHONPATH.
"""


def write_torchgeo_bench_folder(export: Export) -> list[str]:
    """Writes `model/<model>.yaml`, `<model>_weights.py` and the weights, the weights last.

    Returns:
        URIs of the weights, the configuration and torchgeo's metadata.
    """
    weights, model = _weights(export), export.contract.model
    chosen = export.options.modality and [chosen_modality(export.contract, export.options)]
    blocks = dense_blocks(ARCHITECTURES[model].depth)
    tree = {
        "_target_": "terrafm.adapters.torchgeo_bench.TerraFMBench",
        "name": model,
        "weights": absolute(weights),
        "modalities": chosen,
        "readout": "cls",
        "size": None,
        # From coarse to fine, as the benchmark's heads take them.
        "eval": {"segmentation": {"layers": [f"blocks.{block}" for block in reversed(blocks)]}},
    }
    head = _TORCHGEO_BENCH_HEAD.format(folder=absolute(export.uri), model=model)
    described = join(export.uri, f"{model}_weights.py")
    write_bytes(described, torchgeo_module(export, absolute(weights)).encode())
    configuration = join(export.uri, "model", f"{model}.yaml")
    return [*_write(export, weights, {configuration: (head, tree)}), described]


def write_pangaea_folder(export: Export) -> list[str]:
    """Writes `encoder/<model>_optical.yaml`, for radar `_sar`, fused `_joint`; weights last.

    Returns:
        URIs of the weights and the configurations.

    Raises:
        UsageError: weights of other sensors alone, or a modality other than Sentinel-2's.
    """
    weights, known = _weights(export), export.contract.modalities
    optical = _pangaea_optical(export)
    groups = {} if optical is None else {_OPTICAL_GROUP: optical}
    if "s1" in known:
        groups[_RADAR_GROUP] = "s1"
    if not groups:
        raise UsageError(
            f"PANGAEA's sets are of Sentinel-1 and -2, these weights of {', '.join(known)}"
        )
    written = {}
    choices = {group: {group: modality} for group, modality in groups.items()}
    if len(groups) > 1 and any(name.startswith(TRAINING_ONLY) for name in export.state):
        choices["joint"] = groups
    for suffix, chosen in choices.items():
        name = f"{export.contract.model}_{suffix}"
        head = _PANGAEA_HEAD.format(folder=absolute(export.uri), name=name)
        tree = _pangaea_config(export, absolute(weights), chosen)
        written[join(export.uri, "encoder", f"{name}.yaml")] = (head, tree)
    return _write(export, weights, written)


def _pangaea_optical(export: Export) -> str | None:
    chosen = export.options.modality
    if chosen is not None and chosen not in OPTICAL:
        raise UsageError(
            f"--modality {chosen}: of pangaea it says which of {', '.join(OPTICAL)} its optical "
            "bands are; radar has a configuration of its own"
        )
    known = [name for name in reversed(OPTICAL) if name in export.contract.modalities]
    return chosen or (known[0] if known else None)


def _pangaea_config(export: Export, weights: str, groups: Mapping[str, str]) -> dict[str, Any]:
    contract = export.contract
    shape = ARCHITECTURES[contract.model]
    return {
        "_target_": "terrafm.adapters.pangaea.TerraFMEncoder",
        "encoder_weights": weights,
        "download_url": "",
        "input_size": contract.image_size,
        "input_bands": {
            group: [_pangaea_name(band) for band in contract.modalities[modality].bands]
            for group, modality in groups.items()
        },
        "modalities": dict(groups),
        "output_layers": list(dense_blocks(shape.depth)),
        "output_dim": shape.embed_dim,
    }


def _pangaea_name(band: str) -> str:
    """As PANGAEA's sets write it: B1, B8A, VV."""
    return f"B{band[2:]}" if band.startswith("B0") else band


def _weights(export: Export) -> str:
    return join(export.uri, file_name(ExportFormat.SAFETENSORS, export.contract, export.options))


def _write(
    export: Export, weights: str, configurations: Mapping[str, tuple[str, dict[str, Any]]]
) -> list[str]:
    for uri, (head, tree) in configurations.items():
        write_bytes(uri, (head + dump_yaml(tree)).encode())
    return [*save_safetensors(weights, export.state, export.contract), *configurations]
