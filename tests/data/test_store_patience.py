"""A store that fails for a while costs time, and one that fails for good is never called damage."""

import errno
import shutil

import numpy as np
import pytest
from fault_proxy import Every, FaultProxy, Faults
from s3_servers import lead_to

from terrafm.config import IngestConfig
from terrafm.data.ingest import append as append_module
from terrafm.data.ingest.adopt import Adoption
from terrafm.data.ingest.append import append
from terrafm.data.ingest.job import ingest
from terrafm.data.land.landcover import WorldCover
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.verify import verify
from terrafm.data.sources.major_tom import _fault
from terrafm.data.sources.pairing import MetadataRow
from terrafm.errors import StoreFailedError, TerraFMError
from terrafm.storage import exists, faults, join, write_bytes

SMALL = {"tile_size": 48, "config": IngestConfig(tiles_per_shard=8)}
DOWN = Faults(slow_down=Every(1, 1))


@pytest.fixture
def store(s3_bucket, moto_server, monkeypatch):
    """A place on S3, and a proxy before it that can fail."""
    host, port = moto_server["AWS_ENDPOINT_URL"].removeprefix("http://").split(":")
    with FaultProxy((host, int(port))) as proxy:
        lead_to({"AWS_ENDPOINT_URL": proxy.endpoint}, monkeypatch)
        yield s3_bucket, proxy


def put(folder, uri):
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            write_bytes(join(uri, str(path.relative_to(folder))), path.read_bytes())
    return uri


@pytest.fixture
def cover(worldcover_tile, store):
    noise = np.random.default_rng(0).integers(10, 100, (3000, 3000), np.uint8)
    folder = worldcover_tile("N00E006", noise, 18000, 18000)
    return folder, put(folder, join(store[0], "worldcover")), store[1]


GRID = ("EPSG:32632", (10.0, 0.0, 360_000.0, 0.0, -10.0, 150_000.0), (100, 100))


def test_land_cover_is_read_through_throttling_by_small_ranges(cover):
    folder, uri, proxy = cover
    expected = WorldCover(str(folder)).codes(*GRID)
    assert len(np.unique(expected)) > 50
    proxy.plan = Faults(slow_down=Every(3, 1))
    before = proxy.counters["requests"]
    np.testing.assert_array_equal(WorldCover(uri).codes(*GRID), expected)
    assert proxy.counters["slow_down"] >= 1
    # The listing, the header and a few blocks of the window, each a request of its own.
    assert proxy.counters["requests"] - before < 40


def test_a_store_that_stays_away_is_not_a_bad_land_cover_tile(cover, monkeypatch):
    _, uri, proxy = cover
    there = WorldCover(uri)
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.5)
    proxy.plan = DOWN
    with pytest.raises(StoreFailedError, match="tried again for"):
        there.codes(*GRID)
    with pytest.raises(StoreFailedError, match="tried again for"):
        WorldCover(uri)


def test_verify_goes_through_throttling_and_does_not_call_an_outage_damage(
    small_dataset, store, tmp_path, monkeypatch
):
    bucket, proxy = store
    uri = put(shutil.copytree(small_dataset, tmp_path / "copy"), join(bucket, "dataset"))
    proxy.plan = Faults(slow_down=Every(5, 1), reset=Every(9, 1))
    assert verify(uri)["faults"] == []
    assert proxy.counters["slow_down"] >= 2
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.5)
    # The manifest and the index still come; then the store is gone.
    proxy.plan = Faults(slow_down=Every(10**6, 10**6, skip=proxy.counters["requests"] + 8))
    with pytest.raises(StoreFailedError, match="tried again for"):
        verify(uri)


@pytest.mark.parametrize(
    "error", [OSError(errno.EBUSY, "slow down"), ConnectionResetError("reset"), TimeoutError()]
)
def test_an_outage_is_not_a_damaged_cell(error):
    row = MetadataRow("s3://archive/part.parquet", 3, "", "", None)
    if isinstance(error, OSError) and error.errno == errno.EBUSY:
        # As s3fs translates what botocore says.
        from botocore.exceptions import ClientError

        response = {"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}
        error.__cause__ = ClientError(response, "GetObject")
    assert isinstance(_fault(row, error), StoreFailedError)


@pytest.mark.slow
def test_a_failed_ingest_is_repaired_by_mending_the_archive(local_ray, geotiff_archive, tmp_path):
    archive = geotiff_archive({f"p{i}": None for i in range(3)})
    whole = {}
    for name in ("p0", "p1"):
        path = archive / "S2L2A" / f"{name}.tif"
        whole[path] = path.read_bytes()
        path.write_bytes(whole[path][:200])
    out = str(tmp_path / "out")
    with pytest.raises(TerraFMError, match="8 of 12 tiles are bad"):
        ingest("geotiff", str(archive), out, **SMALL)
    for path, content in whole.items():
        path.write_bytes(content)
    assert ingest("geotiff", str(archive), out, **SMALL).tiles == 12
    calm = ingest("geotiff", str(archive), str(tmp_path / "calm"), **SMALL)
    assert Dataset.open(out).fingerprint == calm.fingerprint


def test_an_outage_during_an_append_keeps_what_was_ingested(
    local_ray, geotiff_archive, tmp_path, monkeypatch
):
    first = geotiff_archive({"p0": None}, folder="first")
    second = geotiff_archive({"q0": None, "q1": None}, folder="second")
    out = str(tmp_path / "out")
    ingest("geotiff", str(first), out, **SMALL)
    with monkeypatch.context() as patch:

        def away(*_):
            raise StoreFailedError("cannot write: tried again for 120 s")

        patch.setattr(Adoption, "take", away)
        with pytest.raises(StoreFailedError):
            append("geotiff", str(second), out, **SMALL)
    assert exists(join(out, append_module.STAGING))
    assert append("geotiff", str(second), out, **SMALL).tiles == 12
    assert not exists(join(out, append_module.STAGING))
