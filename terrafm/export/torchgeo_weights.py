"""What torchgeo states of weights, for an export: `Weights(url, transforms, meta)` a sensor."""

from __future__ import annotations

from pprint import pformat
from typing import Any

from terrafm.export.request import Export, chosen_modality
from terrafm.export.stac_item import dataset_of
from terrafm.models.contract import ModalityContract
from terrafm.models.hub import PAPER

_NAMES = {"s1": "SENTINEL1", "s2_l1c": "SENTINEL2_L1C", "s2_l2a": "SENTINEL2_L2A"}
_MODULE = '''\
"""{model} as torchgeo.models has weights, an entry for each sensor.

TerraFM has to be importable: pip install terrafm, or its folder in PYTHONPATH.
"""

import torchvision.transforms.v2 as T
from torch import nn
from torchvision.models._api import Weights, WeightsEnum

from terrafm.adapters.torchgeo import SensorEncoder

URL = {url!r}


class {enum}(WeightsEnum):
    """Bands in order, normalisation of raw values, and where the weights come from."""
{entries}

def {model}(weights: {enum}) -> SensorEncoder:
    """Normalised images (B, C, H, W) of the entry's sensor to embeddings (B, D)."""
    return SensorEncoder(weights.url, weights.meta["sensor"])
'''
_ENTRY = """
    {name} = Weights(
        url=URL,
        transforms=nn.Sequential(
            T.Normalize(mean={mean}, std={std}),
        ),
        meta={meta},
    )
"""


def torchgeo_module(export: Export, weights: str) -> str:
    """Python of the module; sides of images must be multiples of the patch.

    Args:
        export: what is written.
        weights: URI of the weights.
    """
    contract = export.contract
    chosen = export.options.modality and chosen_modality(contract, export.options)
    sensors = [chosen] if chosen else sorted(contract.modalities)
    entries = [_entry(export, sensor, contract.modalities[sensor]) for sensor in sensors]
    enum = "".join(part.capitalize() for part in contract.model.split("_")[1:])
    return _MODULE.format(
        model=contract.model, enum=f"TerraFM{enum}_Weights", url=weights, entries="".join(entries)
    )


def _entry(export: Export, sensor: str, expected: ModalityContract) -> str:
    # torchgeo's sets give Sentinel-2's digital numbers, and radar in dB.
    scale = expected.storage_scale if expected.unit == "reflectance" else 1.0
    meta: dict[str, Any] = {
        "dataset": dataset_of(export),
        "in_chans": len(expected.bands),
        "model": export.contract.model,
        "publication": PAPER,
        "ssl_method": "terrafm",
        "bands": list(expected.bands),
        "license": export.options.license or "unknown",
        "sensor": sensor,
        "image_size": export.contract.image_size,
    }
    return _ENTRY.format(
        name=_NAMES.get(sensor, sensor.upper()),
        mean=[value / scale for value in expected.mean],
        std=[value / scale for value in expected.std],
        meta=pformat(meta, sort_dicts=False, width=88).replace("\n", "\n        "),
    )
