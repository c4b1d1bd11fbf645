"""Folders of GeoTIFF classes: bands by name, units, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import OpenOptions, open_labelled
from terrafm.eval.features.extraction import mean_spectra, model_input
from terrafm.modalities import MODALITIES

BANDS = MODALITIES["s2_l2a"].bands


def write(path, bands, *, names=None, dtype="uint16", gsd=10.0, crs="EPSG:32633", scale=100):
    """A GeoTIFF in which band k of the Sentinel-2 list holds (k + 1) * scale everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=8, width=8, dtype=dtype, crs=crs,
        transform=rasterio.Affine(gsd, 0, 0, 0, -gsd, 0),
    ) as file:  # fmt: skip
        for i, band in enumerate(bands):
            value = (BANDS.index(band) + 1) * scale if band in BANDS else 1
            file.write(np.full((8, 8), value, dtype), i + 1)
        if names:
            file.descriptions = names


@pytest.fixture
def folder(tmp_path):
    """Two classes whose files have some bands only, in an order of their own, with names."""
    bands = ["B12", "B8A", "B02", "SCL", "B04"]
    names = ("b12", "08A - Vegetation Red Edge", "B2", "SCL", "B4")
    for name in ("x", "y"):
        for i in range(2):
            write(tmp_path / name / f"{i}.tif", bands, names=names)
    return tmp_path


def test_bands_go_to_their_places_by_name_and_the_rest_are_missing(folder):
    images = open_labelled(folder, OpenOptions(modality="s2_l2a"))
    (grid,) = images.read(0, ("s2_l2a",))["s2_l2a"]
    assert [BANDS[c] for c in grid.channels] == ["B02", "B04", "B8A", "B12"]
    for channel, pixels in zip(grid.channels, grid.pixels, strict=True):
        np.testing.assert_allclose(pixels, (channel + 1) * 0.01, rtol=1e-6)
    text = images.bands["s2_l2a"]
    assert "B02=3 B04=5 B8A=2 B12=1" in text
    assert "dropped SCL=4" in text
    assert "missing B01 B03 B05 B06 B07 B08 B09 B11: 0 after normalisation" in text
    seen = model_input(
        images.read(0, ("s2_l2a",)), {"s2_l2a": {"mean": [0.0] * 12, "std": [1.0] * 12}}, 16
    )["s2_l2a"]
    assert not seen[[BANDS.index("B01"), BANDS.index("B11")]].any()
    assert seen[BANDS.index("B02")].mean() == pytest.approx(0.02)
    statistics = images.statistics()["s2_l2a"]
    assert statistics["mean"][0] == 0
    assert statistics["std"][0] == 1
    (spectra,) = mean_spectra(images, [("s2_l2a",)])
    assert np.isfinite(spectra).all()


def test_l1c_and_l2a_are_not_guessed(folder):
    with pytest.raises(UsageError, match="do not tell Sentinel-2 L1C from L2A"):
        open_labelled(folder)


def test_bands_without_names_have_to_be_named(tmp_path):
    for name in ("x", "y"):
        write(tmp_path / name / "0.tif", BANDS)
    with pytest.raises(UsageError, match="12 bands without names: say which with --bands"):
        open_labelled(tmp_path)
    usual = open_labelled(tmp_path, OpenOptions(modality="s2_l2a"))
    assert "no names in the files: the usual order" in usual.bands["s2_l2a"]
    images = open_labelled(tmp_path, OpenOptions(modality="s2_l2a", bands=BANDS))
    (grid,) = images.read(0, ("s2_l2a",))["s2_l2a"]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], 0.01 * np.arange(1, 13), rtol=1e-6)


def test_floats_are_reflectance_and_others_are_refused(tmp_path):
    for name in ("x", "y"):
        write(tmp_path / name / "0.tif", BANDS, dtype="float32", scale=0.01)
    options = OpenOptions(modality="s2_l2a", bands=BANDS)
    (grid,) = open_labelled(tmp_path, options).read(1, ("s2_l2a",))["s2_l2a"]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], 0.01 * np.arange(1, 13), rtol=1e-6)
    # Digital numbers stay what they are when they become floats, and mean the same.
    write(tmp_path / "y" / "0.tif", BANDS, dtype="float32", scale=100)
    (grid,) = open_labelled(tmp_path, options).read(1, ("s2_l2a",))["s2_l2a"]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], 0.01 * np.arange(1, 13), rtol=1e-6)
    write(tmp_path / "y" / "0.tif", BANDS, dtype="float32", scale=1)
    with pytest.raises(UsageError, match=r"y/0\.tif: values up to about 12 look like percent"):
        open_labelled(tmp_path, options).read(1, ("s2_l2a",))


