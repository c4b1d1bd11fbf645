"""Products that lack bands of their sensor: a fault, or nodata where the settings allow it."""

import json

import numpy as np
import pytest
import torch

from terrafm.config import load_config
from terrafm.data.archive import Cell, CellRef, Product
from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.tally import Tally
from terrafm.data.samples.batch import normalise
from terrafm.data.sources.offsets import decide
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

SIZE = 48
LEVEL_1C = MODALITIES["s2_l1c"]


class OneCell:
    """A source of one cell in memory, radar and Level-1C at native resolution, less some bands."""

    def __init__(self, without, empty=()):
        self.without, self.empty = without, empty

    def cells(self):
        return [CellRef("cell", None, ("s1", "s2_l1c"))]

    def read(self, ref):
        rng = np.random.default_rng(0)
        bands = {b: rng.normal(-12, 2, (SIZE, SIZE)) for b in ("VV", "VH")}
        products = {"s1": Product("s1", bands, dict.fromkeys(bands, 10))}
        gsd = dict(zip(LEVEL_1C.bands, LEVEL_1C.gsd, strict=True))
        bands = {b: rng.integers(300, 900, (SIZE * 10 // g,) * 2) for b, g in gsd.items()}
        products["s2_l1c"] = Product("s2_l1c", bands, gsd)
        for product in products.values():
            for band in self.without:
                product.bands.pop(band, None)
            for band in set(self.empty) & set(product.bands):
                product.bands[band] = np.zeros_like(product.bands[band])
        corner = (10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0)
        cover = np.full((SIZE, SIZE), 10)
        return Cell("cell", "EPSG:32633", corner, (SIZE, SIZE), 10, products, land_cover=cover)


def cut(source, partial=(), required=("s2_l1c",)):
    native = {m: MODALITIES[m].gsd for m in ("s1", "s2_l1c")}
    cutter = Cutter(
        tile_size=SIZE,
        gsd=10,
        cell_shape=(SIZE, SIZE),
        groups=make_groups(native, 10, SIZE),
        required=required,
        max_nodata=0.5,
        ocean_drop=0.0,
        seed=0,
        worldcover=None,
        partial=partial,
    )
    tally = Tally()
    (ref,) = source.cells()
    return list(cutter.tiles(source, ref, tally)), tally


def test_radar_with_one_polarisation_is_taken_where_it_is_allowed():
    tiles, tally = cut(OneCell(["VH"]), partial=("s1",))
    (whole,), _ = cut(OneCell([]))
    (tile,) = tiles
    np.testing.assert_array_equal(tile.arrays["s1_10m"][0], whole.arrays["s1_10m"][0])
    assert (tile.arrays["s1_10m"][1] == MODALITIES["s1"].nodata).all()
    assert tile.arrays["s1_10m"].dtype == whole.arrays["s1_10m"].dtype
    assert tile.products["s1"]["missing_bands"] == ["VH"]
    assert "missing_bands" not in tile.products["s2_l1c"]
    assert tally.summary()["missing_bands"] == {"s1": {"VH": 1}}
    assert not tally.quarantine
    statistics = tally.statistics(["s1"])["s1"]
    assert (statistics["mean"][1], statistics["std"][1]) == (0.0, 1.0)
    mean, std = (torch.tensor(statistics[n], dtype=torch.float32) for n in ("mean", "std"))
    pixels = normalise(torch.from_numpy(tile.arrays["s1_10m"])[None], mean, std, "s1")
    assert not pixels[:, 1].any()
    assert pixels[:, 0].std() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    "without",
    [["B01"], ["B01", "B09"], ["B05", "B06", "B07", "B8A", "B11", "B12"], ["B02", "B03"]],
    ids="+".join,
)
def test_bands_of_any_resolution_and_whole_groups(without):
    (tile,), tally = cut(OneCell(without), partial=("s2_l1c",))
    (whole,), _ = cut(OneCell([]))
    for group in make_groups({"s2_l1c": LEVEL_1C.gsd}, 10, SIZE):
        for band, pixels, there in zip(
            group.bands, tile.arrays[group.name], whole.arrays[group.name], strict=True
        ):
            np.testing.assert_array_equal(pixels, 0 if band in without else there)
            assert pixels.shape == there.shape
    assert tally.summary()["missing_bands"] == {"s2_l1c": dict.fromkeys(sorted(without), 1)}


def test_without_leave_it_is_a_fault_that_names_the_setting():
    (tile,), tally = cut(OneCell(["VH"]))
    assert "s1_10m" not in tile.arrays
    (fault,) = tally.quarantine
    assert fault["why"] == "no VH; ingest.allow_missing_bands=[s1] takes it as nodata"
    assert (fault["modality"], fault["quarantined"]) == ("s1", False)
    assert tally.counts["tiles_quarantined"] == 0

    tiles, tally = cut(OneCell(["VH"]), partial=("s2_l1c",), required=("s1",))
    assert not tiles
    assert tally.quarantine[0]["quarantined"]
    assert tally.counts["tiles_quarantined"] == tally.counts["tiles_seen"] == 1


def test_a_cell_without_a_whole_product_is_lost_and_told():
    tiles, tally = cut(OneCell(["VH", "B05"]), required=())
    assert not tiles
    assert [q["quarantined"] for q in tally.quarantine] == [True, True]
    assert (tally.counts["tiles_quarantined"], tally.counts["tiles_over_limits"]) == (1, 0)


def test_the_limit_on_nodata_judges_the_bands_that_are_there():
    tiles, tally = cut(OneCell(["VH"], empty=["VV"]), partial=("s1",), required=("s1",))
    assert not tiles
    assert "100% of VV" in tally.quarantine[0]["why"]


def test_the_offset_is_decided_from_what_both_levels_have():
    rng = np.random.default_rng(1)

    def product(name, low, without):
        bands = {b: rng.integers(low, low + 50, (8, 8)) for b in MODALITIES[name].bands}
        kept = {b: v for b, v in bands.items() if b not in without}
        return Product(name, kept, dict.fromkeys(kept, 10))

    both = {"s2_l1c": product("s2_l1c", 300, ["B8A"]), "s2_l2a": product("s2_l2a", 1300, ["B11"])}
    assert decide(both)["s2_l2a"].reason == "paired with Level-1C"
    assert decide(both)["s2_l2a"].offset == 1000
    none = ["B8A", "B11", "B12"]
    both["s2_l2a"] = product("s2_l2a", 1300, none)
    assert decide(both)["s2_l2a"].reason == "too bright to tell"


def test_counts_add_up_and_those_of_an_older_version_have_none():
    _, tally = cut(OneCell(["VH"]), partial=("s1",))
    kept = json.loads(json.dumps(tally.to_json()))
    restored = Tally.from_json(kept)
    restored.merge(tally)
    assert restored.summary()["missing_bands"] == {"s1": {"VH": 2}}
    del kept["missing_bands"]
    assert Tally.from_json(kept).summary()["missing_bands"] == {}


def test_only_sensors_can_be_named():
    with pytest.raises(UsageError, match="allow_missing_bands"):
        load_config(None, ["ingest.allow_missing_bands=[s3]"])
