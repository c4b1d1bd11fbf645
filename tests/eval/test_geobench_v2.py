"""GEO-Bench-2: its container against `tacoreader`, its sets in the published layouts, small."""

import io
import json
import os
import subprocess

import numpy as np
import pytest
from tortillas import geotiff, tortilla, write_set

from terrafm.data.rasters.bands import BY_RESOLUTION
from terrafm.errors import UsageError
from terrafm.eval.datasets.registry import OpenOptions, open_labelled, open_set
from terrafm.eval.datasets.tortilla import read_tortilla
from terrafm.eval.tables.common import CompareOptions
from terrafm.eval.tables.compare import compare
from terrafm.modalities import MODALITIES

L2A = MODALITIES["s2_l2a"].bands
# A spectrum of vegetation and soil, digital numbers: every band has its own.
SPECTRUM = dict(
    zip(L2A, (1004, 1091, 1318, 1380, 1731, 2373, 2630, 2678, 2783, 3031, 2307, 1720), strict=True)
)
SPLITS = ("train", "train", "train", "validation", "test", "test")
ITS_PYTHON = os.environ.get("TORCHGEO_BENCH_PYTHON")
LINES = """
import json, sys, torch.nn as nn
from geobench_v2.datasets import GeoBenchBENV2
found = []
for split in ("test", "train", "validation"):
    bands = GeoBenchBENV2.band_default_order
    set_ = GeoBenchBENV2(sys.argv[1], split, band_order=bands, data_normalizer=nn.Identity())
    for sample in (set_[i] for i in range(len(set_))):
        found.append([*sample["image_s2"][:, 0, 0].tolist(), *sample["image_s1"][:, 0, 0].tolist()])
        found[-1] += sample["label"].tolist()
print(json.dumps(found))
"""


def optical(bands, number, size=16):
    rows = [np.full((size, size), SPECTRUM.get(band, 1719) + number) for band in bands]
    return np.stack(rows).astype(np.uint16)


def constant(*values, size=16):
    return np.stack([np.full((size, size), value) for value in values]).astype(np.float32)


