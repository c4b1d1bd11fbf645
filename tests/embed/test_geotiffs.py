"""GeoTIFFs of any size: windows on their own grid, and files that do not fit."""

import fsspec
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from pyproj import Transformer

from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.embed.schema import read_manifest
from terrafm.eval.datasets.labelled import Grid
from terrafm.eval.features.extraction import model_input
from terrafm.modalities import MODALITIES
from terrafm.models.weights import load_encoder

BANDS = MODALITIES["s2_l2a"].bands
L2A = ("--modality", "s2_l2a")


def read_rows(output):
    """File by file, row by row, column by column."""
    rows = pq.read_table(output / "tiles").to_pylist()
    return sorted(rows, key=lambda r: (r["source"], r["window"]["row"], r["window"]["column"]))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_windows_of_one_file(write_scene, tiny_weights, tmp_path):
    scene = tmp_path / "scene.tif"
    pixels = write_scene(scene)
    options = EmbedOptions(modalities=["s2_l2a"], window=64, overlap=16, workers=0)
    embed(tiny_weights, scene, tmp_path / "out", options)
    rows = read_rows(tmp_path / "out")
    tops, lefts = [0, 48, 86], [0, 48, 96, 144, 166]
    expected = [(left, top, 64, 64) for top in tops for left in lefts]
    assert [tuple(row["window"].values()) for row in rows] == expected
    assert rows[1]["tile_id"] == "scene_r0_c48"
    assert rows[0]["source"] == str(scene)
    assert rows[0]["time_s2_l2a"].isoformat() == "2021-06-01T10:00:00+00:00"
    assert rows[0]["crs"] == "EPSG:32633"
    assert rows[0]["land_cover"] is None
    # The numbers are those of the encoder on the pixels of the window.
    encoder = load_encoder(tiny_weights)
    contract = encoder.contract.modalities["s2_l2a"]
    for row in (rows[0], rows[9], rows[-1]):
        left, top, width, height = row["window"].values()
        cut = pixels[:, top : top + height, left : left + width] * np.float32(1e-4)
        image = {"s2_l2a": [Grid(tuple(range(12)), cut)]}
        seen = model_input(image, {"s2_l2a": {"mean": contract.mean, "std": contract.std}}, 64)
        with torch.inference_mode():
            cls = encoder(seen["s2_l2a"][None], "s2_l2a")[0].numpy()
        np.testing.assert_allclose(row["embedding"], cls, atol=1e-5)
    # And lie where the pixels lie.
    frame = geopandas.read_parquet(tmp_path / "out" / "tiles" / "part-00000.parquet")
    frame = frame.set_index("tile_id").loc[[rows[-1]["tile_id"]]]
    back = Transformer.from_crs("OGC:CRS84", "EPSG:32633", always_xy=True)
    x, y = back.transform(*frame.geometry.iloc[-1].centroid.coords[0])
    assert (x, y) == pytest.approx((5e5 + 10 * (166 + 32), 5e6 - 10 * (86 + 32)), abs=0.5)


def test_a_folder_with_scenes_of_two_zones(write_scene, tiny_weights, tmp_path):
    write_scene(tmp_path / "in" / "a" / "one.tif", (64, 64))
    write_scene(tmp_path / "in" / "b" / "one.tif", (40, 100), seed=1, crs="EPSG:32634")
    options = EmbedOptions(modalities=["s2_l2a"], workers=0)
    embed(tiny_weights, tmp_path / "in", tmp_path / "out", options)
    rows = read_rows(tmp_path / "out")
    ids = ["a/one_r0_c0", "b/one_r0_c0", "b/one_r0_c36"]
    assert [row["tile_id"] for row in rows] == ids
    assert [row["crs"] for row in rows] == ["EPSG:32633", "EPSG:32634", "EPSG:32634"]
    # What sticks out of the lower, smaller image is no part of its footprint.
    assert rows[2]["window"] == {"column": 36, "row": 0, "width": 64, "height": 40}
    manifest = read_manifest(tmp_path / "out")
    assert manifest.data_kind == "geotiff"
    assert manifest.options["window"] == 64
    assert manifest.options["overlap"] == 16


def test_a_file_in_a_store_is_read_where_it_lies(write_scene, tiny_weights, tmp_path, monkeypatch):
    write_scene(tmp_path / "scene.tif", (300, 300), tiled=True, blockxsize=64, blockysize=64)
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/scene.tif", (tmp_path / "scene.tif").read_bytes())
    options = EmbedOptions(modalities=["s2_l2a"], window=64, workers=0)
    embed(tiny_weights, "memory://bucket/scene.tif", tmp_path / "out", options)
    embed(tiny_weights, tmp_path / "scene.tif", tmp_path / "local", options)
    far, near = read_rows(tmp_path / "out"), read_rows(tmp_path / "local")
    assert [r["tile_id"] for r in far] == [r["tile_id"] for r in near]
    assert [r["embedding"] for r in far] == [r["embedding"] for r in near]
    assert far[0]["source"] == "memory://bucket/scene.tif"


