"""Patch embeddings: cloud-optimised, and every patch where its pixels are."""

import json

import numpy as np
import pytest
import rasterio
import torch
import xarray

from terrafm.data.shards.dataset import Dataset
from terrafm.embed import dense_files
from terrafm.embed.choices import DenseFormat
from terrafm.embed.dense import write_tile
from terrafm.embed.dense_files import DenseStyle
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.embed.source import Place
from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Grid
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import model_input
from terrafm.modalities import MODALITIES
from terrafm.models.weights import load_encoder
from terrafm.ray import parts

BANDS = MODALITIES["s2_l2a"].bands


def patch_map(weights, image, size):
    encoder = load_encoder(weights)
    part = encoder.contract.modalities["s2_l2a"]
    normalisation = {"s2_l2a": {"mean": part.mean, "std": part.std}}
    pixels = model_input(image, normalisation, size)["s2_l2a"]
    with torch.inference_mode():
        (found,) = encoder.forward_features(pixels[None], "s2_l2a")
    return found[0].numpy()


def structure(file):
    return file.tags(ns="IMAGE_STRUCTURE")


def style(form=DenseFormat.GEOTIFF, is_int8=False):
    return DenseStyle(form, is_int8, "/weights", "s3://bucket/data", {"MODEL": "m"})


