"""Two dates of one place are two tiles of it; datasets of earlier versions know no places."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from terrafm.data.archive import Cell, CellRef, Layout, Product
from terrafm.data.ingest.adopt import Adoption
from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.tally import Tally
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import PLACE, ShardEntry, TileRecord
from terrafm.data.shards.manifest import CellGroup
from terrafm.data.shards.verify import verify
from terrafm.data.shards.writer import write_shard
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.modalities import MODALITIES

GROUPS = (CellGroup("s1", 10, ("VV", "VH"), 6, 6),)
STATISTICS = {"s1": {"bands": ["VV", "VH"], "mean": [-12.0, -19.0], "std": [3.0, 4.0]}}


def tile(number, place=""):
    pixels = np.full(GROUPS[0].shape, number + 1, GROUPS[0].dtype)
    return TileRecord(
        tile_id=f"{number:02d}_0_0",
        arrays={"s1_10m": pixels},
        land_cover=10,
        histogram={10: 36},
        crs="EPSG:32633",
        transform=(10.0, 0.0, 500000.0, 0.0, -10.0, 5000000.0 + number),
        latitude=45.0,
        longitude=15.0,
        products={"s1": {"product_id": f"P{number}", "time": f"2020-01-{number + 1:02d}"}},
        place=place,
    )


def commit(uri, entries):
    options = {"statistics": STATISTICS, "legend": {10: "tree cover"}, "report": {}}
    return commit_dataset(uri, entries, tile_size=6, gsd=10, groups=GROUPS, **options)


def build(uri, *records):
    return commit(uri, [write_shard(uri, "part-00000", records, GROUPS)])


@pytest.fixture
def earlier(tmp_path):
    """A dataset without the column, as earlier versions wrote it."""
    uri = str(tmp_path / "earlier")
    entry = write_shard(uri, "part-00000", [tile(0), tile(1)], GROUPS)
    old = replace(entry, rows=entry.rows.drop_columns([PLACE]), extra={"tally": Tally().to_json()})
    old.write(uri)
    commit(uri, [old])
    return uri


def test_tiles_of_one_place_share_its_name_and_others_have_their_own(tmp_path):
    uri = str(tmp_path / "dataset")
    build(uri, tile(0, "lake_0_0"), tile(1), tile(2, "lake_0_0"))
    dataset = Dataset.open(uri)
    assert dataset.places.tolist() == ["lake_0_0", "01_0_0", "lake_0_0"]
    assert dataset.tile(0)["place"] == "lake_0_0"
    # Evaluation leaves out, and draws, the dates of a place together.
    assert ShardTiles(uri).groups.tolist() == [1, 0, 1]
    assert not verify(uri)["faults"]


def test_a_place_is_content_and_no_place_is_none(tmp_path, earlier):
    alone = build(str(tmp_path / "alone"), tile(0), tile(1))
    named = build(str(tmp_path / "named"), tile(0), tile(1, "lake_0_0"))
    # An archive without places, ingested again, is what it was.
    assert alone.fingerprint == Dataset.open(earlier).fingerprint != named.fingerprint


def test_a_dataset_of_an_earlier_version_opens_and_grows(tmp_path, earlier):
    old = Dataset.open(earlier)
    assert PLACE not in old.rows.column_names
    assert old.places.tolist() == ["00_0_0", "01_0_0"]
    assert old.tile(1)["tile_id"] == "01_0_0"
    assert not verify(earlier)["faults"]
    source = str(tmp_path / "source")
    build(source, tile(1), tile(2, "lake_0_0"), tile(3, "lake_0_0"))
    adoption = Adoption(old, Dataset.open(source), "v2")
    taken = adoption.take(ShardEntry.read(source, "part-00000"))
    assert (adoption.known, adoption.fresh) == (1, 2)
    commit(earlier, [ShardEntry.read(earlier, "part-00000"), taken])
    grown = Dataset.open(earlier)
    assert grown.places.tolist() == ["00_0_0", "01_0_0", "lake_0_0", "lake_0_0"]
    assert not verify(earlier)["faults"]
    shutil.rmtree(source)
    assert [int(grown.read_tile(row)["s1_10m"].min()) for row in range(4)] == [1, 2, 3, 4]


class TwoDates:
    """One place at two dates, and one that has no name."""

    def layout(self):
        return Layout(10, (12, 12), {"s1": (10, 10)})

    def cells(self):
        return [CellRef(name, None, ("s1",)) for name in ("lake-1", "lake-2", "hill")]

    def read(self, ref):
        pixels = np.full((12, 12), -10.0, np.float32)
        bands = MODALITIES["s1"].bands
        product = Product("s1", dict.fromkeys(bands, pixels), dict.fromkeys(bands, 10))
        cover = np.full((12, 12), 10)
        place = "lake" if ref.cell_id.startswith("lake") else ""
        grid = (10.0, 0.0, 5e5, 0.0, -10.0, 5e6)
        return Cell(
            ref.cell_id, "EPSG:32633", grid, (12, 12), 10, {"s1": product}, {}, cover, place
        )


def test_a_source_names_the_place_of_a_cell_and_every_tile_gets_its_part():
    source = TwoDates()
    cutter = Cutter(6, 10, (12, 12), make_groups({"s1": (10, 10)}, 10, 6), ("s1",), 0.5, 0, 0, None)
    tally = Tally()
    records = [record for ref in source.cells() for record in cutter.tiles(source, ref, tally)]
    places = {record.tile_id: record.place for record in records}
    assert places["lake-1_1_0"] == places["lake-2_1_0"] == "lake_1_0"
    assert places["lake-1_0_0"] == "lake_0_0"
    assert places["hill_0_0"] == ""


def test_an_entry_without_a_later_column_is_read_as_if_nothing_were_known(small_dataset, tmp_path):
    """An append reads all of them."""
    entry = ShardEntry.read(small_dataset, "part-00000")
    bare = replace(entry, rows=entry.rows.drop_columns(["climate", PLACE]))
    bare.write(str(tmp_path))
    found = ShardEntry.read(str(tmp_path), "part-00000").rows
    assert found.schema.names == entry.rows.schema.names
    assert set(found["climate"].to_pylist()) == {0}
    assert set(found[PLACE].to_pylist()) == {""}
