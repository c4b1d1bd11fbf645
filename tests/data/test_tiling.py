import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from pyproj import Transformer

from terrafm.data.archive import Cell, CellRef, Listed, Product
from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.tally import Tally
from terrafm.data.land.selection import NO_CLASS, Limits
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)
NATIVE = {m: MODALITIES[m].gsd for m in ALL}


def cut(archive, tile_size=48, required=ALL, modalities=ALL, **fields):
    """All tiles of a geotiff archive, and the tally."""
    source = GeotiffFolder(str(archive), modalities)
    layout = source.layout()
    settings = {"max_nodata": 0.5, "ocean_drop": 0.0, "seed": 0, "worldcover": None} | fields
    cutter = Cutter(
        tile_size=tile_size,
        gsd=layout.gsd,
        cell_shape=layout.shape,
        groups=make_groups(layout.band_gsd, layout.gsd, tile_size),
        required=required,
        **settings,
    )
    tally = Tally()
    tiles = [tile for ref in source.cells() for tile in cutter.tiles(source, ref, tally)]
    return tiles, tally


def test_groups_keep_the_native_resolution():
    groups = {g.name: g for g in make_groups(NATIVE, 10, 534)}
    assert list(groups) == [
        "s1_10m",
        "s2_l1c_10m",
        "s2_l1c_20m",
        "s2_l1c_60m",
        "s2_l2a_10m",
        "s2_l2a_20m",
        "s2_l2a_60m",
    ]
    assert groups["s2_l2a_20m"].shape == (6, 267, 267)
    assert groups["s2_l2a_20m"].bands == ("B05", "B06", "B07", "B8A", "B11", "B12")
    assert groups["s2_l1c_60m"].shape == (2, 89, 89)


@pytest.mark.parametrize("size", [0, 224, 535])
def test_a_tile_must_not_split_the_coarsest_pixel(size):
    with pytest.raises(UsageError, match="would split a pixel of 60 m: take a multiple of 6"):
        make_groups(NATIVE, 10, size)


def test_a_tile_that_no_manifest_may_name_is_refused_before_work_is_done():
    with pytest.raises(UsageError, match="16386 px is too large: take 16384 at most"):
        make_groups(NATIVE, 10, 16386)


def test_tiles_of_a_place(geotiff_archive, place):
    pixels = place(1, size=100, offset_l1c=1000)
    pixels["LULC"][0, :48, 48:96] = 9
    tiles, tally = cut(geotiff_archive({"a": pixels}))
    assert [tile.tile_id for tile in tiles] == ["a_0_0", "a_0_1", "a_1_0", "a_1_1"]
    assert [tile.land_cover for tile in tiles] == [2, 9, 2, 2]
    tile = tiles[1]
    assert tile.histogram == {9: 48 * 48}
    assert tile.transform == (10.0, 0.0, 500480.0, 0.0, -10.0, 5000000.0)
    to_degrees = Transformer.from_crs(32633, 4326, always_xy=True)
    expected = to_degrees.transform(500480 + 240, 5000000 - 240)
    assert (tile.longitude, tile.latitude) == pytest.approx(expected)
    window = np.s_[:, :48, 48:96]
    np.testing.assert_array_equal(
        tile.arrays["s2_l1c_10m"], np.delete(pixels["S2L1C"], 10, axis=0)[window] - 1000
    )
    np.testing.assert_array_equal(tile.arrays["s2_l2a_10m"], pixels["S2L2A"][window])
    np.testing.assert_array_equal(
        tile.arrays["s1_10m"], np.rint(100 * pixels["S1RTC"][window]).astype(np.int16)
    )
    assert tile.products["s2_l1c"]["offset"] == 1000
    assert tile.products["s2_l1c"]["offset_reason"] == "cirrus band"
    assert tile.products["s2_l2a"]["offset"] == 0
    assert tile.products["s1"]["input_unit"] == "dB"
    assert json.loads(json.dumps(tile.products)) == tile.products
    assert tally.counts["edge_pixels_dropped"] == 100 * 100 - 96 * 96
    assert tally.counts["tiles"] == tally.counts["tiles_seen"] == 4


