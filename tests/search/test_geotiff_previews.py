"""Neighbours among windows of GeoTIFFs: their pictures are cut from the files."""

import shutil

import numpy as np
import pytest
import rasterio

from terrafm.data.rasters.opening import open_raster
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.schema import read_manifest
from terrafm.errors import TerraFMError, UsageError
from terrafm.search.previews import open_previews
from terrafm.search.similar import find_similar

# Out of order, one of them a name that is none.
BANDS = ("B8A", "B02", "quality", "B03", "B04")


def write_scene(path, seed, nodata=None):
    pixels = np.random.default_rng(seed).integers(300, 4000, (5, 90, 70)).astype(np.uint16)
    pixels[:, :8, :8] = 0
    with rasterio.open(
        path, "w", driver="GTiff", count=5, height=90, width=70, dtype="uint16", nodata=nodata,
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5 + 9000 * seed, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(pixels)
        for number, band in enumerate(BANDS, start=1):
            file.set_band_description(number, band)
    return pixels


@pytest.fixture
def scenes(tmp_path):
    (tmp_path / "scenes" / "b").mkdir(parents=True)
    return {
        name: write_scene(tmp_path / "scenes" / f"{name}.tif", seed)
        for seed, name in enumerate(("a", "b/c"))
    }


@pytest.fixture
def folder(scenes, write, tmp_path):
    """URI of embeddings of both scenes' windows."""
    source = GeoTiffWindows(
        str(tmp_path / "scenes"), modality="s2_l2a", bands=None, window=64, overlap=16, size=64,
        dense=False,
    )  # fmt: skip
    vectors = np.random.default_rng(0).normal(size=(len(source), 6)).astype(np.float32)
    return write(
        str(tmp_path / "e"), [source.place(row) for row in range(len(source))], vectors,
        data=source.uri, kind="geotiff", modalities=("s2_l2a",), options=source.options,
    )  # fmt: skip


def test_a_look_is_the_window_of_the_file(folder, scenes):
    result = find_similar(folder, "a_r26_c6", count=99)
    tiles = [result["query"], *result["neighbours"]]
    assert len(tiles) == 8
    previews = open_previews(read_manifest(folder), None, tiles)
    for tile in tiles:
        name, row, column = tile["tile_id"].rsplit("_", 2)
        top, left = int(row[1:]), int(column[1:])
        expected = scenes[name][[4, 3, 1], top : top + 64, left : left + 64] * np.float32(1e-4)
        expected[expected == 0] = np.nan
        found = previews.preview(tile).image
        np.testing.assert_allclose(found, np.moveaxis(expected, 0, -1), rtol=1e-6)
    assert np.isnan(
        previews.preview(next(t for t in tiles if t["tile_id"] == "a_r0_c0")).image
    ).any()


def test_the_command_draws_them_also_where_they_were_moved(run, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    moved = tmp_path / "moved"
    shutil.move(tmp_path / "scenes", moved)
    code, out, errors = run("search", folder, "--tile", "b/c_r0_c6", "-k", "3")
    assert code == 0
    assert "b/c_r0_c6" in out
    assert "scenes does not exist; --data URI says where the pixels lie now" in errors
    code, out, errors = run("search", folder, "--tile", "b/c_r0_c6", "-k", "3", "--data", moved)
    assert (code, errors) == (0, "")
    assert (tmp_path / "contact_sheet.png").stat().st_size > 20_000


def test_a_file_that_is_gone_or_damaged_is_one_line(folder, tmp_path):
    tile = find_similar(folder, "a_r26_c6", count=1)["query"]
    file = tmp_path / "scenes" / "a.tif"
    previews = open_previews(read_manifest(folder), None, [tile])
    for damage in (lambda: file.write_bytes(file.read_bytes()[:3000]), file.unlink):
        damage()
        with pytest.raises(TerraFMError, match=r"cannot read image .*a\.tif") as caught:
            previews.preview(tile)
        assert "\n" not in str(caught.value)
    shutil.rmtree(tmp_path / "scenes")
    with pytest.raises(UsageError, match="does not exist"):
        open_previews(read_manifest(folder), None, [tile])


def test_without_the_bands_of_a_picture_there_is_none(folder, tmp_path):
    tile = find_similar(folder, "a_r26_c6", count=1)["query"]
    manifest = read_manifest(folder)
    told = manifest.options["bands"].replace("B04=5", "")
    manifest = manifest.model_copy(update={"options": {**manifest.options, "bands": told}})
    assert open_previews(manifest, None, [tile]).preview(tile) is None


@pytest.mark.parametrize("source", ["{data}/../private.tif", "/etc/private.tif", "/vsicurl/x.tif"])
def test_an_image_outside_of_the_data_is_not_looked_at(folder, tmp_path, source):
    tile = find_similar(folder, "a_r26_c6", count=1)["query"]
    shutil.copy(tmp_path / "scenes" / "a.tif", tmp_path / "private.tif")
    previews = open_previews(read_manifest(folder), None, [tile])
    with pytest.raises(UsageError, match=r"private\.tif|x\.tif"):
        previews.preview(tile | {"source": source.format(data=tmp_path / "scenes")})


def test_gdals_own_file_systems_are_not_opened():
    with pytest.raises(ValueError, match="GDAL"):
        open_raster("/vsicurl?url=http%3A%2F%2F127.0.0.1%3A9%2Fx.tif")


@pytest.mark.parametrize("side", [0, -1, 30_000, 10**12, "64", None, 64.5, True])
def test_a_manifest_does_not_choose_how_much_memory_a_picture_takes(side, folder):
    tile = find_similar(folder, "a_r26_c6", count=1)["query"]
    manifest = read_manifest(folder)
    manifest = manifest.model_copy(update={"options": {**manifest.options, "window": side}})
    with pytest.raises(UsageError, match=r"windows of .* pixels, not of 1 to 4096"):
        open_previews(manifest, None, [tile])


@pytest.mark.parametrize(("side", "value"), [("width", 3000), ("height", -1), ("column", 10**6)])
def test_neither_does_a_row(side, value, folder):
    tile = find_similar(folder, "a_r26_c6", count=1)["query"]
    previews = open_previews(read_manifest(folder), None, [tile])
    with pytest.raises(TerraFMError, match=r"a\.tif"):
        previews.preview(tile | {"window": tile["window"] | {side: value}})
