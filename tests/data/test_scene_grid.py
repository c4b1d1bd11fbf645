"""Cells of scenes: where they lie, that they lie on the bands' own pixels, and borders of zones."""

import numpy as np
import pytest
import rasterio
from pyproj import Transformer
from safe_products import BANDS, Product, ground, write_safe
from scipy.ndimage import binary_erosion

from terrafm.config import IngestConfig
from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.grid import centre, outline
from terrafm.data.sources.scenes.request import SceneRequest, SceneWords
from terrafm.data.synthetic.globe import footprint
from terrafm.modalities import MODALITIES

L2A = ("s2_l2a",)
GSD = dict(zip(BANDS, MODALITIES["s2_l2a"].gsd, strict=True))


def source(folder, grid, tile_size=66, **words):
    config = IngestConfig(max_nodata=1.0)
    request = SceneRequest.parse(SceneWords(grid=grid, **words), tile_size, config)
    return SafeArchive(str(folder), L2A, request)


def ramp(epsg, corner, size=396, across=2, down=4):
    """A plane over the ground, in whole numbers at every 10 m pixel's centre."""
    pixels = {}
    for band, gsd in GSD.items():
        side, times = size * 10 // gsd, gsd // 10
        column, row = np.meshgrid(np.arange(side), np.arange(side))
        # The centre of a coarser pixel lies between those of 10 m.
        values = 2000 + across * times * column + down * times * row
        pixels[band] = (values + (across + down) * (times - 1) // 2).astype(np.uint16)
    return Product(pixels, epsg=epsg, corner=corner)


def plane(product, cell, gsd, shape, across=2, down=4):
    """The same plane, seen from a cell's grid."""
    column, row = np.meshgrid(np.arange(shape[1]) + 0.5, np.arange(shape[0]) + 0.5)
    x, y = cell.transform[2] + gsd * column, cell.transform[5] - gsd * row
    x, y = Transformer.from_crs(cell.crs, product.epsg, always_xy=True).transform(x, y)
    left, top = product.corner
    return 2000 + across * ((x - left) / 10 - 0.5) + down * ((top - y) / 10 - 0.5)


@pytest.mark.parametrize("grid", ["utm:132", "major-tom", "mgrs"])
@pytest.mark.parametrize(
    ("epsg", "corner"),
    [(32633, (600000, 5000040)), (32733, (399960, 9900040)), (32633, (499980, 60))],
    ids=["north", "south", "equator"],
)
def test_in_a_scenes_own_zone_pixels_are_copied(grid, epsg, corner, tmp_path):
    """Cells may begin anywhere in the scene, but always at a pixel of 60 m."""
    product = Product(ground(1, size=264, bands=BANDS), epsg=epsg, corner=corner)
    write_safe(tmp_path, product)
    opened = source(tmp_path, grid)
    hemisphere = {"north": 326, "south": 327}["south" if epsg > 32700 else "north"]
    seen = 0
    for ref in opened.cells():
        cell = opened.read(ref)
        if not cell.crs.startswith(f"EPSG:{hemisphere}"):
            continue
        for band, values in cell.products["s2_l2a"].bands.items():
            gsd = GSD[band]
            left = (cell.transform[2] - corner[0]) / gsd
            top = (corner[1] - cell.transform[5]) / gsd
            assert left == int(left)
            assert top == int(top)
            whole = np.zeros([side + 2 * 1100 for side in product.pixels[band].shape], np.uint16)
            whole[1100:-1100, 1100:-1100] = product.pixels[band]
            rows, columns = values.shape
            y, x = 1100 + int(top), 1100 + int(left)
            part = whole[y : y + rows, x : x + columns]
            np.testing.assert_array_equal(values, part)
            seen += int((values != 0).sum())
    assert seen


def test_the_grid_is_major_toms(tmp_path):
    """Names and corners are those of its paper, up to the pixel of 60 m."""
    write_safe(tmp_path, Product(ground(1, size=264, bands=BANDS), corner=(819660, 9960)))
    refs = source(tmp_path, "major-tom").cells()
    cells = {ref.location.cell.name: ref.location.cell for ref in refs}
    assert "0U_199R" in cells
    for name, cell in cells.items():
        up, right = name.split("_")
        row = int(up[:-1]) * (1 if up[-1] == "U" else -1)
        column = int(right[:-1]) * (1 if right[-1] == "R" else -1)
        expected = footprint(row, column, 1068)
        assert (cell.rows, cell.columns) == (1068, 1068)
        assert cell.crs == f"EPSG:{expected.epsg}"
        assert abs(cell.left - expected.left) <= 30
        assert abs(cell.top - expected.top) <= 30


def test_the_real_cell_of_major_tom_lies_there(realdata, tmp_path):
    path = next((realdata / "major_tom/S2L2A/0U/0U_199R").glob("*/B02.tif"))
    with rasterio.open(path) as file:
        left, top = file.transform.c, file.transform.f
    corner = (round(left / 60) * 60, round(top / 60) * 60)
    write_safe(tmp_path, Product(ground(1, size=264, bands=BANDS), corner=corner))
    cells = {r.location.cell.name: r.location.cell for r in source(tmp_path, "major-tom").cells()}
    assert abs(cells["0U_199R"].left - left) <= 30
    assert abs(cells["0U_199R"].top - top) <= 30


@pytest.mark.parametrize("epsg", [32633, 32733])
def test_ground_at_a_border_of_zones_belongs_to_one(epsg, tmp_path):
    """A scene that reaches over the border makes cells of both zones that do not overlap."""
    latitude = 45.0 if epsg == 32633 else -45.0
    x, y = Transformer.from_crs(4326, epsg, always_xy=True).transform(12.0, latitude)
    origin = 0 if epsg == 32633 else 10_000_000
    corner = (round(x / 60) * 60 - 1980, origin + round((y - origin) / 60) * 60 + 1980)
    product = ramp(epsg, corner)
    write_safe(tmp_path, product)
    opened = source(tmp_path, "utm:66")
    cells = [(ref, opened.read(ref)) for ref in opened.cells()]
    assert {cell.crs for _, cell in cells} == {f"EPSG:{epsg}", f"EPSG:{epsg - 1}"}
    for ref, cell in cells:
        longitude, _ = centre(ref.location.cell)
        assert (longitude >= 12) == (cell.crs == f"EPSG:{epsg}")
        for band, values in cell.products["s2_l2a"].bands.items():
            gsd = GSD[band]
            expected = plane(product, cell, gsd, values.shape)
            # At the scene's edge a pixel is made of those that are there.
            there = binary_erosion(values != 0, np.ones((3, 3)), border_value=0)
            assert (np.abs(values - expected)[there] <= 0.52).all()


def test_a_warped_plane_is_where_it_was(tmp_path):
    """Nowhere more than half a DN off, which is the rounding: position to 0.01 pixels."""
    x, y = Transformer.from_crs(4326, 32633, always_xy=True).transform(11.98, 45.0)
    corner = (round(x / 60) * 60 - 3960, round(y / 60) * 60 + 3960)
    product = ramp(32633, corner, size=792)
    write_safe(tmp_path, product)
    opened = source(tmp_path, "utm:132", tile_size=132)
    whole = []
    for ref in opened.cells():
        cell = opened.read(ref)
        bands = cell.products["s2_l2a"].bands
        if cell.crs != "EPSG:32632" or not all((values != 0).all() for values in bands.values()):
            continue
        for band, values in bands.items():
            gsd = GSD[band]
            expected = plane(product, cell, gsd, values.shape)
            off = values - expected
            assert np.abs(off).max() <= 0.52
            # A shift of a tenth of a pixel would be 0.2 DN across and 0.4 DN down.
            assert abs(off.mean()) <= 0.05
        whole.append(cell)
    assert len(whole) >= 4


def test_the_antimeridian(tmp_path):
    """A scene across it makes cells of zones 60 and 1, and an area across it takes them."""
    x, y = Transformer.from_crs(4326, 32660, always_xy=True).transform(180.0, 66.0)
    corner = (round(x / 60) * 60 - 1320, round(y / 60) * 60 + 1320)
    write_safe(tmp_path, Product(ground(1, size=264, bands=BANDS), epsg=32660, corner=corner))
    for grid in ("utm:66", "major-tom"):
        cells = [ref.location.cell for ref in source(tmp_path, grid).cells()]
        zones = {cell.crs for cell in cells}
        # One cell of Major-TOM may lie on both sides of it.
        assert zones == {"EPSG:32660", "EPSG:32601"} or grid == "major-tom"
        assert all(abs(centre(cell)[0]) > 179 for cell in cells)
        assert all(outline(cell).area < 0.1 for cell in cells)
        both = source(tmp_path, grid, bbox="179,65,-179,67").cells()
        assert len(both) == len(cells)
        east = source(tmp_path, grid, bbox="-180,65,-179,67").cells()
        assert 0 < len(east) <= len(cells)
        assert len(east) < len(cells) or grid == "major-tom"


def test_polar_cells(tmp_path):
    write_safe(tmp_path, Product(ground(1, size=264, bands=BANDS), corner=(499980, 9300000)))
    opened = source(tmp_path, "major-tom")
    names = {ref.location.cell.name for ref in opened.cells()}
    assert names
    assert all(opened.read(ref).products for ref in opened.cells())
