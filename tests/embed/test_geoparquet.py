"""What is written opens in GeoPandas and DuckDB, and says what the dataset says."""

import io
import json

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
import shapely
from pyproj import Transformer

from terrafm.data.shards.dataset import Dataset
from terrafm.embed import packing
from terrafm.embed.hilbert import hilbert_order
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.embed.rows import footprint, part_bytes
from terrafm.embed.schema import embedding_schema, part_uris, read_manifest
from terrafm.embed.source import DatasetTiles, Place
from terrafm.errors import UsageError
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.models.weights import load_encoder, state_fingerprint
from terrafm.ray import parts
from terrafm.storage import exists

FUSED = ("s1", "s2_l2a")


@pytest.fixture(scope="module")
def written(small_dataset, tiny_weights, tmp_path_factory):
    """A folder of 11 rows in three files, of a part each."""
    output = tmp_path_factory.mktemp("embedded") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "_LEAST_ROWS", 4)
        patch.setattr(packing, "ROW_GROUP_BYTES", 1)
        embed(tiny_weights, small_dataset, output, EmbedOptions(modalities=FUSED, workers=0))
    return output


def in_order(dataset):
    order = hilbert_order(dataset.longitude, dataset.latitude)
    return [str(dataset.tile_ids[row]) for row in order]


def test_geopandas_opens_every_part(written, small_dataset):
    dataset = Dataset.open(small_dataset)
    manifest = read_manifest(written)
    frames = [geopandas.read_parquet(uri) for uri in part_uris(written, manifest)]
    assert [len(frame) for frame in frames] == [4, 4, 3]
    ids = [tile for frame in frames for tile in frame["tile_id"]]
    assert ids == in_order(dataset)
    for frame in frames:
        assert frame.crs.equals("OGC:CRS84")
        assert frame.geometry.is_valid.all()
    # Footprints lie where the index has the pixels: 960 m squares in UTM zone 33.
    back = Transformer.from_crs("OGC:CRS84", "EPSG:32633", always_xy=True)
    for tile, geometry in zip(ids, (g for f in frames for g in f.geometry), strict=True):
        number = int(tile.removeprefix("tile_"))
        square = shapely.transform(geometry, lambda xy: np.stack(back.transform(*xy.T), 1))
        west = 500000.0 + number * 960
        expected = (west, 10000.0 - 960, west + 960, 10000.0)
        np.testing.assert_allclose(square.bounds, expected, atol=0.01)
        assert square.area == pytest.approx(960**2, rel=1e-6)


def test_geopandas_reads_only_what_lies_in_a_box(written):
    whole = geopandas.read_parquet(written / "tiles" / "part-00000.parquet")
    west, south, east, north = whole.geometry.iloc[1].bounds
    box = (west + 1e-4, south, east - 1e-4, north)
    found = geopandas.read_parquet(written / "tiles" / "part-00000.parquet", bbox=box)
    assert found["tile_id"].tolist() == [whole["tile_id"].iloc[1]]


def test_duckdb_opens_all_parts_together(written, small_dataset):
    parts = f"{written}/tiles/*.parquet"
    with duckdb.connect() as connection:

        def ask(columns, rest=""):
            return connection.execute(f"select {columns} from '{parts}' {rest}").fetchall()

        described = connection.execute(f"describe select * from '{parts}'").fetchall()
        kinds = {name: kind for name, kind, *_ in described}
        ((rows, tiles, longest),) = ask("count(*), count(distinct tile_id), max(len(embedding))")
        classes = dict(ask("land_cover_name, count(*)", "group by all"))
        ((text, xmin),) = ask("geometry::varchar, bbox.xmin", "where tile_id = 'tile_05'")
    assert kinds["geometry"].startswith("GEOMETRY")
    assert kinds["embedding"] == "FLOAT[]"
    assert (rows, tiles, longest) == (11, 11, 96)
    dataset = Dataset.open(small_dataset)
    counts = {dataset.legend[code]: n for code, n in dataset.class_counts().items()}
    assert classes == counts
    assert shapely.from_wkt(text).bounds[0] == pytest.approx(xmin)


def test_rows_say_what_the_dataset_and_the_weights_say(written, small_dataset, tiny_weights):
    dataset, encoder = Dataset.open(small_dataset), load_encoder(tiny_weights)
    table = pq.read_table(written / "tiles")
    assert table.schema.remove_metadata().equals(embedding_schema(encoder.embed_dim))
    rows = {row["tile_id"]: row for row in table.to_pylist()}
    for number, tile_id in enumerate(dataset.tile_ids):
        row, tile = rows[str(tile_id)], dataset.tile(number)
        assert row["land_cover"] == tile["land_cover"]
        assert row["time_s1"].isoformat() == "2021-01-01T00:00:00+00:00"
        assert row["time_s2_l1c"] is None
        assert row["modalities"] == list(FUSED)
        assert row["source"] == small_dataset
        assert row["data_fingerprint"] == dataset.fingerprint
        assert row["model_fingerprint"] == state_fingerprint(encoder)
        assert row["window"] is None


