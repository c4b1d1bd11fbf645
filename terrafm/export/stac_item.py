"""What weights are, as a STAC item with the Machine Learning Model extension beside each export.

https://github.com/stac-extensions/mlm, version 1.5.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from shapely.geometry import box, mapping

from terrafm.export.model_card import recipe_of
from terrafm.export.request import GRAPHS, Export, ExportFormat, chosen_modality, chosen_size
from terrafm.modalities import MODALITIES
from terrafm.models.contract import ModalityContract
from terrafm.models.hub import PAPER
from terrafm.models.weights import STAC_SUFFIX
from terrafm.storage import to_json, write_bytes

_MLM = "https://stac-extensions.github.io/mlm/v1.5.2/schema.json"
_ARTIFACTS = {
    ExportFormat.RELEASED: "torch.save",
    ExportFormat.TORCH_EXPORT: "torch.export.save",
    ExportFormat.ONNX: "ONNX",
}
_TASKS = ["similarity-search"]
_OCTETS = "application/octet-stream"
# What weights can be used for has no place and no time of its own; STAC wants both.
_ANYWHERE = [-180.0, -90.0, 180.0, 90.0]
_EVER = ("1900-01-01T00:00:00Z", "9999-12-31T23:59:59Z")


def write_stac_item(export: Export, format: ExportFormat, written: Sequence[str]) -> str:
    """Writes the item beside what an export wrote.

    Args:
        export: that has been written.
        format: of it.
        written: URIs of its files, the one with the weights first.

    Returns:
        The item's URI: that of the weights with `.stac.json` after it.
    """
    uri = written[0] + STAC_SUFFIX
    item = stac_item(export, format, written)
    write_bytes(uri, (to_json(item, indent=2) + "\n").encode())
    return uri


def stac_item(export: Export, format: ExportFormat, written: Sequence[str]) -> dict[str, Any]:
    """The item.

    Inputs are one a modality: bands in order, unit, and (x - mean) / std for each band; a graph
    has one, and normalises by itself. Outputs are the embedding, and the map of patch tokens.

    Args:
        export: see `write_stac_item`.
        format: see `write_stac_item`.
        written: see `write_stac_item`.
    """
    contract = export.contract
    is_graph = format in GRAPHS
    names = [chosen_modality(contract, export.options)] if is_graph else sorted(contract.modalities)
    size = chosen_size(contract, export.options)
    tensors = list(export.state.values())
    parts = [contract.model, contract.network, *(names if is_graph else ()), str(format)]
    bands = {
        band: {"name": band, "gsd": gsd}
        for name in names
        for band, gsd in zip(MODALITIES[name].bands, MODALITIES[name].gsd, strict=True)
    }
    properties = {
        "title": f"{contract.model}, {contract.network}",
        "description": "An Earth-observation encoder pretrained with TerraFM's method. Images of "
        f"{', '.join(names)} become one embedding, or a map of features per "
        f"{contract.patch_size} x {contract.patch_size} pixels.",
        "datetime": None,
        "start_datetime": _EVER[0],
        "end_datetime": _EVER[1],
        "license": export.options.license or "other",
        "bands": list(bands.values()),
        "mlm:name": contract.model,
        "mlm:architecture": "Vision Transformer",
        "mlm:tasks": _TASKS,
        "mlm:framework": "ONNX" if format is ExportFormat.ONNX else "PyTorch",
        "mlm:total_parameters": sum(tensor.numel() for tensor in tensors),
        "mlm:memory_size": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        "mlm:pretrained": True,
        "mlm:pretrained_source": dataset_of(export),
        "mlm:input": [_input(name, contract.modalities[name], size, is_graph) for name in names],
        "mlm:output": _outputs(export, size),
        "mlm:hyperparameters": _hyperparameters(export),
    }
    if format is not ExportFormat.ONNX:
        properties["mlm:framework_version"] = torch.__version__
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [_MLM],
        "id": "_".join(parts),
        "geometry": mapping(box(*_ANYWHERE)),
        "bbox": _ANYWHERE,
        "properties": properties,
        "links": [{"rel": "cite-as", "href": PAPER, "type": "text/html"}],
        "assets": _assets(format, written),
    }


def dataset_of(export: Export) -> str:
    """What the weights were trained on, as far as they say."""
    fingerprint = export.contract.dataset_fingerprint
    return f"TerraFM dataset {fingerprint}" if fingerprint else "not stated by the weights"


def _input(
    name: str, expected: ModalityContract, size: int, normalises_itself: bool
) -> dict[str, Any]:
    how = "normalised inside" if normalises_itself else "0 where there is no data, once normalised"
    described: dict[str, Any] = {
        "name": name,
        "description": f"{MODALITIES[name].title}, {expected.unit}; {how}. Stored integers x "
        f"{expected.storage_scale:g} give {expected.unit}.",
        "bands": list(expected.bands),
        "input": {
            "shape": [-1, len(expected.bands), size, size],
            "dim_order": ["batch", "bands", "height", "width"],
            "data_type": "float32",
        },
    }
    if not normalises_itself:
        described["value_scaling"] = [
            {"type": "z-score", "mean": mean, "stddev": std}
            for mean, std in zip(expected.mean, expected.std, strict=True)
        ]
    return described


def _outputs(export: Export, size: int) -> list[dict[str, Any]]:
    width = export.state["cls_token"].shape[-1]
    side = size // export.contract.patch_size
    shapes = {
        "embedding": ([-1, width], ["batch", "embedding"]),
        "patches": ([-1, width, side, side], ["batch", "embedding", "height", "width"]),
    }
    return [
        {
            "name": name,
            "tasks": _TASKS,
            "result": {"shape": shape, "dim_order": order, "data_type": "float32"},
        }
        for name, (shape, order) in shapes.items()
    ]


def _hyperparameters(export: Export) -> dict[str, Any]:
    known = {
        "network": export.contract.network,
        "patch_size": export.contract.patch_size,
        "image_size": export.contract.image_size,
        "step": export.contract.step if export.contract.step else export.record.get("step"),
        "commit": export.contract.commit,
        "recipe": recipe_of(export.record) or None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _assets(format: ExportFormat, written: Sequence[str]) -> dict[str, Any]:
    folder = PurePosixPath(written[0]).parent
    model = {
        "href": f"./{PurePosixPath(written[0]).name}",
        "title": f"Weights, as terrafm export --format {format} writes them",
        "type": _OCTETS,
        "roles": ["mlm:model", "mlm:weights"],
        "mlm:artifact_type": _ARTIFACTS.get(format, "safetensors.torch.save_file"),
    }
    beside = {
        PurePosixPath(uri).name: {
            "href": f"./{PurePosixPath(uri).relative_to(folder)}",
            "roles": ["metadata"],
        }
        for uri in written[1:]
    }
    return {"model": model, **beside}
