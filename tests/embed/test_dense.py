"""Patch embeddings: cloud-optimised, and every patch where its pixels are."""

import numpy as np
import pytest
import rasterio
import torch

from terrafm.data.shards.dataset import Dataset
from terrafm.embed.dense import dense_uri, write_tile
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


def test_a_large_one_is_tiled_with_overviews(tmp_path):
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((3, 300, 300)).astype(np.float32)
    patches[:, :5] = np.nan
    place = Place("a_tile", "EPSG:32633", (10, 0, 5e5, 0, -10, 5e6), (4800, 4800), "u")
    write_tile(str(tmp_path), place, patches, {"MODEL": "m"})
    with rasterio.open(dense_uri(str(tmp_path), "a_tile")) as file:
        assert structure(file)["LAYOUT"] == "COG"
        assert file.profile["tiled"]
        assert file.block_shapes == [(128, 128)] * 3
        assert file.overviews(1)
        assert np.isnan(file.nodata)
        assert file.transform == rasterio.Affine(160, 0, 5e5, 0, -160, 5e6)
        np.testing.assert_array_equal(file.read(), patches)
        assert file.tags()["MODEL"] == "m"
        assert file.dataset_mask()[:5].max() == 0
        assert file.dataset_mask()[5:].min() == 255


def test_tiles_of_a_dataset(small_dataset, tiny_weights, tmp_path):
    options = EmbedOptions(modalities=["s2_l2a"], dense=True, workers=0)
    report = embed(tiny_weights, small_dataset, tmp_path / "out", options)
    plain = EmbedOptions(modalities=["s2_l2a"], workers=0)
    embed(tiny_weights, small_dataset, tmp_path / "plain", plain)
    dataset, images = Dataset.open(small_dataset), ShardTiles(small_dataset)
    written = sorted(path.name for path in (tmp_path / "out" / "dense").iterdir())
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
        write_tile(str(tmp_path / "out"), place, np.zeros((3, 60, 60), np.float32), {})
    assert list(tmp_path.iterdir()) == []