@pytest.mark.parametrize("product", [{}, {"time": ""}, {"time": "last summer"}])
def test_a_time_that_is_not_known_is_none(small_dataset, monkeypatch, product):
    tiles = DatasetTiles(small_dataset)
    tile = tiles.dataset.tile(0)
    monkeypatch.setattr(tiles.dataset, "tile", lambda _: tile | {"products": {"s1": product}})
    assert tiles.place(0).times == {}


def test_the_metadata_is_geoparquet(written):
    geo = json.loads(pq.read_schema(written / "tiles" / "part-00000.parquet").metadata[b"geo"])
    assert geo["version"] == "1.1.0"
    (column,) = geo["columns"].values()
    assert column["encoding"] == "WKB"
    assert column["geometry_types"] == ["Polygon"]
    assert column["covering"]["bbox"]["ymax"] == ["bbox", "ymax"]
    frame = geopandas.read_parquet(written / "tiles" / "part-00000.parquet")
    np.testing.assert_allclose(column["bbox"], frame.total_bounds)


def test_embeddings_are_the_encoders_cls_tokens_as_they_are(written, small_dataset, tiny_weights):
    import torch

    from terrafm.eval.features.extraction import model_input

    encoder, images = load_encoder(tiny_weights), ShardTiles(small_dataset)
    normalisation = {
        m: {"mean": part.mean, "std": part.std} for m, part in encoder.contract.modalities.items()
    }
    pixels = model_input(images.read(3, FUSED), normalisation, 64)
    with torch.inference_mode():
        expected = encoder({name: x[None] for name, x in pixels.items()})[0].numpy()
    table = pq.read_table(written / "tiles")
    found = np.stack(table["embedding"].to_numpy())[table["tile_id"].to_pylist().index("tile_03")]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.isclose(np.linalg.norm(found), 1)


def test_everything_may_lie_in_a_store(written, small_dataset, tiny_weights, s3_bucket, tmp_path):
    copy = s3fs.S3FileSystem()
    copy.put(small_dataset, f"{s3_bucket}/dataset", recursive=True)
    copy.put(tiny_weights, f"{s3_bucket}/tiny.safetensors")
    output = f"{s3_bucket}/embedded"
    options = EmbedOptions(modalities=FUSED, workers=0)
    for complete in (False, True):
        report = embed(f"{s3_bucket}/tiny.safetensors", f"{s3_bucket}/dataset", output, options)
        assert report.already_complete == complete
    (part,) = part_uris(output, read_manifest(output))
    copy.get(part, str(tmp_path / "part.parquet"))
    found = pq.read_table(tmp_path / "part.parquet")
    here = pq.read_table(written / "tiles")
    assert found["tile_id"].equals(here["tile_id"])
    assert found["source"][0].as_py() == f"{s3_bucket}/dataset"
    ours, theirs = (np.stack(t["embedding"].to_numpy()) for t in (found, here))
    assert np.abs(ours - theirs).max() <= 1e-5
    assert not exists(f"{output}/entries")


def test_a_footprint_across_180_degrees_is_two_polygons():
    # Zone 1 begins at 180 degrees: half of the tile lies west of it.
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:32601", always_xy=True).transform(180, 10)
    place = Place("t", "EPSG:32601", (10, 0, x - 500, 0, -10, y + 500), (100, 100), "u")
    outline = footprint(place)
    assert outline.geom_type == "MultiPolygon"
    assert outline.bounds[0] == pytest.approx(-180)
    assert outline.bounds[2] == pytest.approx(180)
    assert outline.area < 0.001
    content = part_bytes([place], [("s1",)], np.zeros((1, 4), np.float32), ("m", "d"))
    row = pq.read_table(io.BytesIO(content)).to_pylist()[0]
    assert (row["bbox"]["xmin"], row["bbox"]["xmax"]) == (-180, 180)


def test_a_folder_without_embeddings_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no embeddings"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("west", "bounds"),
    [
        (179.5, [(179.5, 180.0), (-180.0, -179.5)]),
        (190.0, [(-170.0, -169.0)]),
        (-180.5, [(179.5, 180.0), (-180.0, -179.5)]),
        (180.0, [(-180.0, -179.0)]),
        (179.0, [(179.0, 180.0)]),
        (-180.0, [(-180.0, -179.0)]),
        (359.5, [(-0.5, 0.5)]),
        (539.5, [(179.5, 180.0), (-180.0, -179.5)]),
        (12.0, [(12.0, 13.0)]),
    ],
)
@pytest.mark.parametrize("crs", ["EPSG:4326", "OGC:CRS84", "EPSG:4258"])
def test_longitudes_of_footprints_are_within_180(west, bounds, crs):
    place = Place("a", crs, (0.1, 0.0, west, 0.0, -0.1, 50.0), (10, 10), "here")
    outline = footprint(place)
    parts = sorted(getattr(outline, "geoms", [outline]), key=lambda part: -part.bounds[0])
    assert outline.geom_type == ("Polygon" if len(bounds) == 1 else "MultiPolygon")
    np.testing.assert_allclose([part.bounds[::2] for part in parts], bounds, atol=1e-9)
    assert outline.area == pytest.approx(1.0)
    assert outline.is_valid
