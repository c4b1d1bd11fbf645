"""The same pixels, said in different ways, are the same in shards and in embeddings."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.tally import Tally
from terrafm.data.rasters.bands import EUROSAT_ORDER, L1C_ORDER
from terrafm.data.shards.tile_export import export_tile
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.data.sources.offsets import survey_archive
from terrafm.embed.geotiffs import GeoTiffWindows
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.eval.datasets.registry import OpenOptions, open_labelled
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

L2A = MODALITIES["s2_l2a"].bands
FOLDERS = {"s1": "S1RTC", "s2_l1c": "S2L1C", "s2_l2a": "S2L2A"}
ORDERS = {"s1": ("VV", "VH"), "s2_l1c": L1C_ORDER, "s2_l2a": L2A}
SIDE = 48
_GROUND = [350, 420, 650, 600, 1000, 2100, 2500, 2700, 2800, 2850, 1900, 1100]
_AIR = [900, 620, 330, 200, 150, 80, 50, 40, 30, -1900, 20, 10]


def drawn_place():
    """Modality -> (bands, SIDE, SIDE), 0 or NaN in the columns on the left."""
    rng = np.random.default_rng(0)
    field = np.kron(rng.normal(0, 0.15, (6, 6)), np.ones((8, 8)))
    field += rng.normal(1, 0.03, (SIDE, SIDE))
    ground = np.array(_GROUND)[:, None, None] * field
    top = np.insert(ground + np.array(_AIR)[:, None, None], 10, 15 + 3 * field, axis=0)
    radar = np.rint(100 * (np.array([-11, -17])[:, None, None] + 3 * (field - 1))) / 100
    place = {
        "s1": radar.astype(np.float32),
        "s2_l1c": np.rint(top).clip(1).astype(np.uint16),
        "s2_l2a": np.rint(ground).clip(1).astype(np.uint16),
    }
    return fill(place)


def fill(place):
    for modality, pixels in place.items():
        pixels[:, :, :10] = np.nan if modality == "s1" else 0
    return place


def real_place(shared_folder):
    """The Chilean place: all three hold what a shard would, the offset taken off."""
    place = {}
    for modality, folder in FOLDERS.items():
        path = shared_folder / "realdata/colocated" / folder / "433D_629L_3_1.tif"
        with rasterio.open(path) as file:
            pixels = file.read()[:, :96, :96]
        if modality == "s1":
            place[modality] = (np.rint(100 * pixels) / 100).astype(np.float32)
        else:
            place[modality] = (pixels.astype(int) - 1000).clip(1).astype(np.uint16)
    return fill(place)


@pytest.fixture(params=["drawn", "real"])
def place(request):
    if request.param == "drawn":
        return drawn_place()
    return real_place(request.getfixturevalue("shared_folder"))


def write(path, pixels, *, names=(), scale=None, mask=None, outside=False, alpha=None, **more):
    """A GeoTIFF; `mask` lies in the file or `outside` of it, `alpha` is its last band."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = more.pop("tags", {})
    bands = pixels if alpha is None else np.concatenate([pixels, alpha[None].astype(pixels.dtype)])
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "count": count, "height": height, "width": width}
    profile |= {"dtype": bands.dtype.name, "crs": "EPSG:32633", **more}
    profile["transform"] = rasterio.Affine(10, 0, 5e5, 0, -10, 5e6)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=not outside),
        rasterio.open(path, "w", **profile) as file,
    ):
        if alpha is not None:
            kinds = [rasterio.enums.ColorInterp.undefined] * len(pixels)
            file.colorinterp = [*kinds, rasterio.enums.ColorInterp.alpha]
        file.write(bands)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
        if scale is not None:
            file.scales, file.offsets = ([value] * len(bands) for value in scale)
        if mask is not None:
            file.write_mask(255 * np.uint8(mask))
        file.update_tags(**tags)


def is_optical(modality):
    return modality != "s1"


def valid(pixels):
    return (pixels[0] != 0) & np.isfinite(pixels[0])


def with_rubbish(pixels, rubbish):
    return np.where(valid(pixels)[None], pixels, pixels.dtype.type(rubbish))


_COMMON = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "cirrus", "swir16", "swir22",
)  # fmt: skip
STAC = dict(zip(L1C_ORDER, _COMMON, strict=True))


def plain(path, modality, pixels):
    write(path, pixels)


def named(path, modality, pixels):
    write(path, pixels, names=ORDERS[modality])


def renamed(path, modality, pixels):
    order = sorted(range(len(pixels)), key=lambda at: -((7 * at) % 13))
    names = [ORDERS[modality][at] for at in order]
    names = [STAC[name] if is_optical(modality) else f"Gamma0_{name}_db" for name in names]
    write(path, pixels[order], names=names)


