"""The STAC item beside every export: by the extension's own schema, and as pystac opens it."""

import json
from pathlib import Path

import pystac
import pytest
import torch
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7

from terrafm.export import ExportFormat, ExportOptions, export_weights
from terrafm.models.weights import load_weights

# From https://github.com/stac-extensions/mlm (Apache-2.0), unchanged.
SCHEMA = json.loads((Path(__file__).parent / "schemas/stac-mlm-1.5.2.json").read_text())
# The parts of other extensions that it points into.
_OTHERS = {
    "https://stac-extensions.github.io/raster/v1.1.0/schema.json": {
        "definitions": {
            "bands": {
                "items": {
                    "properties": {"data_type": {"enum": ["uint8", "int16", "uint16", "float32"]}}
                }
            }
        }
    },
    "https://stac-extensions.github.io/processing/v1.1.0/schema.json": {
        "definitions": {"fields": {"properties": {"processing:expression": {}}}}
    },
    "https://stac-extensions.github.io/classification/v1.1.0/schema.json": {
        "definitions": {"fields": {"properties": {"classification:classes": {}}}}
    },
}
FORMATS = [f for f in ExportFormat if f is not ExportFormat.ONNX]


@pytest.fixture(scope="module")
def validator():
    others = ((uri, Resource(content, DRAFT7)) for uri, content in _OTHERS.items())
    return Draft7Validator(SCHEMA, registry=Registry().with_resources(others))


def item_of(folder, teacher, format, **options):
    encoder, contract = teacher
    chosen = ExportOptions(**options)
    written = export_weights(encoder.state_dict(), contract, str(folder), format, chosen)
    assert written[-1] == f"{written[0]}.stac.json"
    return json.loads(Path(written[-1]).read_text()), written


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_has_an_item_that_its_schema_accepts(tmp_path, teacher, format, validator):
    item, written = item_of(tmp_path / "out", teacher, format)
    assert [error.message for error in validator.iter_errors(item)] == []
    opened = pystac.Item.from_dict(item)
    assert opened.properties["mlm:name"] == "terrafm_tiny"
    for asset in item["assets"].values():
        assert (Path(written[0]).parent / asset["href"]).is_file()


def test_the_schema_refuses_what_is_wrong(tmp_path, teacher, validator):
    item, _ = item_of(tmp_path, teacher, "safetensors")
    for spoil in (
        lambda i: i["properties"].pop("mlm:input"),
        lambda i: i["properties"].pop("bands"),
        lambda i: i["properties"]["mlm:input"][0]["value_scaling"][0].pop("mean"),
        lambda i: i["assets"]["model"].pop("mlm:artifact_type"),
    ):
        spoiled = json.loads(json.dumps(item))
        spoil(spoiled)
        assert not validator.is_valid(spoiled)


def test_the_item_alone_is_enough_to_normalise(tmp_path, teacher):
    """A reader who has the item and no contract makes the same input."""
    _, contract = teacher
    item, written = item_of(tmp_path, teacher, "safetensors")
    properties = item["properties"]
    described = {one["name"]: one for one in properties["mlm:input"]}
    assert set(described) == set(contract.modalities)
    for name, one in described.items():
        assert tuple(one["bands"]) == contract.modalities[name].bands
        assert one["input"]["shape"] == [-1, len(one["bands"]), 64, 64]
        x = torch.rand(2, len(one["bands"]), 8, 8)
        scaled = [
            (x[:, c] - scaling["mean"]) / scaling["stddev"]
            for c, scaling in enumerate(one["value_scaling"])
        ]
        torch.testing.assert_close(torch.stack(scaled, 1), contract.normalise(x, name))
    state, _ = load_weights(written[0])
    assert properties["mlm:total_parameters"] == sum(t.numel() for t in state.values())
    assert [one["result"]["shape"] for one in properties["mlm:output"]] == [
        [-1, 96],
        [-1, 96, 4, 4],
    ]


def test_a_graph_has_one_input_which_it_normalises(tmp_path, teacher):
    item, _ = item_of(tmp_path, teacher, "torch-export", modality="s1", image_size=32)
    (described,) = item["properties"]["mlm:input"]
    assert described["name"] == "s1"
    assert described["input"]["shape"] == [-1, 2, 32, 32]
    assert "value_scaling" not in described
    assert "normalised inside" in described["description"]
