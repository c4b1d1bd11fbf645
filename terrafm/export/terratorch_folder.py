"""A folder for TerraTorch: weights, a module that registers the backbone, and its configuration."""

from __future__ import annotations

from typing import Any

from terrafm.config.yaml_text import dump_yaml
from terrafm.export.request import Export, ExportFormat, chosen_modality, file_name
from terrafm.models.weights import save_safetensors
from terrafm.storage import absolute, join, write_bytes

MODULE = "terrafm_backbone"
CONFIG_FILE = "terratorch.yaml"

_MODULE_TEXT = '''\
"""For TerraTorch's --custom_modules_path: registers the backbone terrafm_encoder."""

import terrafm.adapters.terratorch  # noqa: F401
'''
_CONFIG_HEAD = """\
# Parts of a TerraTorch configuration for these weights; decoder, classes and files are yours.
# Start it with: terratorch fit --config YOURS.yaml --custom_modules_path {module}
# Image files: {bands}
# as integers that times constant_scale give {unit}.
"""


def write_terratorch_folder(export: Export) -> list[str]:
    """Writes the folder; the weights last.

    Returns:
        URIs of the weights, the module and the configuration.
    """
    modality = chosen_modality(export.contract, export.options)
    weights = join(export.uri, file_name(ExportFormat.SAFETENSORS, export.contract, export.options))
    module = join(export.uri, MODULE, "__init__.py")
    config = join(export.uri, CONFIG_FILE)
    expected = export.contract.modalities[modality]
    head = _CONFIG_HEAD.format(
        module=absolute(join(export.uri, MODULE)),
        bands=" ".join(expected.bands),
        unit=expected.unit,
    )
    tree = dump_yaml(_config(export, absolute(weights), modality))
    write_bytes(module, _MODULE_TEXT.encode())
    write_bytes(config, (head + tree).encode())
    return [*save_safetensors(weights, export.state, export.contract), module, config]


def _config(export: Export, weights: str, modality: str) -> dict[str, Any]:
    expected = export.contract.modalities[modality]
    return {
        "data": {
            "init_args": {
                "constant_scale": expected.storage_scale,
                "means": list(expected.mean),
                "stds": list(expected.std),
            }
        },
        "model": {
            "init_args": {
                "model_factory": "EncoderDecoderFactory",
                "model_args": {
                    "backbone": "terrafm_encoder",
                    "backbone_ckpt_path": weights,
                    "backbone_pretrained": True,
                    "backbone_model": export.contract.model,
                    "backbone_modality": modality,
                },
            }
        },
    }