def spelled_by_earth_engine(path, modality, pixels):
    names = [name.replace("B0", "B") for name in ORDERS[modality]]
    order = np.argsort(names)
    write(path, pixels[order], names=[names[at] for at in order])


def scaled(path, modality, pixels):
    """uint16 with an offset for optical; int16 hundredths for radar."""
    if is_optical(modality):
        stored = np.where(pixels == 0, 0, pixels + 1000).astype(np.uint16)
        write(path, stored, names=ORDERS[modality], scale=(1e-4, -0.1), nodata=0)
    else:
        stored = np.where(np.isnan(pixels), -32768, np.rint(100 * pixels)).astype(np.int16)
        write(path, stored, names=ORDERS[modality], scale=(0.01, 0.0), nodata=-32768)


def reflectance(path, modality, pixels):
    if is_optical(modality):
        pixels = np.where(pixels == 0, np.nan, pixels / 10000).astype(np.float32)
    write(path, pixels, names=ORDERS[modality])


def wide_floats(path, modality, pixels):
    pixels = pixels.astype(np.float64)
    write(path, np.where(valid(pixels)[None], pixels, -9999.0), names=ORDERS[modality])


def untagged_fill(path, modality, pixels):
    stored = pixels.astype(np.int32 if is_optical(modality) else np.float32)
    write(path, with_rubbish(stored, -32768), names=ORDERS[modality])


def masked(path, modality, pixels):
    mask = valid(pixels)
    write(path, with_rubbish(pixels, 1234 if is_optical(modality) else -3), mask=mask)


def masked_beside(path, modality, pixels):
    mask = valid(pixels)
    write(path, with_rubbish(pixels, 1234 if is_optical(modality) else -3), mask=mask, outside=True)


def with_alpha(path, modality, pixels):
    rubbish = with_rubbish(pixels, 1234 if is_optical(modality) else -3)
    write(path, rubbish, alpha=np.where(valid(pixels), 255, 0))


def tagged_fill(path, modality, pixels):
    rubbish = 54321 if is_optical(modality) else -77
    write(path, with_rubbish(pixels, rubbish), names=ORDERS[modality], nodata=rubbish)


def not_yet_corrected(path, modality, pixels):
    tags = {}
    if is_optical(modality):
        pixels = np.where(pixels == 0, 0, pixels + 1000).astype(np.uint16)
        tags = {"product_id": "S2A_MSIL2A_20230301T075841_N0509_R035_T33UXP_20230301T104512"}
    write(path, pixels, names=ORDERS[modality], tags=tags)


def corrected_already(path, modality, pixels):
    tags = {"product_id": "S2A_MSIL2A_20230301T075841_N0509_R035_T33UXP_20230301T104512"}
    tags |= {"BOA_ADD_OFFSET": "0"}
    write(path, pixels, names=ORDERS[modality], tags=tags)


def linear(path, modality, pixels):
    if not is_optical(modality):
        pixels = np.where(np.isnan(pixels), 0, 10 ** (pixels.astype(np.float64) / 10))
    write(path, pixels, names=ORDERS[modality])


def as_eurosat(path, modality, pixels):
    if modality == "s2_l1c":
        pixels = pixels[[L1C_ORDER.index(band) for band in EUROSAT_ORDER]]
    write(path, pixels)


WAYS = (
    named, renamed, spelled_by_earth_engine, scaled, reflectance, wide_floats, untagged_fill,
    masked, masked_beside, with_alpha, tagged_fill, not_yet_corrected, corrected_already, linear,
    as_eurosat,
)  # fmt: skip


def archive(root, way, place):
    for modality, pixels in place.items():
        way(root / FOLDERS[modality] / "place.tif", modality, pixels)
    shape = next(iter(place.values())).shape[1:]
    cover = np.full((1, *shape), 40, np.uint8)
    cover[:, :3] = 255
    write(root / "LULC" / "place.tif", cover, nodata=255)
    return root


def cut(root):
    """The one tile of an archive, as ingest makes it."""
    source = GeotiffFolder(str(root), tuple(MODALITIES))
    layout, refs = source.layout(), source.cells()
    side = layout.shape[0]
    cutter = Cutter(
        tile_size=side,
        gsd=layout.gsd,
        cell_shape=layout.shape,
        groups=make_groups(layout.band_gsd, layout.gsd, side),
        required=tuple(MODALITIES),
        max_nodata=0.5,
        ocean_drop=0.0,
        seed=0,
        worldcover=None,
        survey=survey_archive(source, refs),
    )
    tally = Tally()
    (tile,) = cutter.tiles(source, refs[0], tally)
    assert not tally.quarantine
    return tile


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_shards_hold_the_same_bytes(tmp_path, place, way):
    first = cut(archive(tmp_path / "plain", plain, place))
    other = cut(archive(tmp_path / "other", way, place))
    for group, pixels in first.arrays.items():
        assert pixels.tobytes() == other.arrays[group].tobytes(), group
    assert first.histogram == other.histogram
    assert first.land_cover == 40
    # And it is what was drawn.
    expected = place["s2_l2a"]
    assert first.arrays["s2_l2a_10m"].tobytes() == expected.tobytes()


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    statistics = {
        name: {"mean": [mean] * MODALITIES[name].channels, "std": [std] * MODALITIES[name].channels}
        for name, mean, std in (("s1", -14.0, 3.0), ("s2_l1c", 0.17, 0.1), ("s2_l2a", 0.15, 0.1))
    }
    state = build_encoder("terrafm_tiny").state_dict()
    for tensor in state.values():
        tensor += 0.05 * torch.randn(tensor.shape)
    save_safetensors(uri, state, WeightsContract.build("terrafm_tiny", statistics, image_size=48))
    return uri


