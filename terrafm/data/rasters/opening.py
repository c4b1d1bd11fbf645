"""The one place where rasters are opened: by a named driver, alone, no larger than they can be.

A driver is GeoTIFF's or, for the bands of SAFE products, JPEG 2000's. GDAL would go by the
content, and a file that is a VRT points at any other file of the machine or at an address. What a
file claims is held against its bytes before memory is taken for it.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from terrafm.data.rasters.jpeg2000 import check_codestream
from terrafm.storage import exists, file_size, is_local, open_file, resolve
from terrafm.storage.claims import check_claim
from terrafm.storage.limits import HARMLESS_BYTES, RASTER_BANDS, WINDOW_BYTES
from terrafm.storage.local import check_regular
from terrafm.storage.read_ahead import ReadAhead

_MASK_SUFFIX = ".msk"
# GDAL looks at no file beside the one that it is told to open.
_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
# A pixel that is read becomes a float of 8 bytes, and whether it is missing takes another.
_PIXEL_BYTES = 9


class Driver(StrEnum):
    """Formats that are read, by GDAL's names of their drivers."""

    GEOTIFF = "GTiff"
    JPEG_2000 = "JP2OpenJPEG"


def open_raster(
    uri: str, driver: Driver = Driver.GEOTIFF, part: tuple[int, int] | None = None
) -> DatasetReader:
    """Opens a raster where it lies; of a GeoTIFF in a store only what is asked for is read.

    Args:
        uri: the file.
        driver: its format.
        part: first byte and length of the raster in a file on a disk, which may be a zip.

    Raises:
        RasterioError, OSError, ValueError: it cannot be read, has too many bands, or the blocks
            it is decoded by are larger than its bytes can hold; or it is JPEG 2000, or a part of
            a file, in a store.
    """
    path = resolve(uri)[1]
    if path.startswith("/vsi"):
        raise ValueError("GDAL would look for it elsewhere")
    if not is_local(uri):
        if driver is not Driver.GEOTIFF or part is not None:
            # rasterio 1.4 hands JP2OpenJPEG other bytes than Python reads: noise, and no error.
            raise ValueError("it lies in a store: copy it to a disk first")
        # Opened here first: what is raised inside of GDAL's call is lost, and a file that is not
        # there would be called damaged.
        ahead = ReadAhead(uri)
        return open_raster_through(uri, ahead.open, lambda: ahead.size)
    check_regular(path)
    if part is not None:
        path = f"/vsisubfile/{part[0]}_{part[1]},{path}"
    options = {}
    if driver is Driver.JPEG_2000:
        with open_file(uri) as file:
            check_codestream(file, part[0] if part else 0)
    with warnings.catch_warnings(), rasterio.Env(**_ALONE):
        if driver is Driver.JPEG_2000:
            # The product's metadata say where it lies; GML inside could name an address.
            options["GEOREF_SOURCES"] = "NONE"
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
        image = rasterio.open(path, driver=driver.value, **options)
    return _checked(image, lambda: part[1] if part else file_size(uri) or 0)


@contextmanager
def open_raster_bytes(content: bytes) -> Iterator[DatasetReader]:
    """A GeoTIFF in memory.

    Raises:
        RasterioError, ValueError: as `open_raster`.
    """
    with warnings.catch_warnings(), MemoryFile(content) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff") as image:
            yield _checked(image, lambda: len(content))


def open_raster_through(
    name: str, open_bytes: Callable[[], Any], stored: Callable[[], int]
) -> DatasetReader:
    """Opens a GeoTIFF whose bytes Python reads, alone: files beside it are not looked for.

    GDAL gets a name of its own. It looks for neighbours by cutting bytes off a name, and what is
    left of letters outside ASCII is no text, at which rasterio 1.4 raises a SystemError.

    Args:
        name: of the file, any text.
        open_bytes: opens it, to read and seek.
        stored: its size, bytes; asked for where its blocks are large.

    Raises:
        RasterioError, OSError, ValueError: as `open_raster`.
    """
    alias = f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()}.tif"

    def opener(path: str, mode: str = "rb") -> Any:
        if path.rpartition("/")[2] != alias:
            raise FileNotFoundError(path)
        return open_bytes()

    try:
        with rasterio.Env(**_ALONE):
            image = rasterio.open(alias, driver="GTiff", opener=opener)
    except RasterioError:
        raise RasterioIOError(f"{name} is not a readable GeoTIFF (damaged or cut short)") from None
    return _checked(image, stored)


