"""An archive or a dataset of a stranger is refused before it can run code."""

import hashlib
import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rasterio.crs import CRS

from terrafm.data.archive import BadCellError
from terrafm.data.shards.checking import _structure_faults
from terrafm.data.shards.crs import raster_crs
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.entry import ShardEntry
from terrafm.data.shards.index import Index
from terrafm.data.shards.manifest import StoredFile
from terrafm.data.sources.major_tom import MajorTom
from terrafm.errors import TerraFMError, UsageError


def replaced(path, name, column):
    """Replaces a column of a Parquet file."""
    table = pq.read_table(path)
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, column(table.num_rows)), path)


@pytest.mark.parametrize("name", ["grid_cell", "product_id", "timestamp"])
def test_metadata_of_an_archive_is_refused(name, archive, hostile, proof):
    replaced(archive / "Core-S2L2A" / "metadata.parquet", name, hostile)
    with pytest.raises(UsageError, match=rf"metadata.parquet.*column {name}.*run code"):
        MajorTom(str(archive), ("s2_l2a",)).cells()
    assert not proof.exists()


@pytest.mark.parametrize("name", ["grid_cell", "B02"])
def test_products_of_an_archive_are_refused(name, archive, hostile, proof):
    (part,) = (archive / "Core-S2L2A" / "images").glob("*.parquet")
    replaced(part, name, hostile)
    source = MajorTom(str(archive), ("s2_l2a",))
    with pytest.raises(BadCellError, match=rf"column {name}.*run code"):
        source.read(source.cells()[0])
    assert not proof.exists()


@pytest.fixture
def archive(major_tom_archive, product_bands):
    product = {
        "grid_cell": "0U_1R",
        "product_id": "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20230101T000000",
        "timestamp": "2022-07-06 08:56:11",
    }
    return major_tom_archive({"Core-S2L2A": [(product, product_bands("s2_l2a", 1500))]})


@pytest.mark.parametrize("whole", [True, False])
def test_a_datasets_index_is_refused(whole, tmp_path, hostile, proof, monkeypatch):
    if not whole:
        monkeypatch.setattr("terrafm.data.shards.index._WHOLE_BYTES", 0)
    path = tmp_path / "index-1.parquet"
    pq.write_table(pa.table({"tile_id": ["a"], "crs": hostile()}), path)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    stored = StoredFile(name=path.name, tiles=1, bytes=len(content), sha256=digest)
    with pytest.raises(UsageError, match=r"index-1.parquet: column crs .*run code"):
        Index.open(str(tmp_path), stored)
    assert not proof.exists()


def test_a_shard_is_a_fault_of_the_dataset(tmp_path, hostile, proof):
    path = tmp_path / "part-0.parquet"
    pq.write_table(pa.table({"tile_id": hostile()}), path)
    shard = StoredFile(name=path.name, tiles=1, bytes=path.stat().st_size, sha256="")
    (fault,) = _structure_faults(str(path), shard, pa.table({"tile_id": ["a"]}), [])
    assert "run code" in str(fault)
    assert not proof.exists()


def test_rows_of_an_unfinished_shard_count_as_nothing(tmp_path, hostile, proof):
    entry = ShardEntry("part-0", 1, "", pa.table({"tile_id": hostile()}))
    entry.write(str(tmp_path))
    assert ShardEntry.read(str(tmp_path), "part-0") is None
    assert not proof.exists()


@pytest.mark.parametrize(
    "address",
    [
        "file:///private/part_00001.parquet",
        "http://169.254.169.254/latest/part_00001.parquet",
        "reference://x::file:///refs.json",
        "memory://elsewhere/part_00001.parquet",
    ],
)
def test_metadata_sends_nobody_to_this_machines_files_or_network(address, archive):
    path = archive / "Core-S2L2A" / "metadata.parquet"
    replaced(path, "parquet_url", lambda count: pa.array([address] * count))
    (ref,) = MajorTom(str(archive), ("s2_l2a",)).cells()
    assert ref.location["s2_l2a"].uri.startswith(str(archive / "Core-S2L2A" / "images"))


def test_metadata_may_name_a_place_of_publication(archive):
    path = archive / "Core-S2L2A" / "metadata.parquet"
    address = "https://example.org/images/part_00009.parquet"
    replaced(path, "parquet_url", lambda count: pa.array([address] * count))
    (ref,) = MajorTom(str(archive), ("s2_l2a",)).cells()
    assert ref.location["s2_l2a"].uri == address


def test_an_unfinished_shard_goes_by_its_own_name_alone(tmp_path):
    entry = ShardEntry("part-0", 1, "", pa.table({"tile_id": ["a"]}))
    entry.write(str(tmp_path))
    entries = tmp_path / "entries"
    (entries / "part-0.arrow").rename(entries / "part-1.arrow")
    assert ShardEntry.read(str(tmp_path), "part-1") is None


@pytest.mark.parametrize("name", ["http://127.0.0.1:9/wkt", "/etc/hostname", "no such thing"])
def test_a_coordinate_system_is_neither_fetched_nor_read_from_a_file(name):
    with pytest.raises(TerraFMError, match="is no coordinate system"):
        raster_crs(name)


@pytest.mark.parametrize("name", ["EPSG:32633", "EPSG:4326"])
def test_coordinate_systems_are_what_gdal_makes_of_them(name):
    assert raster_crs(name) == CRS.from_string(name)
    assert raster_crs(CRS.from_string(name).to_wkt()) == CRS.from_string(name)


def test_an_index_outside_of_its_dataset_is_refused(small_dataset, tmp_path):
    folder = shutil.copytree(small_dataset, tmp_path / "dataset")
    manifest = json.loads((folder / "manifest.json").read_text())
    index = manifest["index"]["name"]
    (folder / index).rename(tmp_path / index)
    manifest["index"]["name"] = f"../{index}"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=f"../{index} leads out of"):
        Dataset.open(str(folder))