def vectors(weights, data, output, modality):
    options = EmbedOptions(modalities=[modality], window=48, workers=0)
    embed(weights, data, output, options)
    return np.array([row["embedding"] for row in pq.read_table(output / "tiles").to_pylist()])


@pytest.mark.parametrize("modality", MODALITIES)
def test_embeddings_are_the_same(tmp_path, place, weights, modality):
    plain(tmp_path / "plain" / "place.tif", modality, place[modality])
    expected = vectors(weights, tmp_path / "plain", tmp_path / "out_plain", modality)
    for way in WAYS:
        folder = tmp_path / way.__name__
        way(folder / "place.tif", modality, place[modality])
        found = vectors(weights, folder, tmp_path / f"out_{way.__name__}", modality)
        assert found.shape == expected.shape
        lengths = np.linalg.norm(found, axis=1) * np.linalg.norm(expected, axis=1)
        assert ((found * expected).sum(1) / lengths).min() > 0.9999, way.__name__


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_evaluation_reads_the_same(tmp_path, way):
    place = drawn_place()
    for modality, pixels in place.items():
        folders = []
        for name, write_file in (("plain", plain), ("other", way)):
            folders.append(tmp_path / modality / name)
            for label in ("x", "y"):
                write_file(folders[-1] / label / "place.tif", modality, pixels)
        options = OpenOptions(modality=modality)
        first, other = (
            open_labelled(folder, options).read(0, (modality,))[modality][0] for folder in folders
        )
        np.testing.assert_array_equal(first.pixels, other.pixels)
        np.testing.assert_array_equal(
            np.isnan(first.pixels).all(0), ~valid(pixels), err_msg=way.__name__
        )


def test_windows_of_one_file_are_read_alike(tmp_path):
    """Half of the file is desert, half is leaves: what the offset is does not depend on where."""
    place = drawn_place()["s2_l2a"][:, :, 10:]
    desert = np.random.default_rng(0).integers(1500, 2500, (12, SIDE, 500))
    leaves = np.tile(place, (1, 1, 14))[:, :, :500]
    pixels = np.tile(np.concatenate([desert, leaves], axis=2), (1, 12, 1)).astype(np.uint16)
    # Too large to be read whole.
    assert pixels.shape[1] * pixels.shape[2] > 512 * 512
    for offset in (0, 1000):
        write(tmp_path / f"{offset}.tif", pixels + np.uint16(offset), names=L2A)
    near, far = (
        GeoTiffWindows(
            str(tmp_path / f"{offset}.tif"), modality="s2_l2a", bands=None, window=96, overlap=0,
            size=96, dense=False,
        )
        for offset in (0, 1000)
    )  # fmt: skip
    assert len(near) == 66
    for row in range(len(near)):
        one, two = (source.read(row, ["s2_l2a"])["s2_l2a"][0].pixels for source in (near, far))
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("modality", MODALITIES)
def test_a_tile_of_terrafm_is_read_back(small_dataset, tmp_path, weights, modality):
    """Its own radar file included, and without being told which sensor it is."""
    written = export_tile(small_dataset, "tile_05", str(tmp_path / "tiles"))
    mine = [path for path in written if f"_{modality}_" in path]
    with rasterio.open(mine[0]) as file:
        pixels = file.read()
        names = file.descriptions
    for label in ("x", "y"):
        (tmp_path / "set" / label).mkdir(parents=True)
        shutil.copy(mine[0], tmp_path / "set" / label)
    images = open_labelled(tmp_path / "set")
    assert images.modalities == (modality,)
    (grid,) = images.read(0, (modality,))[modality]
    sensor = MODALITIES[modality]
    assert [sensor.bands[channel] for channel in grid.channels] == list(names)
    np.testing.assert_array_equal(grid.pixels, sensor.to_physical(pixels))
    (tmp_path / "one").mkdir()
    shutil.copy(mine[0], tmp_path / "one")
    assert len(vectors(weights, tmp_path / "one", tmp_path / "out", modality)) >= 1
