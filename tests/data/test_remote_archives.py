"""Major-TOM where it is published: over HTTP with ranges and over S3, and what it costs to read."""

import sys
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from range_server import serving

from terrafm.data.archive import BadCellError
from terrafm.data.sources.major_tom import MajorTom
from terrafm.errors import StoreFailedError, TerraFMError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import faults

ALL = tuple(MODALITIES)
SIDE = 240


@pytest.fixture
def archive(major_tom_archive, product_bands, geotiff_bytes):
    """Twelve cells of noise, with thumbnails and cloud masks that no one should fetch."""
    generator = np.random.default_rng(0)

    def noisy(columns):
        cells = {}
        for name in columns:
            gsd = 10
            if name not in ("vv", "vh"):
                bands = MODALITIES["s2_l1c"].bands
                gsd = 60 if name == "B10" else MODALITIES["s2_l1c"].gsd[bands.index(name)]
            side = SIDE * 10 // gsd
            pixels = generator.integers(1, 9000, (1, side, side)).astype(np.uint16)
            if name in ("vv", "vh"):
                pixels = pixels.astype(np.float32) / 9000
            cells[name] = geotiff_bytes(pixels, gsd=gsd)
        return cells

    def rows(modality, level):
        name = "S1A_IW_GRDH_1SDV_20220706T000000_rtc"
        if level:
            name = f"S2A_MSI{level}_20220706T085611_N0400_R007_T33NZA_20230101T000000"
        return [
            (
                {"grid_cell": f"0U_{i}R", "product_id": name, "timestamp": "2022-07-06 08:56:11"},
                noisy(product_bands(modality, size=24)) | {"cloud_mask": bytes(300_000)},
            )
            for i in range(12)
        ]

    return major_tom_archive(
        {
            "Core-S2L2A": rows("s2_l2a", "L2A"),
            "Core-S2L1C": rows("s2_l1c", "L1C"),
            "Core-S1RTC": rows("s1", ""),
        },
        url="images/{1}",
    )


@pytest.fixture
def server(archive):
    """The archive behind a server of files, as a plain one or the Hub's resolver."""
    with serving(archive) as running:
        yield running


@pytest.fixture
def served(server):
    """(URI of the archive, list that grows by (path, bytes) with every answer)."""
    return server.address, server.sent


def cells_of(uri, modalities=ALL):
    source = MajorTom(uri, modalities)
    return source, source.cells()


def assert_same_pixels(here, there):
    assert set(here.products) == set(there.products) == set(ALL)
    assert not there.faults
    for modality, product in here.products.items():
        for band, pixels in product.bands.items():
            np.testing.assert_array_equal(pixels, there.products[modality].bands[band])


def band_bytes(archive, rows, modality):
    """Bytes of the bands that the model wants, in the archive's own column chunks."""
    folder = {"s2_l2a": "Core-S2L2A", "s2_l1c": "Core-S2L1C", "s1": "Core-S1RTC"}[modality]
    metadata = pq.read_metadata(next((archive / folder / "images").iterdir()))
    wanted = {band.lower() for band in MODALITIES[modality].bands}
    return sum(
        chunk.total_compressed_size
        for row in rows
        for c in range(metadata.num_columns)
        if (chunk := metadata.row_group(row).column(c)).path_in_schema.lower() in wanted
    )


def test_over_http_only_the_needed_rows_and_bands_travel(archive, served):
    uri, sent = served
    local, refs = cells_of(str(archive))
    remote, remote_refs = cells_of(uri)
    assert [r.cell_id for r in remote_refs] == [r.cell_id for r in refs]
    listing = sum(size for _, size in sent)
    metadata = sum((archive / f"{n}/metadata.parquet").stat().st_size for n in _folders(archive))
    assert listing <= 3 * metadata + 10_000
    sent.clear()
    assert_same_pixels(local.read(refs[5]), remote.read(remote_refs[5]))
    needed = sum(band_bytes(archive, [5], modality) for modality in ALL)
    whole = sum(p.stat().st_size for p in archive.rglob("part_*.parquet"))
    # Footers, once for each file, come on top of the bands.
    parts = [pq.read_metadata(path) for path in archive.rglob("part_*.parquet")]
    footers = sum(part.serialized_size + 65_536 for part in parts)
    assert needed <= sum(size for _, size in sent) <= 1.05 * needed + footers
    assert needed + footers < whole / 5
    sent.clear()
    remote.read(remote_refs[6])
    again = sum(band_bytes(archive, [6], modality) for modality in ALL)
    assert sum(size for _, size in sent) <= 1.05 * again
    # Neighbouring bands come in one answer: at most one gap, the cloud mask, in each file.
    assert len(sent) <= 3 * 4


def _folders(archive):
    return [path.name for path in archive.iterdir() if path.name.startswith("Core-")]


def test_over_http_a_modality_that_is_left_out_is_not_read(served):
    uri, sent = served
    source, refs = cells_of(uri, ("s1",))
    source.read(refs[0])
    assert not any("S2" in path for path, _ in sent)


def test_over_http_a_file_that_is_gone_is_a_fault(archive, served):
    source, refs = cells_of(served[0], ("s1",))
    next((archive / "Core-S1RTC/images").iterdir()).unlink()
    with pytest.raises(BadCellError, match="not found"):
        source.read(refs[0])


@pytest.mark.parametrize("status", [403, 503])
def test_over_http_a_store_that_refuses_ends_the_ingest(served, status, monkeypatch, server):
    monkeypatch.setattr(faults, "RETRY_SECONDS", 0.5)
    source, refs = cells_of(served[0], ("s1",))
    server.fault = status
    message = r"cannot read http://.*part_00001.parquet row 0"
    with pytest.raises(TerraFMError, match=message) as caught:
        source.read(refs[0])
    assert "\n" not in str(caught.value)
    assert str(status) in str(caught.value)
    # One can be mended by asking again later, the other only by the user.
    kind, verb = (StoreFailedError, "read") if status == 503 else (UsageError, "reach")
    with pytest.raises(kind, match=rf"cannot {verb} http://.*metadata\.parquet: {status}"):
        MajorTom(served[0], ("s1",)).cells()


def test_over_http_a_passing_fault_is_overcome(served, server):
    source, refs = cells_of(served[0], ("s1",))
    server.fault = 503
    threading.Timer(1.0, setattr, (server, "fault", None)).start()
    assert set(source.read(refs[0]).products) == {"s1"}


def test_over_http_an_empty_place_is_one_line(served):
    with pytest.raises(UsageError, match="holds no Major-TOM dataset"):
        MajorTom(f"{served[0]}/nothing", ALL).cells()


def test_over_s3(archive, monkeypatch):
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        store.mkdir("archives")
        store.put(f"{archive}/", "archives/major_tom/", recursive=True)
        local, refs = cells_of(str(archive))
        remote, remote_refs = cells_of("s3://archives/major_tom")
        assert [r.cell_id for r in remote_refs] == [r.cell_id for r in refs]
        assert_same_pixels(local.read(refs[3]), remote.read(remote_refs[3]))
    finally:
        server.stop()
        s3fs.S3FileSystem.clear_instance_cache()


def test_the_hub_needs_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    # fsspec remembers a class that was loaded before.
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "hf", raising=False)
    with pytest.raises(UsageError, match=r"pip install 'terrafm\[huggingface\]'"):
        MajorTom("hf://datasets/Major-TOM", ALL).cells()