def test_nodata_and_nan(geotiff_archive, place):
    pixels = place(0)
    pixels["S2L2A"][:, :48, :48] = 0
    pixels["S1RTC"][1, :48, 48:] = np.nan
    pixels["S2L1C"][3, 48:, :20] = 0
    tiles, tally = cut(geotiff_archive({"a": pixels}))
    assert [tile.tile_id for tile in tiles] == ["a_1_0", "a_1_1"]
    faults = [(q["what"], q["modality"], q["why"], q["quarantined"]) for q in tally.quarantine]
    assert faults == [
        ("a_0_0", "s2_l2a", "100% of B01 is without a measurement (nodata, NaN or zero)", True),
        ("a_0_1", "s1", "100% of VH is without a measurement (nodata, NaN or zero)", True),
    ]
    assert (tiles[0].arrays["s2_l1c_10m"][3, :, :20] == 0).all()
    assert tally.counts["tiles_quarantined"] == 2

    tiles, tally = cut(geotiff_archive({"a": pixels}), required=("s2_l1c",))
    assert [sorted(tile.products) for tile in tiles] == [
        ["s1", "s2_l1c"],
        ["s2_l1c", "s2_l2a"],
        ["s1", "s2_l1c", "s2_l2a"],
        ["s1", "s2_l1c", "s2_l2a"],
    ]
    assert "s1_10m" not in tiles[1].arrays
    assert [q["quarantined"] for q in tally.quarantine] == [False, False]

    tiles, _ = cut(geotiff_archive({"a": pixels}), max_nodata=0.1)
    assert [tile.tile_id for tile in tiles] == ["a_1_1"]


@pytest.mark.parametrize("fill", [0.0, np.nan, -np.inf])
def test_radar_without_echo(geotiff_archive, place, fill):
    pixels = place(0)
    pixels["S1RTC"][:] = fill
    tiles, tally = cut(geotiff_archive({"a": pixels}))
    assert not tiles
    assert "100% of VV is without a measurement" in tally.quarantine[0]["why"]


def test_absent_modalities(geotiff_archive, place):
    pixels = place(0)
    del pixels["S1RTC"]
    archive = geotiff_archive({"a": pixels, "b": None})
    tiles, tally = cut(archive)
    assert {tile.tile_id[0] for tile in tiles} == {"b"}
    assert tally.quarantine[0]["why"] == "the archive has no s1 for this cell"
    assert tally.counts["tiles_quarantined"] == 4
    tiles, tally = cut(archive, required=("s2_l2a",))
    assert len(tiles) == 8
    assert sorted(tiles[0].products) == ["s2_l1c", "s2_l2a"]
    assert not tally.quarantine


def test_land_cover_missing_for_one_place(geotiff_archive, place):
    pixels = place(0)
    del pixels["LULC"]
    tiles, tally = cut(geotiff_archive({"a": pixels, "b": None}))
    assert {tile.tile_id[0] for tile in tiles} == {"b"}
    assert "no land-cover raster" in tally.quarantine[0]["why"]


def test_a_place_on_a_coarser_grid(geotiff_archive, place, geotiff_bytes):
    coarse = {k: geotiff_bytes(v, gsd=20) for k, v in place(0).items()}
    _, tally = cut(geotiff_archive({"a": None, "b": coarse}))
    assert "grid of 20 m" in tally.quarantine[0]["why"]


