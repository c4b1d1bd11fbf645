"""The catalogue: valid STAC, by pystac and by the extension's rules, and true."""

import json
from copy import deepcopy
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pystac
import pytest
import rasterio
from rasterio.warp import transform_bounds

from terrafm.embed import packing
from terrafm.embed.choices import DenseFormat, Quantise
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.embed.schema import read_manifest
from terrafm.export import export_weights
from terrafm.models.weights import load_encoder
from terrafm.ray import parts


@pytest.fixture(scope="module")
def catalogue(small_dataset, tiny_weights, tmp_path_factory):
    """A folder of 11 rows in three files, as int8."""
    output = tmp_path_factory.mktemp("stac") / "cities"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_LEAST_ROWS", 4)
        patch.setattr(packing, "ROW_GROUP_BYTES", 1)
        options = EmbedOptions(modalities=["s1"], workers=0, quantise=Quantise.INT8)
        embed(tiny_weights, small_dataset, output, options)
    return output


def documents(folder):
    names = ["collection.json", *sorted(f"items/{p.name}" for p in (folder / "items").iterdir())]
    return [json.loads((folder / name).read_text()) for name in names]


def test_pystac_opens_it_and_finds_it_valid(catalogue):
    collection = pystac.Collection.from_file(str(catalogue / "collection.json"))
    items = list(collection.get_items())
    assert [item.id for item in items] == [f"cities-part-{number:05d}" for number in range(3)]
    for document in (collection, *items):
        # The extensions' own schemas lie on the network: the core is checked here.
        document.stac_extensions = []
        assert document.validate()
    rows = 0
    for item in items:
        asset = item.assets["embeddings"]
        assert asset.media_type == "application/vnd.apache.parquet"
        table = pq.read_table(asset.get_absolute_href())
        rows += table.num_rows
        boxes = np.array([list(box.values()) for box in table["bbox"].to_pylist()])
        expected = [*boxes[:, :2].min(0), *boxes[:, 2:].max(0)]
        np.testing.assert_allclose(item.bbox, expected)
        # The synthetic tiles are of one day.
        assert item.common_metadata.start_datetime.isoformat() == "2021-01-01T00:00:00+00:00"
    assert rows == 11
    links = {link.rel: link.href for link in collection.links}
    manifest = read_manifest(catalogue)
    assert links["emb:model"] == f"file://{manifest.weights}"
    assert links["emb:source-data"] == f"file://{manifest.data}"


def test_the_extension_is_kept_to(catalogue, stac_embeddings):
    collection, *items = documents(catalogue)
    for document in (collection, *items):
        stac_embeddings(document)
    assert collection["emb:type"] == "chip"
    assert collection["emb:dimensions"] == 96
    assert collection["data_type"] == "int8"
    assert collection["gsd"] == 10
    assert collection["emb:chip_layout"]["chip_size"] == [96, 96]
    found = items[0]["properties"]["emb:quantization"]
    stated = read_manifest(catalogue).quantisation
    np.testing.assert_allclose(found["scale"], stated.scale)
    np.testing.assert_allclose(found["offset"], stated.offset)


@pytest.mark.parametrize(
    ("number", "path", "value"),
    [
        (0, ["emb:type"], "patch"),
        (0, ["emb:dimensions"], "96"),
        (0, ["emb:chip_layout", "layout_type"], "grid"),
        (0, ["emb:colour"], 1),
        (0, ["links"], []),
        (0, ["stac_extensions"], []),
        (1, ["assets"], {"vectors": {}}),
        (1, ["properties", "emb:quantization", "scale"], 0.1),
        (1, ["properties", "emb:quantization", "scales"], [0.1]),
        (1, ["properties", "emb:dimensions"], 96),
    ],
)
def test_the_rules_can_be_broken(catalogue, stac_embeddings, number, path, value):
    document = deepcopy(documents(catalogue)[number])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        stac_embeddings(document)


def test_each_file_says_it_in_its_footer(catalogue):
    for path in sorted((catalogue / "tiles").glob("*.parquet")):
        stated = json.loads(pq.read_schema(path).metadata[b"emb"])
        assert stated["emb:dimensions"] == 96
        scales = np.array(stated["emb:quantization"]["scale"])
        offsets = np.array(stated["emb:quantization"]["offset"])
        numbers = np.stack(pq.read_table(path)["embedding"].to_numpy())
        assert numbers.dtype == np.int8
        assert np.isfinite(numbers * scales + offsets).all()