@pytest.fixture
def large():
    """A tile whose upper rows have no data, and its patches (3, 300, 300)."""
    patches = np.random.default_rng(0).standard_normal((3, 300, 300)).astype(np.float32)
    patches[:, :5] = np.nan
    place = Place("a_tile", "EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), (4800, 4800), "u")
    return place, patches


def test_a_large_one_is_tiled_with_overviews(large, tmp_path):
    place, patches = large
    write_tile(str(tmp_path), place, patches, style())
    with rasterio.open(tmp_path / "dense" / "a_tile.tif") as file:
        assert structure(file)["LAYOUT"] == "COG"
        assert structure(file)["COMPRESSION"] == "ZSTD"
        assert structure(file)["PREDICTOR"] == "3"
        assert file.descriptions == ("embedding_000", "embedding_001", "embedding_002")
        assert file.profile["tiled"]
        assert file.block_shapes == [(128, 128)] * 3
        assert file.overviews(1)
        assert np.isnan(file.nodata)
        assert file.transform == rasterio.Affine(160, 0, 5e5, 0, -160, 5e6)
        np.testing.assert_array_equal(file.read(), patches)
        assert file.tags()["MODEL"] == "m"
        assert file.dataset_mask()[:5].max() == 0
        assert file.dataset_mask()[5:].min() == 255


def test_int8_has_scales_that_gdal_knows(large, tmp_path):
    place, patches = large
    write_tile(str(tmp_path), place, patches, style(is_int8=True))
    with rasterio.open(tmp_path / "dense" / "a_tile.tif") as file:
        assert set(file.dtypes) == {"int8"}
        assert (file.nodata, structure(file)["PREDICTOR"]) == (-128, "2")
        stored = file.read(masked=True)
        values = stored * np.reshape(file.scales, (3, 1, 1)) + np.reshape(file.offsets, (3, 1, 1))
        assert file.overviews(1)
    assert stored.mask[:, :5].all()
    assert not stored.mask[:, 5:].any()
    steps = np.ptp(patches[:, 5:], axis=(1, 2)) / 254
    assert (np.abs(values - patches)[:, 5:].max((1, 2)) <= 0.501 * steps).all()


@pytest.mark.parametrize("is_int8", [False, True])
def test_zarr_is_what_the_geotiff_is(large, is_int8, tmp_path, geoemb_schema):
    """By xarray, and as the conventions have it."""
    place, patches = large
    for form in DenseFormat:
        write_tile(str(tmp_path), place, patches, style(form, is_int8))
    folder = tmp_path / "dense" / "a_tile.zarr"
    with xarray.open_zarr(folder) as opened:
        found = opened.load()
    with rasterio.open(tmp_path / "dense" / "a_tile.tif") as file:
        expected = file.read().astype(np.float32)
        expected[expected == -128] = np.nan
        x, y = (np.array(file.xy(row, column)) for row, column in ((0, 0), (299, 299)))
        corners = np.stack([found.x[[0, -1]], found.y[[0, -1]]], axis=1)
        np.testing.assert_allclose(corners, [x, y])
        attributes = found.attrs
        assert attributes["spatial:transform"] == list(file.transform)[:6]
        assert attributes["proj:code"] == "EPSG:32633"
    assert found.embeddings.dims == ("embedding", "y", "x")
    np.testing.assert_array_equal(found.embeddings, expected)
    if is_int8:
        values = found.embeddings * found.scale + found.offset
        np.testing.assert_allclose(values[:, 5:], patches[:, 5:], atol=0.03)
        assert attributes["geoemb:quantization"]["quantized_dtype"] == "int8"
    group = json.loads((folder / "zarr.json").read_text())
    geoemb_schema(group)
    assert attributes["geoemb:model"] == "file:///weights"
    assert attributes["geoemb:source_data"] == ["s3://bucket/data"]
    assert attributes["geoemb:gsd"] == 160
    names = {part["name"] for part in attributes["zarr_conventions"]}
    assert names == {"geoemb:", "proj:", "spatial"}


def test_zarr_in_a_store_has_its_root_last(large, s3_bucket, monkeypatch):
    place, patches = large
    uploaded = []
    real = dense_files.upload
    monkeypatch.setattr(
        dense_files, "upload", lambda file, uri: uploaded.append(uri) or real(file, uri)
    )
    write_tile(f"{s3_bucket}/out", place, patches, style(DenseFormat.ZARR))
    assert uploaded[-1] == f"{s3_bucket}/out/dense/a_tile.zarr/zarr.json"
    found = xarray.open_zarr(uploaded[-1].removesuffix("/zarr.json"))
    np.testing.assert_array_equal(found.embeddings, patches)


def test_tiles_of_a_dataset(small_dataset, tiny_weights, tmp_path):
    options = EmbedOptions(modalities=["s2_l2a"], dense=True, workers=0)
    report = embed(tiny_weights, small_dataset, tmp_path / "out", options)
    plain = EmbedOptions(modalities=["s2_l2a"], workers=0)
    embed(tiny_weights, small_dataset, tmp_path / "plain", plain)
    dataset, images = Dataset.open(small_dataset), ShardTiles(small_dataset)
    written = sorted(path.name for path in (tmp_path / "out" / "dense").glob("*.tif"))
    assert written == [f"{tile}.tif" for tile in dataset.tile_ids]
    with rasterio.open(tmp_path / "out" / "dense" / "tile_04.tif") as file:
        assert structure(file)["LAYOUT"] == "COG"
        assert file.crs == "EPSG:32633"
        # 96 pixels of 10 m seen as 64: a patch of 16 is 240 m.
        assert file.transform == rasterio.Affine(240, 0, 5e5 + 4 * 960, 0, -240, 1e4)
        assert file.shape == (4, 4)
        assert file.count == report.manifest.dim
        expected = patch_map(tiny_weights, images.read(4, ["s2_l2a"]), 64)
        np.testing.assert_allclose(file.read(), expected, atol=1e-5)
        assert file.tags()["TILE_ID"] == "tile_04"
        assert file.tags()["DATA_FINGERPRINT"] == dataset.fingerprint
    import pyarrow.parquet as pq

    ours = pq.read_table(tmp_path / "out" / "tiles")["embedding"].to_pylist()
    others = pq.read_table(tmp_path / "plain" / "tiles")["embedding"].to_pylist()
    np.testing.assert_allclose(ours, others, atol=1e-5)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "collection.json", "dense", "embedding.json", "items", "job.json", "tiles",
    ]  # fmt: skip


