"""Weights that fit the small dataset, and ways to look at what was written."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import rasterio
import torch
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

_CONVENTIONS = Path(__file__).parents[1] / "data" / "conventions"


def statistics():
    """As the small dataset has them."""
    return {
        name: {
            "mean": [-14.0 if name == "s1" else 0.27] * m.channels,
            "std": [3.0 if name == "s1" else 0.07] * m.channels,
        }
        for name, m in MODALITIES.items()
    }


@pytest.fixture(scope="session")
def save_weights(tmp_path_factory):
    """Writes a tiny encoder's weights, with a contract as asked for; returns the URI."""

    def save(seed=5, image_size=64, stats=None, **changes):
        torch.manual_seed(seed)
        uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
        contract = WeightsContract.build(
            "terrafm_tiny", stats or statistics(), image_size=image_size
        )
        if changes:
            modalities = {
                name: part.model_copy(update=changes) for name, part in contract.modalities.items()
            }
            contract = contract.model_copy(update={"modalities": modalities})
        state = build_encoder("terrafm_tiny").state_dict()
        # Initialised small: without this all tokens would be almost alike.
        generator = torch.Generator().manual_seed(seed)
        for tensor in state.values():
            tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
        save_safetensors(uri, state, contract)
        return uri

    return save


@pytest.fixture(scope="session")
def tiny_weights(save_weights):
    return save_weights()


@pytest.fixture(scope="session")
def write_scene():
    """Writes a smooth Level-2A scene; returns its digital numbers."""

    def write(path, shape=(150, 230), *, seed=0, crs="EPSG:32633", gsd=10.0, corner=(5e5, 5e6),
              bands=MODALITIES["s2_l2a"].bands, **profile):  # fmt: skip
        rng = np.random.default_rng(seed)
        coarse = rng.integers(1200, 4200, (len(bands), 12, 12))
        pixels = np.stack([np.kron(band, np.ones((40, 40)))[: shape[0], : shape[1]]
                           for band in coarse]).astype(np.uint16)  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        transform = rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1])
        with rasterio.open(
            path, "w", driver="GTiff", count=len(bands), height=shape[0], width=shape[1],
            dtype="uint16", **({"crs": crs, "transform": transform} | profile),
        ) as file:  # fmt: skip
            file.write(pixels)
            for number, band in enumerate(bands, start=1):
                file.set_band_description(number, band)
            file.update_tags(datetime="2021-06-01T10:00:00Z")
        return pixels

    return write


def _checker(name):
    schema = json.loads((_CONVENTIONS / name).read_text())
    checks = jsonschema.FormatChecker()

    def check(document):
        jsonschema.validate(document, schema, format_checker=checks)

    return check


@pytest.fixture(scope="session")
def stac_embeddings():
    """Holds a STAC item or collection against the extension Embedding: our rules and its schema."""
    rules = _checker("stac-embeddings.json")
    schema = json.loads((_CONVENTIONS / "stac-embeddings-0.0.1.json").read_text())
    # What it points into: STAC's core is checked by pystac; links and expressions by our rules.
    others = (
        (uri, Resource(content, DRAFT7))
        for uri, content in {
            "https://schemas.stacspec.org/v1.0.0/item-spec/json-schema/item.json": {
                "definitions": {"link": {"required": ["rel", "href"]}}
            },
            "https://schemas.stacspec.org/v1.0.0/collection-spec/json-schema/collection.json": {},
            "https://stac-extensions.github.io/processing/v1.2.0/schema.json": {
                "definitions": {"fields": {"properties": {"processing:expression": {}}}}
            },
        }.items()
    )
    official = Draft7Validator(schema, registry=Registry().with_resources(others))

    def check(document):
        rules(document)
        official.validate(document)

    return check


@pytest.fixture(scope="session")
def geoemb_schema():
    """Holds the document of a Zarr group against the rules of the convention geoemb."""
    return _checker("geoemb.json")