def mask_of(number, size=16):
    mask = np.zeros((1, size, size), np.uint8)
    mask[:, :, size // 2 :] = number % 3
    return mask


@pytest.fixture
def benv2(tmp_path):
    classes = ("Pastures", "Marine waters", "Mixed forest")
    write_set(
        tmp_path / "geobench_benv2.tortilla",
        [
            (
                f"tile_{n}", split,
                [
                    # Called VV and VH, and the other way round.
                    ("s1", geotiff(constant(-19 - n, -12))),
                    ("s2", geotiff(optical(L2A, n))),
                ],
                {"labels": [classes[n % 3], "Arable land"], "lat": 1.0, "lon": 2.0},
            )
            for n, split in enumerate(SPLITS)
        ],
    )  # fmt: skip
    return tmp_path


def test_the_container_as_tacoreader_reads_it(benv2):
    tacoreader = pytest.importorskip("tacoreader")
    path = str(benv2 / "geobench_benv2.tortilla")
    theirs = tacoreader.load(path)
    ours = read_tortilla(path)
    assert ours.table["tortilla:id"].to_pylist() == theirs["tortilla:id"].tolist()
    for row in range(len(ours)):
        sample, other = ours.sample(row), theirs.read(row)
        assert sample.value("labels") == list(other.iloc[0]["labels"])
        for at in range(2):
            offset, length = (
                int(number) for number in other.read(at).split("/")[2].split(",")[0].split("_")
            )
            whole = (benv2 / "geobench_benv2.tortilla").read_bytes()
            assert sample.read(at) == whole[offset : offset + length]


def test_benv2_has_several_labels_and_its_radar_put_right(benv2):
    images = open_labelled(str(benv2))
    assert images.modalities == ("s1", "s2_l2a")
    assert images.labels.shape == (6, 19)
    assert images.labels.sum(1).tolist() == [2] * 6
    assert sorted(images.splits.tolist()) == ["test"] * 2 + ["train"] * 3 + ["valid"]
    row = images.names.index("train/tile_1")
    image = images.read(row, images.modalities)
    assert image["s1"][0].pixels[:, 0, 0].tolist() == [-12, -20]
    expected = [(SPECTRUM[band] + 1) * 1e-4 for band in L2A]
    np.testing.assert_allclose(image["s2_l2a"][0].pixels[:, 0, 0], expected, rtol=1e-5)
    assert "exchanged" in images.bands["s1"]
    result = compare(str(benv2), options=CompareOptions(resamples=5, size=32))
    assert "splits (train 3, valid 1, test 2)" in result["split"]
    again = open_labelled(str(benv2 / "geobench_benv2.tortilla"))
    assert again.fingerprint == images.fingerprint


@pytest.mark.skipif(ITS_PYTHON is None, reason="TORCHGEO_BENCH_PYTHON names no interpreter")
def test_benv2_as_the_package_geobenchv2_reads_it(benv2):
    done = subprocess.run(
        [ITS_PYTHON, "-c", LINES, str(benv2)], capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout.splitlines()[-1])
    images = open_labelled(str(benv2))
    ours = []
    for row in range(6):
        image = images.read(row, images.modalities)
        optical_values = image["s2_l2a"][0].pixels[:, 0, 0] * 1e4
        radar = image["s1"][0].pixels[::-1, 0, 0]  # As the file has it: not put right.
        ours.append([*optical_values, *radar, *images.labels[row]])
    np.testing.assert_allclose(sorted(ours), sorted(theirs), rtol=1e-5)


def test_so2sat_without_its_complex_numbers(tmp_path):
    bands = [band for band in L2A if band not in ("B01", "B09")]
    write_set(
        tmp_path / "geobench_so2sat.tortilla",
        [
            (f"t{n}", split, [
                ("s1", geotiff(constant(0.1, -0.1))),
                ("s2", geotiff(optical(bands, n).astype(np.float32) * np.float32(1e-4))),
            ], {"labels": n % 3})
            for n, split in enumerate(SPLITS)
        ],
    )  # fmt: skip
    images = open_labelled(str(tmp_path))
    assert images.modalities == ("s2_l1c",)
    assert images.labels.tolist() == [1, 2, 0, 1, 2, 0]  # test, train, valid
    (grid,) = images.read(1, ("s1", "s2_l1c"))["s2_l1c"]
    assert grid.pixels[0, 0, 0] == pytest.approx((SPECTRUM["B02"] + 5) * 1e-4)
    assert "missing B01 B09" in images.bands["s2_l1c"]


def test_treesatai_keeps_each_sensors_grid_and_drops_the_ratio(tmp_path):
    write_set(
        tmp_path / "geobench_treesatai.tortilla",
        [
            (f"t{n}", split, [
                ("aerial", geotiff(np.zeros((4, 8, 8), np.uint8))),
                # Whole dB as unsigned numbers.
                ("s1", geotiff(constant(-6, -12, 1, size=6).astype(np.int16).view(np.uint16))),
                ("s2", geotiff(optical(BY_RESOLUTION, n, size=20))),
            ], {"species_labels": ["Abies", "Quercus"][: 1 + n % 2], "dist_labels": [1.0]})
            for n, split in enumerate(SPLITS)
        ],
    )  # fmt: skip
    images = open_labelled(str(tmp_path))
    image = images.read(0, images.modalities)
    assert image["s1"][0].pixels.shape == (2, 6, 6)
    assert image["s1"][0].pixels[:, 0, 0].tolist() == [-6, -12]
    row = images.names[0].split("/t")[1]
    expected = [(SPECTRUM[band] + int(row)) * 1e-4 for band in L2A]
    np.testing.assert_allclose(image["s2_l2a"][0].pixels[:, 0, 0], expected, rtol=1e-5)


def masks(tmp_path, name, files, count=6):
    write_set(
        tmp_path / f"geobench_{name}.tortilla",
        [(f"t{n}", split, files(n), {}) for n, split in enumerate(SPLITS[:count])],
    )
    return open_set(str(tmp_path))


def test_cloudsen12_has_masks(tmp_path):
    images = masks(
        tmp_path, "cloudsen12",
        lambda n: [("image", geotiff(optical(L2A, n))), ("target", geotiff(mask_of(n)))],
    )  # fmt: skip
    assert images.mask(0).shape == (16, 16)
    assert images.ignore is None
    with pytest.raises(UsageError, match="has masks, not classes"):
        open_labelled(str(tmp_path))
    result = compare(str(tmp_path), options=CompareOptions(resamples=5, size=32))
    assert result["rows"]


def test_kuro_siwos_power_becomes_db_and_what_is_invalid_is_missing(tmp_path):
    valid = np.ones((1, 16, 16), np.uint8)
    valid[0, 0] = 0
    post = constant(0.1, 0.01)
    post[:, 1, 1] = np.nan
    images = masks(
        tmp_path, "kuro_siwo",
        lambda n: [
            ("pre_1", geotiff(constant(1, 1))), ("pre_2", geotiff(constant(1, 1))),
            ("post", geotiff(post)), ("dem", geotiff(constant(5))),
            ("mask", geotiff(mask_of(n))), ("valid", geotiff(valid)),
        ],
    )  # fmt: skip
    pixels = images.read(0, ("s1",))["s1"][0].pixels
    np.testing.assert_allclose(pixels[:, 5, 5], [-10, -20], rtol=1e-5)
    assert np.isnan(pixels[:, 0]).all()
    assert np.isnan(pixels[:, 1, 1]).all()
    assert images.ignore == 3


@pytest.mark.parametrize("right", [False, True])
def test_dynamic_earthnets_order_is_what_the_pixels_say(tmp_path, right):
    """Named B01 to B12 with B10: by resolution, unless the cirrus band is dark after all."""
    named = [band if band != "B09" else "B10" for band in L2A]

    def files(n):
        bands = optical(named if right else BY_RESOLUTION, n)
        if right:
            bands[named.index("B10")] = 15
        held = [("s2", geotiff(bands))] if n else []  # One place has no Sentinel-2 image.
        return [("planet", geotiff(constant(1, 1, 1, 1))), *held, ("label", geotiff(mask_of(n)))]

    images = masks(tmp_path, "dynamic_earthnet", files)
    assert len(images.names) == 5
    (grid,) = images.read(0, ("s2_l2a",))["s2_l2a"]
    row = int(images.names[0].split("/t")[1])
    held = [band for band in L2A if not (right and band == "B09")]
    expected = [(SPECTRUM[band] + row) * 1e-4 for band in held]
    np.testing.assert_allclose(grid.pixels[:, 0, 0], expected, rtol=1e-5)


def test_pastis_is_the_median_of_its_dates(tmp_path):
    h5py = pytest.importorskip("h5py", reason="PASTIS is in HDF5")
    bands = [band for band in L2A if band not in ("B01", "B09")]

    def hdf5(data):
        held = io.BytesIO()
        with h5py.File(held, "w") as file:
            file["data"] = data
        return held.getvalue()

    images = masks(
        tmp_path, "pastis",
        lambda n: [
            ("s2", hdf5(np.stack([optical(bands, n + shift) for shift in (0, 50, 9)]))),
            ("s1_asc", hdf5(np.stack([constant(-10, -17, 7)] * 2))),
            ("s1_desc", hdf5(np.stack([constant(-10, -17, 7)] * 2))),
            ("semantic", hdf5(np.repeat(mask_of(n), 3, 0))),
        ],
    )  # fmt: skip
    row = int(images.names[0].split("/t")[1])
    pixels = images.read(0, images.modalities)
    assert pixels["s2_l2a"][0].pixels[0, 0, 0] == pytest.approx((SPECTRUM["B02"] + row + 9) * 1e-4)
    assert pixels["s1"][0].pixels[:, 0, 0].tolist() == [-10, -17]
    assert images.ignore == 19
    assert images.mask(0).shape == (16, 16)


def test_what_is_wrong_is_one_line(benv2, tmp_path):
    path = benv2 / "geobench_benv2.tortilla"
    whole = path.read_bytes()
    for content, message in [
        (b"PK" + whole[2:], "it is no tortilla"),
        (whole[:10], "it is no tortilla"),
        (whole[:-2000], "cannot read"),
        (whole[:10] + (1 << 40).to_bytes(8, "little") + whole[18:], "claims 1,099,511,627,776"),
        (tortilla([("a", "GTiff", b"x")]), "no column tortilla:data_split|cannot read|no samples"),
    ]:
        path.write_bytes(content)
        with pytest.raises(UsageError, match=message) as error:
            open_labelled(str(benv2))
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    (benv2 / "geobench_so2sat.tortilla").write_bytes(whole)
    with pytest.raises(UsageError, match="several sets, benv2, so2sat"):
        open_labelled(str(benv2))
    other = tmp_path / "other"
    other.mkdir()
    (other / "geobench_flair2.tortilla").write_bytes(whole)
    with pytest.raises(UsageError, match="no set that is read: geobench_NAME"):
        open_labelled(str(other))


def test_another_file_than_a_raster_is_not_opened(tmp_path):
    virtual = b"<VRTDataset rasterXSize='16' rasterYSize='16'></VRTDataset>"
    write_set(
        tmp_path / "geobench_so2sat.tortilla",
        [("t", "train", [("s1", virtual), ("s2", virtual)], {"labels": 1})],
    )
    with pytest.raises(UsageError, match="cannot read an image"):
        open_labelled(str(tmp_path), OpenOptions())