def test_a_window_without_data_has_no_row(write_scene, tiny_weights, tmp_path):
    pixels = write_scene(tmp_path / "scene.tif", (64, 128))
    pixels[:, :, 64:] = 0
    with rasterio.open(tmp_path / "scene.tif", "r+") as file:
        file.write(pixels)
    options = EmbedOptions(modalities=["s2_l2a"], window=64, overlap=0, workers=0)
    report = embed(tiny_weights, tmp_path / "scene.tif", tmp_path / "out", options)
    assert [row["tile_id"] for row in read_rows(tmp_path / "out")] == ["scene_r0_c0"]
    assert (report.manifest.rows, report.manifest.skipped) == (1, 1)
    assert "1 without a pixel of s2_l2a: no row" in report.render().plain


@pytest.fixture
def refuse(refused, tiny_weights, tmp_path):
    def command(*more, data=tmp_path / "in", weights=tiny_weights):
        return refused(
            "embed", "--weights", weights, "--data", data, "--output", tmp_path / "out",
            "--workers", "0", *(more or L2A),
        )  # fmt: skip

    return command


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crs": "EPSG:4326", "gsd": 1e-4, "corner": (15, 45)}, "lies in a CRS in degrees"),
        ({"gsd": 20.0}, "has pixels of 20 metres"),
        ({"crs": None}, "has no CRS, so that its place is not known"),
        ({"bands": BANDS[:4]}, "has 4 bands"),
        ({"transform": None}, "its transform is none"),
    ],
    ids=["degrees", "pixel size", "no CRS", "bands", "no place"],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_that_does_not_fit_the_first(refuse, write_scene, tmp_path, changes, message):
    write_scene(tmp_path / "in" / "a.tif")
    write_scene(tmp_path / "in" / "b.tif", **changes)
    line = refuse()
    assert message in line
    assert "b.tif" in line
    assert not (tmp_path / "out").exists()


def test_files_that_cannot_be_embedded(refuse, write_scene, tmp_path):
    (tmp_path / "in").mkdir()
    assert "no GeoTIFF, and no dataset" in refuse()
    (tmp_path / "in" / "a.tif").write_bytes(b"II*\0 and then nothing")
    assert "cannot read image" in refuse()
    (tmp_path / "in" / "a.tif").unlink()
    write_scene(tmp_path / "in" / "a.tif", bands=("one", "two"))
    assert "band one, two is not understood as a band of s2_l2a" in refuse()
    assert "2 bands, 3 were named" in refuse(*L2A, "--bands", "B02,B03,B04")
    write_scene(tmp_path / "in" / "a.tif")
    assert "do not tell Sentinel-2 L1C from L2A" in refuse("--size", "64")
    assert "one sensor at a time" in refuse("--modality", "s1", "--modality", "s2_l2a")
    write_scene(tmp_path / "in" / "a.tiff")
    assert "differ in their suffix alone" in refuse()


def test_floats_that_are_neither_reflectance_nor_digital_numbers(refuse, write_scene, tmp_path):
    pixels = write_scene(tmp_path / "in" / "a.tif")
    with rasterio.open(tmp_path / "in" / "a.tif") as file:
        profile = file.profile | {"dtype": "float32"}
    with rasterio.open(tmp_path / "in" / "a.tif", "w", **profile) as file:
        file.write(pixels.astype(np.float32) / 100)
        for number, band in enumerate(BANDS, start=1):
            file.set_band_description(number, band)
    assert "look like percent or an 8-bit picture" in refuse()


POINTS = [
    rasterio.control.GroundControlPoint(row, col, 15 + col / 1e4, 45 - row / 1e4)
    for row, col in ((0, 0), (0, 230), (150, 0), (150, 230))
]
ONES = [1.0] * 20
RPCS = rasterio.rpc.RPC(0, 1, 45, 1, ONES, ONES, 0, 1, 15, 1, ONES, ONES, 0, 1)


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"transform": None, "crs": "EPSG:4326", "gcps": POINTS}, "gdalwarp -tps"),
        ({"transform": None, "crs": None, "rpcs": RPCS}, "gdalwarp -rpc"),
        ({"transform": None, "crs": None}, "-a_srs EPSG:CODE -a_ullr LEFT"),
        ({"crs": None}, "gdal_edit.py -a_srs"),
        ({"transform": None}, "gdal_edit.py -a_ullr"),
    ],
    ids=["ground control points", "rpc", "nothing", "no CRS", "no transform"],
)
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_file_without_a_place_is_told_how_to_get_one(
    refuse, write_scene, tmp_path, changes, advice
):
    write_scene(tmp_path / "in" / "a.tif", **changes)
    assert advice in refuse()


def test_clutter_links_and_odd_names(write_scene, tiny_weights, tmp_path):
    folder = tmp_path / "in [1] #x %20"
    names = ("a#b", "50%", "what?", "[0]", "Łódź", "東京")
    for name in names:
        write_scene(folder / "sub folder" / f"{name}.TIF", shape=(64, 64))
    clutter = (".DS_Store", "._a.tif", "__MACOSX/a.tif", ".hidden/a.tif", "@eaDir/a.tif")
    for name in (*clutter, "Thumbs.db"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"clutter")
    (folder / "loop").symlink_to(folder)
    options = EmbedOptions(modalities=["s2_l2a"], workers=0)
    embed(tiny_weights, str(folder), tmp_path / "out", options)
    found = {row["tile_id"] for row in read_rows(tmp_path / "out")}
    assert found >= {f"sub folder/{name}_r0_c0" for name in names}
    assert not any(name.startswith((".", "_", "@")) for name in found)
