"""What a JPEG 2000 file claims, before a codec sees it.

OpenJPEG keeps books on every code block of a tile, on every tile and on every component as soon
as it reads a header: 2 kB that claim one tile of 16,000 pixels in blocks of 4 take 8 GB. So sizes
are read here (ISO/IEC 15444-1, A.5.1 and I.4) and held against those of Sentinel-2's bands, which
have tiles of 192 to 1024 pixels.
"""

import struct
from typing import IO

from terrafm.storage.limits import JPEG2000_COMPONENTS, JPEG2000_TILE_PIXELS, JPEG2000_TILES

_SIGNATURE = b"\x00\x00\x00\x0cjP  \r\n\x87\n"
_BOX = struct.Struct(">I4s")
_LONG = struct.Struct(">Q")
_CODESTREAM = b"jp2c"
# Start of codestream and of SIZ, then its length and what it needs of a decoder.
_SIZ = struct.Struct(">HHHH8IH")
_START, _SIZE = 0xFF4F, 0xFF51
_MOST_BOXES = 64


def check_codestream(file: IO[bytes], start: int = 0) -> None:
    """Refuses a JPEG 2000 file whose sizes no band of Sentinel-2 has.

    Args:
        file: to read and seek in.
        start: where the JPEG 2000 begins in it.

    Raises:
        ValueError: it is none, or larger in some way than is read.
        OSError: it cannot be read.
    """
    file.seek(start)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        raise ValueError("not a readable JPEG 2000 file (damaged or cut short)")
    at = start + len(_SIGNATURE)
    for _ in range(_MOST_BOXES):
        file.seek(at)
        head = file.read(_BOX.size)
        if len(head) < _BOX.size:
            break
        length, kind = _BOX.unpack(head)
        inside = at + _BOX.size
        if length == 1:
            length = _LONG.unpack(file.read(_LONG.size).ljust(_LONG.size, b"\0"))[0]
            inside += _LONG.size
        if kind == _CODESTREAM:
            file.seek(inside)
            _check_sizes(file.read(_SIZ.size))
            return
        if length < _BOX.size:
            break
        at += length
    raise ValueError("not a readable JPEG 2000 file (damaged or cut short)")


def _check_sizes(head: bytes) -> None:
    if len(head) < _SIZ.size:
        raise ValueError("not a readable JPEG 2000 file (cut short)")
    start, size, _, _, right, bottom, left, top, width, height, x, y, components = _SIZ.unpack(head)
    if (start, size) != (_START, _SIZE) or not (right > left >= x and bottom > top >= y):
        raise ValueError("not a readable JPEG 2000 file (its sizes are none)")
    if not width or not height:
        raise ValueError("not a readable JPEG 2000 file (its tiles have no size)")
    if components > JPEG2000_COMPONENTS:
        raise ValueError(f"it has {components:,} components, more than the {JPEG2000_COMPONENTS} "
                         "that are read")  # fmt: skip
    tiles = -(-(right - x) // width) * -(-(bottom - y) // height)
    if tiles > JPEG2000_TILES:
        raise ValueError(f"it has {tiles:,} tiles, more than the {JPEG2000_TILES:,} that are read")
    pixels = min(width, right - x) * min(height, bottom - y) * components
    if pixels > JPEG2000_TILE_PIXELS:
        raise ValueError(
            f"its tiles of {width:,} x {height:,} pixels are larger than the "
            f"{JPEG2000_TILE_PIXELS:,} that are decoded at once"
        )