def test_without_times_the_embedding_has_one(write_scene, tiny_weights, tmp_path, stac_embeddings):
    import rasterio

    write_scene(tmp_path / "scene.tif", (64, 64))
    with rasterio.open(tmp_path / "scene.tif", "r+") as file:
        file.update_tags(datetime="")
    options = EmbedOptions(modalities=["s2_l2a"], workers=0)
    embed(tiny_weights, tmp_path / "scene.tif", tmp_path / "out", options)
    collection, item = documents(tmp_path / "out")
    stac_embeddings(item)
    stac_embeddings(collection)
    assert item["properties"]["datetime"] == item["properties"]["processing:datetime"]
    assert collection["extent"]["temporal"]["interval"] == [[None, None]]
    assert collection["emb:chip_layout"]["layout_type"] == "variable_grid"
    opened = pystac.Item.from_file(str(tmp_path / "out" / "items" / "part-00000.json"))
    opened.stac_extensions = []
    assert opened.validate()


@pytest.mark.parametrize("form", DenseFormat)
def test_rasters_of_tiles_are_a_collection_of_their_own(
    small_dataset, tiny_weights, tmp_path, stac_embeddings, form
):
    options = EmbedOptions(
        modalities=["s2_l2a"], workers=0, dense=True, dense_format=form, quantise=Quantise.INT8
    )
    embed(tiny_weights, small_dataset, tmp_path / "out", options)
    whole = pystac.Collection.from_file(str(tmp_path / "out/collection.json"))
    (related,) = [link for link in whole.links if link.rel == "related"]
    assert related.get_absolute_href() == str(tmp_path / "out/dense/collection.json")
    check_rasters(tmp_path / "out", 11, stac_embeddings, form)
    collection = json.loads((tmp_path / "out/dense/collection.json").read_text())
    assert (collection["emb:type"], collection["data_type"]) == ("pixel", "int8")
    assert collection["extent"] == json.loads(json.dumps(whole.extent.to_dict()))
    item = json.loads((tmp_path / "out/dense/items/tile_04.json").read_text())
    assert item["properties"]["start_datetime"] == "2021-01-01T00:00:00Z"
    if form is DenseFormat.GEOTIFF:
        with rasterio.open(tmp_path / "out/dense/tile_04.tif") as file:
            stated = item["properties"]["emb:quantization"]
            np.testing.assert_allclose(stated["scale"], file.scales)
            np.testing.assert_allclose(stated["offset"], file.offsets)


def test_mosaics_in_subfolders_have_items_too(write_scene, tiny_weights, tmp_path, stac_embeddings):
    write_scene(tmp_path / "scenes/north/a.tif", (64, 96))
    write_scene(tmp_path / "scenes/b.tif", (64, 64), seed=1, corner=(6e5, 5e6))
    options = EmbedOptions(modalities=["s2_l2a"], workers=0, dense=True)
    embed(tiny_weights, tmp_path / "scenes", tmp_path / "out", options)
    items = check_rasters(tmp_path / "out", 2, stac_embeddings, DenseFormat.GEOTIFF)
    assert sorted(item.id for item in items) == ["b", "north_a"]
    assert items[0].properties["start_datetime"] == "2021-06-01T10:00:00Z"


def check_rasters(folder, count, check, form):
    """Items lead to rasters that lie where they say; valid by core and extension."""
    collection = pystac.Collection.from_file(str(folder / "dense/collection.json"))
    check(json.loads((folder / "dense/collection.json").read_text()))
    items = list(collection.get_items())
    assert len(items) == count
    for item in items:
        check(json.loads(Path(item.self_href).read_text()))
        assert item.get_collection().id == collection.id == "out-dense"
        where = item.assets["embeddings"].get_absolute_href()
        if form is DenseFormat.GEOTIFF:
            with rasterio.open(where) as raster:
                assert list(raster.transform)[:6] == item.properties["proj:transform"]
                assert list(raster.shape) == item.properties["proj:shape"]
                assert str(raster.crs) == item.properties["proj:code"]
                corners = transform_bounds(raster.crs, "OGC:CRS84", *raster.bounds)
            np.testing.assert_allclose(item.bbox, corners, atol=1e-3)
        else:
            assert (Path(where) / "zarr.json").is_file()
    for document in (collection, *items):
        document.stac_extensions = []
        assert document.validate()
    return items


def test_the_model_is_a_link_to_its_item_where_it_has_one(
    small_dataset, tiny_weights, tmp_path, stac_embeddings
):
    encoder = load_encoder(tiny_weights)
    item = export_weights(
        encoder.state_dict(), encoder.contract, str(tmp_path / "weights"), "safetensors"
    )[-1]
    options = EmbedOptions(modalities=["s2_l2a"], workers=0)
    # The folder that holds the weights stands for them.
    embed(tmp_path / "weights", small_dataset, tmp_path / "out", options)
    for document in documents(tmp_path / "out"):
        stac_embeddings(document)
        (link,) = [link for link in document["links"] if link["rel"] == "emb:model"]
        assert link == {
            "rel": "emb:model", "href": f"file://{item}", "type": "application/geo+json",
            "title": "terrafm_tiny",
        }  # fmt: skip
    model = pystac.Item.from_file(link["href"].removeprefix("file://"))
    assert model.properties["mlm:name"] == "terrafm_tiny"