def test_radar_becomes_db(tmp_path):
    for name in ("x", "y"):
        write(tmp_path / name / "0.tif", ["VH", "VV"], names=("VH", "VV"), dtype="float32")
        with rasterio.open(tmp_path / name / "0.tif", "r+") as file:
            file.write(np.full((8, 8), -19.0, "float32"), 1)
            file.write(np.full((8, 8), -12.0, "float32"), 2)
    images = open_labelled(tmp_path)
    assert images.modalities == ("s1",)
    (grid,) = images.read(0, ("s1",))["s1"]
    assert grid.pixels[:, 0, 0].tolist() == [-12.0, -19.0]
    # Linear power is known by its sign, and becomes dB as in ingest.
    with rasterio.open(tmp_path / "y" / "0.tif", "r+") as file:
        file.write(np.full((8, 8), 0.02, "float32"), 1)
        file.write(np.full((8, 8), 0.05, "float32"), 2)
    (grid,) = open_labelled(tmp_path).read(1, ("s1",))["s1"]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], [-13.01, -16.99], rtol=1e-6)
    write(tmp_path / "y" / "0.tif", ["VH", "VV"], names=("VH", "VV"))
    with rasterio.open(tmp_path / "y" / "0.tif", "r+") as file:
        file.write(np.full((2, 8, 8), 150, "uint16"))
    with pytest.raises(UsageError, match=r"y/0\.tif: .*uncalibrated amplitudes"):
        open_labelled(tmp_path).read(1, ("s1",))


def test_eight_bits_are_a_set_of_its_own_statistics_only(tmp_path):
    for name in ("x", "y"):
        write(tmp_path / name / "0.tif", BANDS[1:4], dtype="uint8", scale=10)
    options = OpenOptions(modality="s2_l2a", bands=BANDS[1:4])
    with pytest.raises(UsageError, match=r"x/0\.tif: 8-bit pixels look like a picture"):
        open_labelled(tmp_path, options)
    images = open_labelled(tmp_path, replace(options, check_units=False))
    (grid,) = images.read(1, ("s2_l2a",))["s2_l2a"]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], [0.002, 0.003, 0.004], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"gsd": 20.0}, "pixels of 20 metres"),
        ({"crs": "EPSG:4326"}, "lies in a CRS in degrees"),
        ({"crs": None}, "lies in no CRS"),
        ({"names": ("B2", "B3", "B4", "B8", "B12")}, "names its bands otherwise"),
    ],
)
def test_an_image_unlike_the_first_is_named(folder, change, words):
    bands = ["B12", "B8A", "B02", "SCL", "B04"]
    names = ("b12", "08A - Vegetation Red Edge", "B2", "SCL", "B4")
    write(folder / "y" / "1.tif", bands, **{"names": names, **change})
    with pytest.raises(UsageError, match=rf"y/1\.tif.*{words}"):
        open_labelled(folder, OpenOptions(modality="s2_l2a"))


def test_an_image_unlike_the_first_that_was_not_looked_at_is_named(tmp_path):
    for i in range(60):
        write(tmp_path / "xy"[i % 2] / f"{i:02}.tif", BANDS[:4], names=BANDS[:4])
    images = open_labelled(tmp_path, OpenOptions(modality="s2_l2a"))
    odd = images.files[1]
    write(Path(odd), BANDS[:4], names=BANDS[:4], gsd=20.0)
    with pytest.raises(UsageError, match=rf"{odd} has pixels of 20 metres"):
        images.read(1, ("s2_l2a",))


def test_clutter_is_no_image_and_no_class_and_twins_are_both_kept(write_image, tmp_path):
    for name in ("Forest/a.tif", "Forest/a.TIF", "River/b.tiff"):
        write_image(tmp_path / "set" / name, np.full((13, 8, 8), 1000, np.uint16))
    for name in (
        "Forest/._a.tif",
        "Forest/Thumbs.db",
        "__MACOSX/x.tif",
        ".ipynb/x.tif",
        ".DS_Store",
    ):
        path = tmp_path / "set" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"clutter")
    images = open_labelled(tmp_path / "set", OpenOptions(modality="s2_l1c"))
    assert list(images.classes) == ["Forest", "River"]
    assert list(images.names) == ["Forest/a.TIF", "Forest/a.tif", "River/b.tiff"]
