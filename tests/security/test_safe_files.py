"""Zips, XML and JPEG 2000 of strangers: bounded, and never a way out of where they lie."""

import struct
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import rasterio

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from safe_products import BANDS, Product, ground, write_safe, write_zip

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.opening import Driver, open_raster
from terrafm.data.sources.safe import SafeArchive
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.storage import zip_members
from terrafm.storage.limits import XML_BYTES, XML_DEPTH, XML_ELEMENTS, ZIP_DIRECTORY_BYTES
from terrafm.storage.xml_text import BadXmlError, parse_xml
from terrafm.storage.zip_members import BadZipError, list_members, read_member, unpack_member

# What lies in a product lies where its metadata say.
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
LAUGHS = b"""<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;">
<!ENTITY d "&c;&c;&c;&c;&c;&c;&c;">]><a>&d;</a>"""
OUTSIDE = b'<?xml version="1.0"?><!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd"><a/>'
FILE = b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>'


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (LAUGHS, "a document type declaration"),
        (OUTSIDE, "a document type declaration"),
        (FILE, "a document type declaration"),
        (b"<a>&b;</a>", "not readable XML"),
        (b"<a>" * (XML_DEPTH + 1), f"more than {XML_DEPTH} levels"),
        (b"<a>" + b"<b/>" * (XML_ELEMENTS + 1), f"more than {XML_ELEMENTS:,} elements"),
        (b"<a>" + b" " * XML_BYTES, "more than the 8,388,608 bytes"),
        (b"<a>\xff</a>", "not readable XML"),
        (b"", "not readable XML"),
        (b"\0" * 100, "not readable XML"),
    ],
)
def test_xml_is_elements_and_texts_alone(text, why):
    with pytest.raises(BadXmlError, match=why):
        parse_xml(text)


def test_xml_of_a_product_may_stop_early():
    head = b'<n:a xmlns:n="u"><b c="1"> 5 </b><d/>'
    root = parse_xml(head + b"<e>" * 10**5, until="d")
    assert (root.name, root.first("b"), root.all("b")[0].attributes) == ("a", "5", {"c": "1"})


def test_an_xml_bomb_in_a_product_is_its_fault(tmp_path):
    root = write_safe(tmp_path, Product(ground(1, size=66, bands=BANDS)))
    (root / "MTD_MSIL2A.xml").write_bytes(LAUGHS)
    (ref,) = archive(tmp_path).cells()
    assert "a document type declaration" in ref.faults[0][1].why


def archive(folder, modalities=("s2_l2a",)):
    return SafeArchive(str(folder), modalities, SceneRequest(tile_size=66))


@pytest.mark.parametrize("name", ["../out.txt", "/etc/out.txt", "a/../../out", "C:/out", "..\\out"])
def test_a_zip_with_a_name_that_leads_out_is_a_fault(name, tmp_path):
    path = write_zip(tmp_path, Product(ground(1, size=66, bands=BANDS)))
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(zipfile.ZipInfo(name), "x")
    (ref,) = archive(tmp_path).cells()
    assert "leads out of it" in ref.faults[0][1].why
    assert {p.name for p in tmp_path.rglob("*")} == {path.name}


def test_a_member_that_unpacks_to_more_than_it_claims_is_stopped(tmp_path):
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a", b"\0" * 10_000_000)
    (member,) = list_members(str(path))
    claimed = zip_members.Member("a", member.header, member.packed, 1000, 8, member.checksum)
    tracemalloc.start()
    with pytest.raises(BadZipError, match="is damaged"):
        read_member(str(path), claimed)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    with pytest.raises(BadZipError, match="more than the 1,000 bytes"):
        read_member(str(path), member, 1000)