def open_mask(uri: str, image: DatasetReader) -> DatasetReader | None:
    """The mask beside a file on a disk, IMAGE.tif.msk; None where there is none.

    Raises:
        RasterioError, OSError, ValueError: as `open_raster`, or it is no mask of that file.
    """
    beside = uri + _MASK_SUFFIX
    if not is_local(uri) or not exists(beside):
        return None
    with warnings.catch_warnings():
        # It lies where its image does.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        mask = open_raster(beside)
    if mask.shape != image.shape:
        raise ValueError(f"{beside} has {mask.shape} pixels, not {image.shape}")
    if mask.count > image.count or set(mask.dtypes) != {"uint8"}:
        raise ValueError(f"{beside} is no mask: masks have bytes in one band or in those of the "
                         "image")  # fmt: skip
    return mask


def check_whole(image: DatasetReader, stored: Callable[[], int]) -> None:
    """Refuses an open GeoTIFF before all of it is read, by what its bytes can hold.

    Args:
        image: open file.
        stored: its size, bytes; asked for where it claims much.

    Raises:
        ValueError: see `terrafm.storage.claims.check_claim`.
    """
    rows, columns = _block(image)
    # GDAL decodes block by block: one of gigabytes may lie behind an image of 8 x 8.
    down, across = -(-int(image.height) // rows), -(-int(image.width) // columns)
    # A mask takes a byte for each pixel of each band.
    mask = rows * columns * int(image.count)
    _check_claim((_block_bytes(image) + mask) * down * across, stored)


def check_window(image: DatasetReader, window: Window) -> None:
    """Refuses a window before it is read, by the memory that its pixels take.

    Raises:
        ValueError: it lies outside of the image, or takes more than 2 GiB.
    """
    left, top, width, height = (int(side) for side in window.flatten())
    inside = 0 <= left < left + width <= image.width and 0 <= top < top + height <= image.height
    if not inside:
        raise ValueError(
            f"the window of {width} x {height} pixels at column {left}, row {top} does not lie in "
            f"the image of {image.width} x {image.height}"
        )
    needed = width * height * int(image.count) * _PIXEL_BYTES
    if needed > WINDOW_BYTES:
        raise ValueError(
            f"a window of {width} x {height} pixels in {image.count} bands takes {needed:,} bytes, "
            f"more than {WINDOW_BYTES:,}: take a smaller one"
        )


def _checked(image: DatasetReader, stored: Callable[[], int]) -> DatasetReader:
    try:
        if image.count > RASTER_BANDS:
            raise ValueError(f"it has {image.count:,} bands, more than the {RASTER_BANDS} that are "
                             "read")  # fmt: skip
        if image.driver == Driver.JPEG_2000:
            # Its blocks are GDAL's choice: the codec keeps books on tiles of any size. A band of
            # Sentinel-2 is harmless as a whole.
            size = np.dtype(image.dtypes[0]).itemsize
            _check_claim(int(image.width) * int(image.height) * int(image.count) * size, stored)
        _check_claim(_block_bytes(image), stored)
    except BaseException:
        image.close()
        raise
    return image


def _check_claim(claimed: int, stored: Callable[[], int]) -> None:
    if claimed > HARMLESS_BYTES:
        check_claim(claimed, stored())


def _block_bytes(image: DatasetReader) -> int:
    """Bytes that GDAL decodes for any one pixel: the block around it, in all bands."""
    # rasterio reads pairs of 16-bit integers, for which numpy has no type, as floats.
    names = (str(name).replace("complex_int16", "complex64") for name in image.dtypes)
    rows, columns = _block(image)
    return rows * columns * sum(np.dtype(name).itemsize for name in names)


def _block(image: DatasetReader) -> tuple[int, int]:
    rows, columns = max(image.block_shapes, default=(1, 1))
    return int(rows), int(columns)
