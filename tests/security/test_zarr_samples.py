"""Tars, and Zarr in zips, of strangers: bounded before memory is taken, no code, no path."""

import io
import json
import struct
import sys
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import blosc2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from zarr_shards import pixels, sample, write_shard

from terrafm.data.archive import BadCellError
from terrafm.data.sources.terramesh import TerraMesh
from terrafm.storage import tar_members
from terrafm.storage.tar_members import BadTarError, TarMember, list_tar, read_tar_member
from terrafm.storage.zarr_arrays import BadZarrError
from terrafm.storage.zarr_zip import ZarrZip

MEGABYTE = 1 << 20
PLAIN = {"zarr_format": 2, "shape": [4], "chunks": [4], "dtype": "<i2", "compressor": None,
         "fill_value": 0, "filters": None, "order": "C"}  # fmt: skip


def group(metadata, chunks=None, method=zipfile.ZIP_STORED):
    """A Zarr zip of one array `a`."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", method) as packed:
        text = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
        packed.writestr("a/.zarray", text)
        for name, content in (chunks or {}).items():
            packed.writestr(name, content)
    return io.BytesIO(target.getvalue())


def refused(metadata, chunks=None, why="", **options):
    """Reading it ends in one line, and takes little memory."""
    file = group(metadata, chunks, **options)
    tracemalloc.start()
    with pytest.raises(BadZarrError, match=why) as caught:
        ZarrZip(file).read("a")
    assert tracemalloc.get_traced_memory()[1] < 20 * MEGABYTE
    tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_plain_array_is_read():
    assert ZarrZip(group(PLAIN, {"a/0": b"\1\0\2\0\3\0\4\0"})).read("a").tolist() == [1, 2, 3, 4]
    # What is not there is what the metadata say.
    assert ZarrZip(group({**PLAIN, "fill_value": 7})).read("a").tolist() == [7] * 4


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"shape": [1 << 40], "chunks": [1 << 40]}, "cannot hold the"),
        ({"shape": [1 << 40], "chunks": [4]}, "chunks, more than the 100,000"),
        ({"shape": [1 << 20, 1 << 20], "chunks": [1 << 15, 1 << 15]}, "cannot hold the"),
        ({"shape": [2] * 9, "chunks": [1] * 9}, "9 dimensions, more than the 8"),
        ({"shape": [-4]}, "do not fit"),
        ({"shape": ["many"]}, "invalid literal"),
        ({"shape": 7}, "not iterable"),
        ({"chunks": [0]}, "do not fit"),
        ({"chunks": [4, 4]}, "do not fit"),
        ({"chunks": None}, "not iterable"),
        ({"dtype": "|O"}, "are not read"),
        ({"dtype": [["a", "<i2"]]}, "records, which are not read"),
        ({"dtype": "<U99999999"}, "are not read"),
        ({"dtype": "|V99999999"}, "are not read"),
        ({"dtype": "i2,i2"}, "are not read"),
        ({"dtype": "__import__"}, "not understood"),
        ({"filters": [{"id": "pickle"}]}, "filters, which are not read"),
        ({"compressor": {"id": "pickle"}}, "codec pickle are not read"),
        ({"compressor": {"id": "blosc2"}}, "codec blosc2 are not read"),
        ({"compressor": "zlib"}, "no description"),
        ({"order": "F"}, "columns"),
        ({"fill_value": "many"}, "invalid literal"),
        ({"fill_value": [1, 2, 3]}, "not one value"),
        ({"zarr_format": 3}, "not of format 2"),
    ],
)
def test_metadata_that_claim_anything_are_one_line(changed, why):
    refused({**PLAIN, **changed}, {"a/0": b"\0" * 8}, why)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"7", b'{"a":' * 999, b"[" * 10**6, b"\xff"])
def test_metadata_that_are_no_object_are_one_line(text):
    refused(text)


@pytest.mark.parametrize("content", [b"", b"\0" * 7, b"\0" * 9, b"\0" * 1000])
def test_a_chunk_of_another_length_is_damage(content):
    refused(PLAIN, {"a/0": content}, "bytes, not 8")


def test_chunks_that_unpack_to_gigabytes_are_stopped():
    bomb = zlib.compress(b"\0" * (64 * MEGABYTE), 9)
    for codec in ("zlib", "gzip"):
        packed = bomb if codec == "zlib" else zlib_gzip(64 * MEGABYTE)
        refused({**PLAIN, "compressor": {"id": codec}}, {"a/0": packed}, "bytes, not 8")
    import pyarrow as pa

    packed = pa.compress(b"\0" * MEGABYTE, codec="zstd", asbytes=True)
    refused({**PLAIN, "compressor": {"id": "zstd"}}, {"a/0": packed}, "")


def zlib_gzip(size):
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    return packer.compress(b"\0" * size) + packer.flush()


def test_a_deflated_member_that_claims_gigabytes_is_not_unpacked():
    """Of a chunk nobody needs more than the metadata say that it has."""
    content = group({**PLAIN, "shape": [4], "chunks": [4]}, {"a/0": b"\0" * (257 * MEGABYTE)},
                    zipfile.ZIP_DEFLATED)  # fmt: skip
    tracemalloc.start()
    with pytest.raises(Exception, match="more than the 268,435,456 bytes"):
        ZarrZip(content).read("a")
    assert tracemalloc.get_traced_memory()[1] < 20 * MEGABYTE
    tracemalloc.stop()


BLOSC = {**PLAIN, "shape": [1000], "chunks": [1000], "compressor": {"id": "blosc"}}


def blosc_1(values):
    """A chunk of Blosc 1 as numcodecs writes it."""
    from numcodecs import Blosc

    return bytearray(Blosc("lz4", 5, Blosc.SHUFFLE).encode(values))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda c: c[:10], "cut short"),
        (lambda c: c[:-9], "it claims"),
        (lambda c: c + b"a", "it claims"),
        (lambda c: c[:4] + struct.pack("<I", 1 << 31) + c[8:], "it claims"),
        (lambda c: c[:4] + struct.pack("<I", 1999) + c[8:], "it claims"),
        # A version, flags of Blosc2, its delta filter, a codec of the user, Snappy.
        (lambda c: bytes([5]) + c[1:], "no chunk of Blosc 1"),
        (lambda c: c[:2] + bytes([c[2] | 0b101]) + c[3:], "no chunk of Blosc 1"),
        (lambda c: c[:2] + bytes([c[2] | 0b1000]) + c[3:], "no chunk of Blosc 1"),
        (lambda c: c[:2] + bytes([c[2] | 0b11100000]) + c[3:], "no chunk of Blosc 1"),
        (lambda c: c[:2] + bytes([0b01000001]) + c[3:], "no chunk of Blosc 1"),
        (lambda c: c[:16] + b"\xff" * (len(c) - 16), ""),
        (lambda c: c[:8] + b"\xff\xff\xff\x7f" + c[12:], ""),
        (lambda c: bytes(blosc2.compress2(np.arange(1000, dtype="<i2"))), "no chunk of Blosc 1"),
    ],
)
def test_a_chunk_of_blosc_is_what_its_head_should_say(change, why):
    values = np.arange(1000, dtype="<i2")
    good = blosc_1(values)
    assert (ZarrZip(group(BLOSC, {"a/0": bytes(good)})).read("a") == values).all()
    refused(BLOSC, {"a/0": bytes(change(bytes(good)))}, why)


def test_damaged_chunks_never_show_other_memory():
    """Whatever bytes are flipped, it is an error or pixels, and the process lives."""
    rng = np.random.default_rng(0)
    values = rng.integers(0, 3000, 1000).astype("<i2")
    good = blosc_1(values)
    for _ in range(300):
        broken = bytearray(good)
        for at in rng.integers(0, len(broken), 3):
            broken[at] = rng.integers(256)
        try:
            assert ZarrZip(group(BLOSC, {"a/0": bytes(broken)})).read("a").shape == (1000,)
        except BadZarrError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_zarr_of_format_3_and_other_zips_are_told(tmp_path):
    for names, why in ((["zarr.json"], "format 3"), (["a.txt"], "no array of Zarr")):
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w") as packed:
            for name in names:
                packed.writestr(name, "{}")
        with pytest.raises(BadZarrError, match=why):
            ZarrZip(target)


def test_names_in_a_tar_are_looked_at_and_never_written_to(tmp_path):
    good = sample("S2L2A", pixels("S2L2A"))
    path = tmp_path / "S2L2A/majortom_shard_000001.tar"
    write_shard(path, {"../../out": good, "/etc/out": good, "a/../b": good})
    assert [ref.cell_id for ref in TerraMesh(str(tmp_path), ("s2_l2a",)).cells()] == ["out", "b"]
    assert {p.name for p in tmp_path.rglob("*")} == {"S2L2A", path.name}


def test_links_and_devices_in_a_tar_are_passed_over(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as shard:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE,
                                       tarfile.FIFOTYPE, tarfile.DIRTYPE)):  # fmt: skip
            info = tarfile.TarInfo(f"{number}.zarr.zip")
            info.type, info.linkname = kind, "/etc/passwd"
            shard.addfile(info)
    assert list_tar(str(tmp_path / "a.tar")) == ([], None)


def header(name=b"a", size=b"00000000010", kind=b"0"):
    head = bytearray(512)
    head[: len(name)] = name
    head[124 : 124 + len(size)] = size
    head[156:157] = kind
    head[257:262] = b"ustar"
    head[148:156] = b" " * 8
    head[148:154] = b"%06o" % sum(head)
    head[154:155] = b"\0"
    return bytes(head)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header(size=b"77777777777") + b"\0" * 512, "it ends inside of 'a'"),
        (header(size=b"\x80\xff\xff\xff\xff\xff\xff\xff\xff"), "no header of a tar"),
        (header(size=b"-1234567"), "no header of a tar"),
        (header(size=b"abc"), "no header of a tar"),
        (header()[:400], "cut short"),
        (header() + b"0123456789" + b"\0" * 502 + b"x" * 512, "no header of a tar lies at byte"),
        (b"\x1f\x8b" + b"\0" * 600, "no header of a tar"),
    ],
)
def test_a_tar_that_lies_ends_there(content, why, tmp_path):
    (tmp_path / "a.tar").write_bytes(content)
    _, fault = list_tar(str(tmp_path / "a.tar"))
    assert why in str(fault)


def test_a_tar_of_members_without_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(tar_members, "TAR_MEMBERS", 50)
    (tmp_path / "a.tar").write_bytes(header(size=b"0") * 100)
    members, fault = list_tar(str(tmp_path / "a.tar"))
    assert (len(members), str(fault)) == (50, "it has more than 50 members")


def test_a_member_is_read_up_to_a_limit(tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes(b"\0" * 4096)
    with pytest.raises(BadTarError, match="is cut short"):
        read_tar_member(str(tmp_path / "a.tar"), TarMember("a", 4000, 4096))
    monkeypatch.setattr(tar_members, "SAMPLE_BYTES", 1000)
    with pytest.raises(BadTarError, match="more than the 1,000 bytes"):
        read_tar_member(str(tmp_path / "a.tar"), TarMember("a", 0, 1001))


def test_mutated_samples_are_faults_and_nothing_else(tmp_path):
    good = sample("S2L2A", pixels("S2L2A"))
    rng = np.random.default_rng(1)
    samples = {}
    for number in range(150):
        broken = bytearray(good)
        for at in rng.integers(0, len(broken), 8):
            broken[at] = rng.integers(256)
        samples[f"a{number:03d}"] = bytes(broken)
    write_shard(tmp_path / "S2L2A/majortom_shard_000001.tar", {"a": good, **samples})
    source = TerraMesh(str(tmp_path), ("s2_l2a",))
    faults = 0
    for ref in source.cells():
        try:
            source.read(ref)
        except BadCellError as fault:
            faults += 1
            assert "\n" not in str(fault)  # noqa: PT017
    assert faults > 100
