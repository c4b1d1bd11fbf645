"""Labelled sets: EuroSAT-MS folders, real and made up; what is refused."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from terrafm.data.rasters.bands import EUROSAT_ORDER
from terrafm.errors import UsageError
from terrafm.eval.datasets.class_folder import ClassFolder
from terrafm.eval.datasets.registry import check_labelled, open_labelled
from terrafm.modalities import MODALITIES

REAL = Path(__file__).resolve().parents[2] / "../shared/realdata/eurosat_ms"
WriteImage = Callable[[Path, np.ndarray], None]
ORDER = MODALITIES["s2_l1c"].bands


@pytest.fixture
def folder(tmp_path: Path, write_image: WriteImage) -> Path:
    # Every band holds its own number, so that a swapped band cannot hide.
    base = np.arange(1, 14, dtype=np.uint16)[:, None, None] * np.ones((1, 8, 8), np.uint16)
    base *= np.uint16(100)
    # As in the real files, which are known by it.
    base[EUROSAT_ORDER.index("B10")] = 12
    for name in ("Forest", "River"):
        for i in range(3):
            write_image(tmp_path / name / f"{name}_{i}.tif", base)
    return tmp_path


def test_every_band_lands_in_its_place(folder: Path) -> None:
    images = open_labelled(folder)
    (grid,) = images.read(0, ("s2_l1c",))["s2_l1c"]
    for position, band in enumerate(ORDER):
        expected = (EUROSAT_ORDER.index(band) + 1) * 100 / 10000
        np.testing.assert_allclose(grid.pixels[position], expected, rtol=1e-6)
    assert grid.pixels.shape == (12, 8, 8)
    assert images.classes == ("Forest", "River")
    np.testing.assert_array_equal(images.labels, [0, 0, 0, 1, 1, 1])


def test_zero_is_nodata_and_left_out_of_the_statistics(
    folder: Path, write_image: WriteImage
) -> None:
    pixels = np.full((13, 8, 8), 2000, np.uint16)
    pixels[:, :4] = 0
    write_image(folder / "Forest" / "Forest_0.tif", pixels)
    for name in ("Forest_1", "Forest_2"):
        (folder / "Forest" / f"{name}.tif").unlink()
    images = ClassFolder(str(folder))
    assert np.isnan(images.read(0, ("s2_l1c",))["s2_l1c"][0].pixels[:, :4]).all()
    stacked = np.concatenate(
        [images.read(i, ("s2_l1c",))["s2_l1c"][0].pixels.reshape(12, -1) for i in range(4)], 1
    )
    statistics = images.statistics()["s2_l1c"]
    np.testing.assert_allclose(statistics["mean"], np.nanmean(stacked, 1), rtol=1e-5)
    np.testing.assert_allclose(statistics["std"], np.nanstd(stacked, 1), rtol=1e-4, atol=1e-7)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere does not exist"):
        open_labelled(tmp_path / "nowhere")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Forest").mkdir()
    (tmp_path / "Forest" / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match="no images under"):
        open_labelled(tmp_path)


def test_images_without_labels_are_refused_in_one_line(
    tmp_path: Path, write_image: WriteImage, refused: Callable[..., str]
) -> None:
    write_image(tmp_path / "a.tif", np.ones((13, 8, 8), np.uint16))
    line = refused("evaluate", "compare", "--data", tmp_path)
    assert f"no images under {tmp_path}: expected a folder per class with GeoTIFFs" in line


def test_a_set_of_several_labels_in_which_nobody_has_any_is_refused() -> None:
    images = SimpleNamespace(uri="nowhere", labels=np.zeros((4, 3), np.int64))
    with pytest.raises(UsageError, match="no image of the labelled set nowhere has a label"):
        check_labelled(images)


def test_one_class_is_refused(folder: Path) -> None:
    for file in (folder / "River").iterdir():
        file.unlink()
    with pytest.raises(UsageError, match="has 1 class"):
        open_labelled(folder)


def test_a_wrong_band_count_names_the_file(folder: Path, write_image: WriteImage) -> None:
    write_image(folder / "Forest" / "Forest_1.tif", np.ones((12, 8, 8), np.uint16))
    with pytest.raises(UsageError, match=r"Forest_1\.tif has 12 bands"):
        open_labelled(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    path = folder / "Forest" / "Forest_1.tif"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UsageError, match=r"cannot read image .*Forest_1\.tif"):
        open_labelled(folder)


def test_a_dataset_of_ingest_is_labelled_by_its_majority_classes(small_dataset: str) -> None:
    images = open_labelled(small_dataset)
    assert images.classes == ("class 10", "class 30", "class 40", "class 50", "class 80")
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 4, 2, 0, 1, 0, 3]
    assert images.modalities == ("s1", "s2_l1c", "s2_l2a")
    stored = images.dataset.read_tile(5)
    image = images.read(5, ("s1", "s2_l2a"))
    assert set(image) == {"s1", "s2_l2a"}
    seen = {}
    for grid in image["s2_l2a"]:
        for channel, pixels in zip(grid.channels, grid.pixels, strict=True):
            seen[MODALITIES["s2_l2a"].bands[channel]] = pixels
    assert set(seen) == set(ORDER)
    np.testing.assert_allclose(seen["B8A"], stored["s2_l2a_20m"][3] * 1e-4, rtol=1e-6)
    np.testing.assert_allclose(seen["B09"], stored["s2_l2a_60m"][1] * 1e-4, rtol=1e-6)
    (radar,) = image["s1"]
    np.testing.assert_allclose(radar.pixels, stored["s1_10m"] * 0.01, rtol=1e-5)


def test_an_unfinished_ingest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "part-00000.parquet").write_bytes(b"PAR1")
    with pytest.raises(UsageError):
        open_labelled(tmp_path)


@pytest.fixture(scope="module")
def real() -> ClassFolder:
    if not REAL.exists():
        pytest.skip(f"real EuroSAT images are not at {REAL}")
    return ClassFolder(str(REAL))


def mean_of(images: ClassFolder, name: str) -> dict[str, float]:
    rows = np.flatnonzero(images.labels == images.classes.index(name))
    pixels = [images.read(int(r), ("s2_l1c",))["s2_l1c"][0].pixels for r in rows]
    return dict(zip(ORDER, np.mean(pixels, axis=(0, 2, 3)).tolist(), strict=True))


def test_real_eurosat_has_ten_classes_of_ten(real: ClassFolder) -> None:
    assert len(real.classes) == 10
    assert np.bincount(real.labels).tolist() == [10] * 10


def test_real_forest_looks_like_vegetation(real: ClassFolder) -> None:
    forest = mean_of(real, "Forest")
    assert forest["B08"] > 3 * forest["B04"]
    assert abs(forest["B8A"] / forest["B08"] - 1) < 0.3
    # The red edge rises: a B8A left in its file position would break the order.
    assert forest["B04"] < forest["B05"] < forest["B06"] < forest["B07"] < forest["B8A"]


def test_real_water_absorbs_and_air_scatters_blue(real: ClassFolder) -> None:
    sea = mean_of(real, "SeaLake")
    assert sea["B01"] > sea["B02"] > sea["B03"] > sea["B04"] > sea["B08"]
    assert sea["B11"] < 0.05


def test_the_vapour_band_is_darker_than_its_neighbours(real: ClassFolder) -> None:
    for name in ("Forest", "AnnualCrop", "Industrial"):
        spectrum = mean_of(real, name)
        assert spectrum["B09"] < 0.6 * min(spectrum["B8A"], spectrum["B08"])