def test_a_member_that_claims_gigabytes_is_not_unpacked(tmp_path):
    path = tmp_path / "bomb.zip"
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = packer.compress(b"\0" * 1000) + packer.flush()
    member = zip_members.Member("a", 0, len(content), 8 << 30, 8, 0)
    head = struct.pack("<4s22xHH", b"PK\x03\x04", 0, 0)
    path.write_bytes(head + content)
    with pytest.raises(BadZipError, match="cannot hold the 8,589,934,592 bytes"):
        unpack_member(str(path), member, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_directory_of_gigabytes_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(zip_members, "ZIP_DIRECTORY_BYTES", 10_000)
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for number in range(300):
            packed.writestr(f"a{number}", "")
    with pytest.raises(BadZipError, match="a directory of"):
        list_members(str(path))
    assert ZIP_DIRECTORY_BYTES == 8 << 20


@pytest.mark.parametrize("damage", ["encrypted", "method", "header"])
def test_members_that_cannot_be_read_are_faults(damage, tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_BZIP2 if damage == "method" else 8) as packed:
        packed.writestr("a", b"x" * 1000)
    content = bytearray(path.read_bytes())
    if damage == "encrypted":
        directory = content.rindex(b"PK\x01\x02")
        content[directory + 8] |= 1
    if damage == "header":
        content[0] = 0
    path.write_bytes(content)
    with pytest.raises(BadZipError, match=r"encrypted|packed by method|does not begin"):
        read_member(str(path), list_members(str(path))[0])


def jp2(path, side, **profile):
    with rasterio.open(
        path, "w", driver="JP2OpenJPEG", dtype="uint8", count=1, height=side, width=side,
        QUALITY="100", REVERSIBLE="YES", **profile,
    ) as file:  # fmt: skip
        file.write(np.zeros((1, side, side), np.uint8))
    return path


def claiming(path, width, height, tile):
    """A JPEG 2000 whose header claims another size, of itself and of its tiles."""
    content = bytearray(path.read_bytes())
    at = content.index(b"ihdr") + 4
    content[at : at + 8] = struct.pack(">II", height, width)
    size = content.index(b"\xff\x51") + 6
    content[size : size + 8] = struct.pack(">II", width, height)
    content[size + 16 : size + 24] = struct.pack(">II", tile, tile)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("width", "height", "tile", "why"),
    [
        # 2 kB that took 8 GB, for the codec keeps books on blocks of 4 pixels.
        (16_000, 16_000, 16_000, "its tiles of 16,000 x 16,000 pixels are larger"),
        (60_000, 60_000, 4_000, "bytes cannot hold the 3,600,000,000 bytes"),
        (60_000, 60_000, 64, "it has 879,844 tiles, more than the 4,096"),
        (64, 64, 0, "its tiles have no size"),
        (0, 64, 64, "its sizes are none"),
    ],
)
def test_a_jpeg_2000_that_claims_more_than_a_band_has_is_not_read(
    width, height, tile, why, tmp_path
):
    path = claiming(jp2(tmp_path / "bomb.jp2", 64), width, height, tile)
    with pytest.raises(ValueError, match=why):
        open_raster(str(path), Driver.JPEG_2000)


def test_formats_are_those_that_the_caller_names(tmp_path):
    """A VRT, or a GeoTIFF, behind the name of a band is none."""
    secret = jp2(tmp_path / "secret.jp2", 64)
    vrt = f"""<VRTDataset rasterXSize="64" rasterYSize="64"><VRTRasterBand dataType="Byte" band="1">
    <SimpleSource><SourceFilename>{secret}</SourceFilename></SimpleSource></VRTRasterBand>
    </VRTDataset>"""
    (tmp_path / "band.jp2").write_text(vrt)
    for driver in Driver:
        with pytest.raises((rasterio.errors.RasterioError, ValueError)):
            open_raster(str(tmp_path / "band.jp2"), driver)
    with pytest.raises(rasterio.errors.RasterioError):
        open_raster(str(secret), Driver.GEOTIFF)
    with open_raster(str(secret), Driver.JPEG_2000) as image:
        assert image.shape == (64, 64)


def test_links_and_pipes_among_the_bands_are_not_followed_to_their_end(tmp_path):
    import os

    root = write_safe(tmp_path, Product(ground(1, size=66, bands=BANDS)))
    band = next(root.rglob("*B04_10m.jp2"))
    band.unlink()
    os.mkfifo(band)
    opened = archive(tmp_path)
    with pytest.raises(BadCellError, match="named pipe"):
        opened.read(opened.cells()[0])


def test_metadata_with_absurd_numbers_are_faults(tmp_path):
    root = write_safe(tmp_path, Product(ground(1, size=66, bands=BANDS)))
    path = next(root.rglob("MTD_TL.xml"))
    text = path.read_text()
    for old, new, why in (
        ("<NROWS>66<", "<NROWS>9999999<", "a tile of"),
        ("<NROWS>66<", "<NROWS>-1<", "a tile of"),
        ("<NROWS>66<", "<NROWS>many<", "NROWS is 'many', not a number"),
        ("<ULX>600000<", "<ULX>1e300<", "a corner at"),
        ("<ULX>600000<", "<ULX>nan<", "not a number"),
        ("EPSG:32633", "EPSG:4326", "not a zone of UTM"),
        ('resolution="20"', 'resolution="21"', "no Size and Geoposition of 20 m"),
    ):
        path.write_text(text.replace(old, new))
        (ref,) = archive(tmp_path).cells()
        assert why in ref.faults[0][1].why