@pytest.fixture
def scene(tmp_path):
    """A scene of 170 x 250 pixels, whose sides hold no whole patches; a corner has no data."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(1200, 4200, (12, 170, 250)).astype(np.uint16)
    pixels[:, :48, :64] = 0
    path = tmp_path / "scenes" / "north.tif"
    path.parent.mkdir()
    with rasterio.open(
        path, "w", driver="GTiff", count=12, height=170, width=250, dtype="uint16",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(pixels)
        for number, band in enumerate(BANDS, start=1):
            file.set_band_description(number, band)
    return path, pixels


def test_a_mosaic_of_windows(scene, tiny_weights, tmp_path, monkeypatch):
    path, pixels = scene
    # Several parts, so that the mosaic is put together from more than one.
    monkeypatch.setattr(parts, "_LEAST_ROWS", 4)
    options = EmbedOptions(modalities=["s2_l2a"], window=128, dense=True, workers=0)
    embed(tiny_weights, path, tmp_path / "out", options)
    with rasterio.open(tmp_path / "out" / "dense" / "north.tif") as file:
        mosaic = file.read()
        assert structure(file)["LAYOUT"] == "COG"
        assert file.crs == "EPSG:32633"
        # A window of 128 is seen as 64: a patch is 32 pixels of 10 m.
        assert file.transform == rasterio.Affine(320, 0, 5e5, 0, -320, 5e6)
        assert file.shape == (6, 8)
        left, bottom, right, top = file.bounds
        assert (left, top) == (5e5, 5e6)
        assert right >= 5e5 + 2500 > right - 320
        assert bottom <= 5e6 - 1700 < bottom + 320
    # 48 x 64 pixels without data: one row of two whole patches, the next has some.
    assert np.isnan(mosaic[:, 0, :2]).all()
    assert not np.isnan(mosaic[:, 1:]).any()
    # Windows of 4 patches, one of which overlaps: rows start at 0 and 2, columns at 0, 3, 4.
    stored = np.zeros((12, 256, 288), np.float32)
    stored[:, :170, :250] = pixels
    stored[stored == 0] = np.nan

    def window(row, column):
        at = stored[:, 32 * row : 32 * row + 128, 32 * column : 32 * column + 128] * 1e-4
        return patch_map(tiny_weights, {"s2_l2a": [Grid(tuple(range(12)), at)]}, 64)

    np.testing.assert_allclose(mosaic[:, 3:6, :3], window(2, 0)[:, 1:, :3], atol=1e-5)
    np.testing.assert_allclose(mosaic[:, 1:3, 6:8], window(0, 4)[:, 1:3, 2:], atol=1e-5)
    assert not (tmp_path / "out" / "blocks").exists()


def test_the_mosaic_is_continuous_where_windows_meet(scene, tiny_weights, tmp_path):
    """Other windows give almost the same patches: they lie on the same grid."""
    path, _ = scene
    found = {}
    for overlap in (16, 48):
        options = EmbedOptions(modalities=["s2_l2a"], overlap=overlap, dense=True, workers=0)
        embed(tiny_weights, path, tmp_path / str(overlap), options)
        with rasterio.open(tmp_path / str(overlap) / "dense" / "north.tif") as file:
            assert file.transform == rasterio.Affine(160, 0, 5e5, 0, -160, 5e6)
            assert file.shape == (11, 16)
            found[overlap] = file.read()
    assert (np.isnan(found[16]) == np.isnan(found[48])).all()


def test_patches_that_are_no_whole_pixels(scene, tiny_weights, refused, tmp_path):
    line = refused(
        "embed", "--weights", tiny_weights, "--data", scene[0], "--output", tmp_path / "out",
        "--modality", "s2_l2a", "--dense", "--window", "90", "--workers", "0",
    )  # fmt: skip
    assert "resized to 64, is 22.5 pixels, which must be whole: take --window 88" in line


def test_a_tile_whose_name_leads_elsewhere_writes_nothing(tmp_path):
    place = Place("../../a_tile", "EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), (960, 960), "u")
    with pytest.raises(UsageError, match="leads out of"):
        write_tile(str(tmp_path / "out"), place, np.zeros((3, 60, 60), np.float32), style())
    assert list(tmp_path.iterdir()) == []