def test_ocean_rule(geotiff_archive, place):
    pixels = place(0, size=240)
    pixels["LULC"][:] = 80
    pixels["LULC"][0, 0, 0] = 10
    archive = geotiff_archive({"sea": pixels})
    everything, tally = cut(archive, 24)
    assert len(everything) == 100
    assert tally.counts["water_only"] == 99
    assert tally.counts["water_only_dropped"] == 0
    kept, tally = cut(archive, 24, ocean_drop=0.6)
    assert [t.tile_id for t in kept] == [t.tile_id for t in cut(archive, 24, ocean_drop=0.6)[0]]
    # Chosen by the hash of the tile id alone.
    expected = ["sea_0_0"] + [
        tile.tile_id
        for tile in everything[1:]
        if int(hashlib.sha256(f"0:{tile.tile_id}".encode()).hexdigest()[:16], 16) >= 0.6 * 2**64
    ]
    assert [tile.tile_id for tile in kept] == expected
    assert tally.counts["water_only_dropped"] == 100 - len(kept)
    assert 45 < tally.counts["water_only_dropped"] < 75
    assert tally.classes_before == {80: 100}


def test_tally_is_exact_and_does_not_depend_on_the_order(geotiff_archive, place):
    pixels = place(5)
    pixels["S2L2A"][0, 3, 3] = 0
    pixels["S1RTC"][1, 0, :7] = np.nan
    tiles, tally = cut(geotiff_archive({"a": pixels, "b": place(6)}))
    whole = {
        name: np.concatenate([tile.arrays[f"{name}_10m"] for tile in tiles], axis=2) for name in ALL
    }
    statistics = tally.statistics(ALL)
    for name, stack in whole.items():
        physical = MODALITIES[name].to_physical(stack).astype(np.float64)
        assert tuple(statistics[name]["bands"]) == MODALITIES[name].bands
        np.testing.assert_allclose(
            statistics[name]["mean"], np.nanmean(physical, axis=(1, 2)), rtol=1e-6
        )
        np.testing.assert_allclose(
            statistics[name]["std"], np.nanstd(physical, axis=(1, 2)), rtol=1e-6
        )
    parts = []
    for i in range(0, len(tiles), 3):
        part = Tally()
        for tile in tiles[i : i + 3]:
            for name in ALL:
                part.add_pixels(name, MODALITIES[name].bands, tile.arrays[f"{name}_10m"])
        parts.append(Tally.from_json(json.loads(json.dumps(part.to_json()))))
    backwards = Tally()
    for part in parts[::-1]:
        backwards.merge(part)
    assert backwards.statistics(ALL) == statistics


def test_a_band_without_spread_has_a_standard_deviation_of_one():
    tally = Tally()
    tally.add_pixels("s1", ("VV", "VH"), np.full((2, 4, 4), [[[-1000]], [[-32768]]], np.int16))
    assert tally.statistics(["s1"])["s1"] == {
        "bands": ["VV", "VH"],
        "mean": [-10.0, 0.0],
        "std": [1.0, 1.0],
    }


class Spy(GeotiffFolder):
    """Lists times and clouds, and remembers what was read."""

    def __init__(self, uri, listed):
        super().__init__(uri, ALL)
        self.listed, self.opened = listed, []

    def cells(self):
        return [replace(ref, listed=self.listed) for ref in super().cells()]

    def read(self, ref):
        self.opened.append(ref.modalities)
        return super().read(ref)


FAR = {"s2_l2a": Listed("2022-01-01", 5.0), "s1": Listed("2022-01-09"), "s2_l1c": Listed("", 50.0)}


