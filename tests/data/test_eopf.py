"""EOPF Zarr: the pixels of the same products in SAFE, wherever they lie; bad ones are one line."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from eopf_products import pack, write_eopf
from folders import faults_of, files_of
from range_server import serving
from rasterio.windows import Window
from safe_products import BANDS, CORNER, GSD, ORDER, Product, ground, write_safe
from safe_sources import hyp3, power

from terrafm.config import IngestConfig
from terrafm.data.archive import BadCellError
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.eopf import EopfArchive
from terrafm.data.sources.offsets import decide
from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.request import SceneRequest, SceneWords
from terrafm.data.sources.scenes.zarr_layers import ChunkCache, ZarrRaster, fetch_limit
from terrafm.errors import UsageError
from terrafm.storage import upload
from terrafm.storage.zarr_store import ZarrStore

ALL = ("s1", "s2_l1c", "s2_l2a")
BOTH = ("s2_l1c", "s2_l2a")
SIDE = 264
TIME = "20220706T085611"


def source(folder, modalities=BOTH, tile_size=132, kind=EopfArchive, **words):
    request = SceneRequest.parse(SceneWords(**words), tile_size)
    return kind(str(folder), modalities, request)


def only_cell(folder, modalities=BOTH, **options):
    opened = source(folder, modalities, **options)
    (ref,) = opened.cells()
    return opened.read(ref)


def level_2a(**options):
    return Product(ground(1, size=SIDE, bands=BANDS), **{"time": TIME, **options})


def level_1c(**options):
    return Product(ground(2, size=SIDE), level="L1C", **{"time": TIME, **options})


def check_bands(product, written):
    for band in BANDS:
        np.testing.assert_array_equal(product.bands[band], written.pixels[band])


def test_a_product_is_read_as_its_safe_product_is(tmp_path):
    scl = np.full((SIDE // 2, SIDE // 2), 4, np.uint8)
    scl[:40], scl[-30:] = 9, 0
    products = level_2a(scl=scl), level_1c()
    for product in products:
        write_safe(tmp_path / "safe", product)
        write_eopf(tmp_path / "eopf/2022/07", product)
    first = source(tmp_path / "safe", kind=SafeArchive)
    second = source(tmp_path / "eopf")
    assert [ref.cell_id for ref in first.cells()] == [ref.cell_id for ref in second.cells()]
    assert first.layout().band_gsd == second.layout().band_gsd
    for one, other in zip(first.cells(), second.cells(), strict=True):
        assert one.centre == other.centre
        assert one.listed == other.listed
        a, b = first.read(one), second.read(other)
        assert (a.crs, a.transform, a.shape, a.faults) == (b.crs, b.transform, b.shape, b.faults)
        for modality in BOTH:
            x, y = a.products[modality], b.products[modality]
            assert (x.product_id, x.time, x.cloud_cover) == (y.product_id, y.time, y.cloud_cover)
            for band in BANDS:
                assert x.bands[band].dtype == y.bands[band].dtype
                np.testing.assert_array_equal(x.bands[band], y.bands[band])
        np.testing.assert_array_equal(a.products["s2_l1c"].cirrus, b.products["s2_l1c"].cirrus)
        assert {m: d.offset for m, d in decide(a.products).items()} == {
            m: d.offset for m, d in decide(b.products).items()
        }


def test_the_tiles_of_both_are_the_same(tmp_path, worldcover_tile):
    cover = str(worldcover_tile("N45E015", np.full((2500, 3500), 10, np.uint8), 33500, 14000))
    for number, day in enumerate(("06", "16")):
        product = Product(ground(number, size=396, bands=BANDS), time=f"202207{day}T085611")
        write_safe(tmp_path / "safe", product)
        write_eopf(tmp_path / "eopf", product, chunk=120)
    config = IngestConfig(workers=0, dates_per_place=2, require_modalities=("s2_l2a",))
    found = {}
    for name in ("safe", "eopf"):
        out = tmp_path / f"out-{name}"
        ingest(name, str(tmp_path / name), str(out), tile_size=132, config=config, worldcover=cover)
        found[name] = Dataset.open(out)
    one, other = found.values()
    assert len(one) == 18
    assert one.tile_ids.tolist() == other.tile_ids.tolist()
    for row in range(len(one)):
        first, second = one.read_tile(row), other.read_tile(row)
        assert set(first) == set(second)
        for name in first:
            np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("chunk", [264, 90, 66, 30])
@pytest.mark.parametrize("placed", [True, False])
def test_windows_of_chunks_and_of_a_cell_need_not_meet(chunk, placed, tmp_path):
    """Also where arrays state no place of their own, and each has its metadata beside it."""
    product = level_1c()
    write_eopf(tmp_path, product, chunk=chunk, placed=placed, consolidated=placed)
    opened = source(tmp_path, tile_size=66, grid="utm:66")
    seen = np.zeros((SIDE, SIDE), bool)
    for ref in opened.cells():
        cell = opened.read(ref)
        read = cell.products["s2_l1c"]
        left = round(cell.transform[2] - CORNER[0]) // 10
        top = round(CORNER[1] - cell.transform[5]) // 10
        for band in ORDER:
            values = read.cirrus if band == "B10" else read.bands[band]
            times = GSD[band] // 10
            rows, columns = values.shape
            y, x = top // times, left // times
            part = product.pixels[band][max(y, 0) : y + rows, max(x, 0) : x + columns]
            expected = np.zeros((rows, columns), np.uint16)
            expected[max(-y, 0) :, max(-x, 0) :][: part.shape[0], : part.shape[1]] = part
            np.testing.assert_array_equal(values, expected)
        seen[max(top, 0) : top + 66, max(left, 0) : left + 66] = True
    assert seen.mean() > 0.7


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("top", ["", "PRODUCT.zarr/"])
def test_zips_are_read_where_they_lie(method, top, tmp_path):
    product = level_2a()
    pack(write_eopf(tmp_path, product), method, top)
    check_bands(only_cell(tmp_path, ("s2_l2a",)).products["s2_l2a"], product)


def test_products_in_a_store_are_read_as_on_a_disk(s3_bucket, tmp_path):
    products = level_2a(), level_1c()
    folder = write_eopf(tmp_path / "eopf", products[0])
    packed = pack(write_eopf(tmp_path / "eopf", products[1]))
    for file in [*folder.rglob("*"), packed]:
        if file.is_file():
            upload(file, f"{s3_bucket}/eopf/{file.relative_to(tmp_path / 'eopf')}")
    cell = only_cell(f"{s3_bucket}/eopf")
    check_bands(cell.products["s2_l2a"], products[0])
    check_bands(cell.products["s2_l1c"], products[1])


def test_one_product_on_a_server_that_lists_nothing(tmp_path):
    product = level_2a()
    path = write_eopf(tmp_path, product, chunk=132)
    with serving(tmp_path) as server:
        check_bands(only_cell(f"{server.address}/{path.name}").products["s2_l2a"], product)
        # All chunks once, and no metadata of single arrays.
        asked = [name.removeprefix(f"/{path.name}/") for name, _ in server.sent]
        assert sum("/r" in name for name in asked) == 4 * 12
        assert not any(name.endswith((".zarray", ".zattrs")) for name in asked)
        with pytest.raises(UsageError, match="does not exist"):
            source(f"{server.address}/none.zarr").cells()


def test_clouds_and_what_was_not_measured(tmp_path):
    scl = np.full((SIDE // 2, SIDE // 2), 4, np.uint8)
    scl[:33], scl[-33:] = 9, 0
    flags = np.zeros((SIDE // 6, SIDE // 6))
    # Snow is no cloud.
    flags[:11], flags[11:22], flags[22:33] = 1, 4, 6
    write_eopf(tmp_path, level_2a(scl=scl))
    write_eopf(tmp_path, level_1c(), flags=flags)
    products = only_cell(tmp_path).products
    assert products["s2_l2a"].cloud_cover == pytest.approx(100 / 3)
    assert products["s2_l1c"].cloud_cover == pytest.approx(50)
    assert (products["s2_l2a"].bands["B02"][-66:] == 0).all()
    assert (products["s2_l2a"].bands["B02"][:-66] > 0).all()


def test_a_chunk_that_is_not_there_was_not_measured(tmp_path):
    product = level_2a()
    path = write_eopf(tmp_path, product, chunk=132)
    (path / "measurements/reflectance/r10m/b03/1.0").unlink()
    bands = only_cell(tmp_path).products["s2_l2a"].bands
    assert (bands["B03"][132:, :132] == 0).all()
    np.testing.assert_array_equal(bands["B03"][:, 132:], product.pixels["B03"][:, 132:])


@pytest.mark.parametrize(
    ("options", "scales", "offset"),
    [
        ({"baseline": "0400"}, True, 1000),
        ({"baseline": "0301"}, True, 0),
        ({"baseline": "0400"}, False, 1000),
        ({"baseline": "0301"}, False, 0),
    ],
)
def test_offset_as_the_bands_or_the_baseline_state_it(options, scales, offset, tmp_path):
    write_eopf(tmp_path, level_2a(**options), scales=scales)
    products = only_cell(tmp_path).products
    assert decide(products)["s2_l2a"].offset == offset


def test_another_step_of_reflectance_is_applied(tmp_path):
    product = level_2a(quantification=20000, offset=-500)
    write_eopf(tmp_path, product)
    band = only_cell(tmp_path).products["s2_l2a"].bands["B04"]
    np.testing.assert_allclose(band, (product.pixels["B04"].astype(float) - 500) / 20000)


def test_radar_beside_products_joins_and_other_products_are_passed_over(tmp_path):
    write_eopf(tmp_path / "a", level_2a())
    hyp3(tmp_path / "radar", "20220706T165000", power(1, SIDE))
    other = write_eopf(tmp_path, level_1c(time="20220801T085611"))
    shutil.move(other, tmp_path / "S3A_OL_1_EFR____20251006T121942.zarr")
    text = json.loads((tmp_path / "S3A_OL_1_EFR____20251006T121942.zarr/.zmetadata").read_text())
    text["metadata"][".zattrs"]["stac_discovery"]["properties"]["product:type"] = "S03OLCEFR"
    (tmp_path / "S3A_OL_1_EFR____20251006T121942.zarr/.zmetadata").write_text(json.dumps(text))
    opened = source(tmp_path, ALL)
    (ref,) = opened.cells()
    assert ref.modalities == ("s1", "s2_l2a")
    assert opened.layout().notes["scenes"]["products_of_others"] == 1
    raw = "S1A_IW_GRDH_1SDV_20251006T125832_20251006T125857_061305_07A5EF_9D82.zarr"
    (tmp_path / raw).mkdir()
    with pytest.raises(UsageError, match="raw Sentinel-1 GRDH product"):
        source(tmp_path, ALL).cells()
    assert len(source(tmp_path).cells()) == 1


def edit(path, change):
    """Changes the metadata of a product."""
    file = path / ".zmetadata"
    content = json.loads(file.read_text())
    change(content["metadata"])
    file.write_text(json.dumps(content))


def _array(name, **changed):
    return lambda path: edit(path, lambda m: m[f"measurements/reflectance/{name}"].update(changed))


def _bands_gone(path):
    edit(path, lambda m: [m.pop(key) for key in list(m) if key.startswith("measurements")])


def _format_3(path):
    (path / ".zmetadata").unlink()
    (path / ".zgroup").unlink()
    (path / "zarr.json").write_text("{}")


UNLISTED = {
    "no metadata": (lambda p: [(p / n).unlink() for n in (".zmetadata", ".zgroup")],
                    "neither .zmetadata nor .zgroup is in it: a partial download?"),
    "cut short": (lambda p: (p / ".zmetadata").write_text('{"metadata": {'), ".zmetadata: "),
    "format 3": (_format_3, "it is Zarr of format 3, and format 2 is read"),
    "no bands": (_bands_gone, "no band in it: a partial download?"),
    "elsewhere": (_array("r10m/b02/.zattrs", **{"proj:epsg": 4326}), "not a zone of UTM"),
    "rotated": (_array("r10m/b02/.zattrs", **{"proj:transform": [10, 1, 0, 1, -10, 0]}),
                "is not north-up"),
    "other pixels": (_array("r10m/b02/.zattrs", **{"proj:transform": [20, 0, 0, 0, -20, 0]}),
                     "has pixels of 20 x -20, not 10"),
    "words": (_array("r10m/b02/.zattrs", **{"proj:transform": list("abcdef")}),
              "not as EOPF has them"),
    "some scales": (_array("r10m/b02/.zattrs", scale_factor=None, add_offset=None,
                           _eopf_attrs={}), "some of its bands have a scale_factor"),
    "records": (_array("r10m/b02/.zarray", dtype=[["a", "<u2"]]), "records, which are not read"),
    "three": (_array("r10m/b02/.zarray", shape=[1, 9, 9], chunks=[1, 9, 9]), "has the shape"),
}  # fmt: skip


@pytest.mark.parametrize("fault", UNLISTED)
def test_a_product_that_cannot_be_used_is_a_fault_with_its_name(fault, tmp_path):
    write_eopf(tmp_path, level_2a())
    broken = write_eopf(tmp_path, level_2a(tile="33TWK"))
    change, why = UNLISTED[fault]
    change(broken)
    refs = source(tmp_path).cells()
    assert len(refs) == 2
    ((modality, said),) = refs[1].faults
    assert modality == "s2_l2a"
    assert refs[1].cell_id == broken.stem
    assert why in str(said)
    assert str(broken) in str(said)
    assert "\n" not in str(said)


UNREAD = {
    "cut short": lambda chunk: chunk.write_bytes(chunk.read_bytes()[:-50]),
    "empty": lambda chunk: chunk.write_bytes(b""),
    "garbage": lambda chunk: chunk.write_bytes(bytes(range(256)) * 40),
}


@pytest.mark.parametrize("fault", UNREAD)
def test_a_damaged_chunk_is_a_fault_of_its_cells(fault, tmp_path):
    path = write_eopf(tmp_path, level_2a(), chunk=132)
    UNREAD[fault](path / "measurements/reflectance/r20m/b05/0.1")
    opened = source(tmp_path, tile_size=132, grid="utm:132")
    faults = []
    for ref in opened.cells():
        try:
            opened.read(ref)
        except BadCellError as error:
            faults.append(str(error))
    assert 0 < len(faults) < len(opened.cells())
    for said in faults:
        assert "r20m/b05: not readable (damaged or cut short): chunk" in said


def test_chunks_that_claim_more_than_they_hold_take_no_memory(tmp_path):
    path = write_eopf(tmp_path, level_2a())
    huge = {"chunks": [1 << 20, 1 << 20]}
    edit(path, lambda m: m["measurements/reflectance/r10m/b02/.zarray"].update(huge))
    with pytest.raises(BadCellError, match="r10m/b02: not readable"):
        only_cell(tmp_path)


def test_bad_products_go_to_quarantine_and_the_others_become_tiles(tmp_path, worldcover_tile):
    cover = str(worldcover_tile("N45E015", np.full((2500, 3500), 10, np.uint8), 33500, 14000))
    write_eopf(tmp_path / "in", level_2a())
    broken = write_eopf(tmp_path / "in", level_2a(tile="33TWK"))
    (broken / ".zmetadata").write_text("[]")
    config = IngestConfig(workers=0, max_bad_fraction=0.9, require_modalities=("s2_l2a",))
    options = {"tile_size": 132, "worldcover": cover, "config": config}
    ingest("eopf", str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert len(Dataset.open(tmp_path / "out")) == 4
    (fault,) = faults_of(tmp_path / "out")
    assert fault["what"] == broken.stem
    assert ".zmetadata is no JSON object" in fault["why"]
    # The same again is the same.
    before = files_of(tmp_path / "out")
    ingest("eopf", str(tmp_path / "in"), str(tmp_path / "out"), **options)
    assert files_of(tmp_path / "out") == before


def test_chunks_of_closed_arrays_and_of_a_small_cache_are_let_go(tmp_path):
    product = level_2a()
    path = write_eopf(tmp_path, product, chunk=66)
    cache = ChunkCache(most=5 * 66 * 66 * 2)
    name = "measurements/reflectance/r10m/b02"
    rasters = [ZarrRaster(ZarrStore(str(path)), f"{name[:-1]}{n}", cache) for n in (2, 3)]
    for raster, band in zip(rasters, ("B02", "B03"), strict=True):
        # More than is kept: what is asked for comes all the same, and no more is fetched ahead.
        assert len(list(fetch_limit([(raster, [Window(0, 0, SIDE, SIDE)])], cache.most))) == 5
        np.testing.assert_array_equal(raster.read()[0], product.pixels[band])
        assert cache.bytes <= cache.most
    rasters[1].close()
    assert cache.bytes == 0


def test_nothing_of_it_there(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        source(tmp_path / "none").cells()
    with pytest.raises(UsageError, match="holds no scene of s2_l1c, s2_l2a"):
        source(tmp_path).cells()