@pytest.mark.parametrize(
    ("limits", "required", "opened", "left_out"),
    [
        (Limits(), ALL, [ALL], {}),
        (Limits(max_gap_days=7), ("s2_l2a",), [("s2_l1c", "s2_l2a")], {("s1", "gap"): 1}),
        (Limits(max_gap_days=7), ("s1",), [], {("s1", "gap"): 1}),
        (Limits(7, 20), (), [("s2_l2a",)], {("s1", "gap"): 1, ("s2_l1c", "clouds"): 1}),
        (Limits(None, 1), (), [("s1",)], {("s2_l2a", "clouds"): 1, ("s2_l1c", "clouds"): 1}),
    ],
)
def test_what_breaks_a_limit_is_not_read(geotiff_archive, limits, required, opened, left_out):
    source = Spy(str(geotiff_archive({"a": None})), FAR)
    layout = source.layout()
    source.opened.clear()
    groups = make_groups(layout.band_gsd, 10, 48)
    cutter = Cutter(48, 10, layout.shape, groups, required, 0.5, 0.0, 0, None, limits=limits)
    tally = Tally()
    tiles = [tile for ref in source.cells() for tile in cutter.tiles(source, ref, tally)]
    assert source.opened == opened
    assert dict(tally.left_out) == left_out
    assert {m for tile in tiles for m in tile.products} == set(opened[0] if opened else ())
    # A cell that loses what it must have is selection's doing, not a fault.
    assert tally.counts["tiles_over_limits"] == (0 if opened else 4)
    assert tally.counts["tiles"] + tally.counts["tiles_over_limits"] == tally.counts["tiles_seen"]
    assert not tally.quarantine
    assert Tally.from_json(json.loads(json.dumps(tally.to_json()))) == tally


class OddSource:
    """One cell of which one band has another size."""

    def __init__(self, rows, gsd):
        self._rows, self._gsd = rows, gsd

    def read(self, ref):
        bands = {band: np.full((96, 96), 1500, np.uint16) for band in MODALITIES["s2_l2a"].bands}
        bands["B05"] = bands["B05"][: self._rows]
        gsd = dict.fromkeys(bands, 10) | {"B05": self._gsd}
        radar = {band: np.full((96, 96), -12.0) for band in ("VV", "VH")}
        products = {
            "s1": Product("s1", radar, dict.fromkeys(radar, 10)),
            "s2_l2a": Product("s2_l2a", bands, gsd),
        }
        cover = np.full((96, 96), 40, np.uint8)
        transform = (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
        return Cell("a", "EPSG:32633", transform, (96, 96), 10, products, land_cover=cover)


@pytest.mark.parametrize(
    ("rows", "gsd", "why"),
    [
        (48, 10, "B05 has 48 x 96 px of 10 m, not 96 x 96 px of 10 m"),
        (96, 20, "B05 has 96 x 96 px of 20 m, not 96 x 96 px of 10 m"),
    ],
)
def test_a_band_of_any_source_that_does_not_fit_is_a_fault(rows, gsd, why):
    groups = make_groups({m: (10,) * MODALITIES[m].channels for m in ("s1", "s2_l2a")}, 10, 48)
    cutter = Cutter(48, 10, (96, 96), groups, ("s1",), 0.5, 0.0, 0, None)
    tally = Tally()
    ref = CellRef("a", None, ("s1", "s2_l2a"))
    tiles = list(cutter.tiles(OddSource(rows, gsd), ref, tally))
    assert [set(tile.arrays) for tile in tiles] == [{"s1_10m"}] * 4
    assert [(fault["modality"], fault["why"]) for fault in tally.quarantine] == [("s2_l2a", why)]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_pixels_without_a_class_have_no_vote_and_are_no_sea(share):
    groups = make_groups({m: (10,) * MODALITIES[m].channels for m in ("s1", "s2_l2a")}, 10, 96)
    source = OddSource(96, 10)
    cell = source.read(None)
    cell.land_cover = np.full((96, 96), 80, np.int16)
    cell.land_cover[:, : int(96 * share)] = NO_CLASS
    source.read = lambda ref: cell
    cutter = Cutter(96, 10, (96, 96), groups, ("s1",), 0.5, 1.0, 0, None)
    tally = Tally()
    tiles = list(cutter.tiles(source, CellRef("a", None, ("s1", "s2_l2a")), tally))
    # The sea goes; what may be land stays, unless nothing is known of it.
    assert len(tiles) == (1 if share == 0.5 else 0)
    assert tally.counts["water_only_dropped"] == (1 if share == 0 else 0)
    assert [fault["modality"] for fault in tally.quarantine] == (
        ["land_cover"] if share == 1 else []
    )
    if tiles:
        assert tiles[0].histogram == {80: 96 * 48}
