"""An open GeoTIFF: what it says of its bands, and its pixels with a mask of what is missing.

What is missing: pixels under a mask of the file or under its alpha band, and each band's nodata
value. Of files beside it only a mask on a disk is looked for, IMAGE.tif.msk: in a store every
look would be a request, and GDAL would let such files point anywhere.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.io import DatasetReader, MemoryFile
from rasterio.windows import Window

from terrafm.data.rasters.units import is_missing, sample
from terrafm.errors import PixelError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, file_size, is_local, open_file, read_bytes, resolve
from terrafm.storage.claims import HARMLESS_BYTES, check_claim

SUFFIXES = (".tif", ".tiff")
_GSD_TOLERANCE = 0.05
# Files up to so many pixels are read whole to decide what they mean; of larger ones windows of so
# many pixels, so many along each side, more where those hold none.
_SMALL = 512 * 512
_WINDOW = 128
_LOOKS = (4, 8, 16)
_MASK_SUFFIX = ".msk"
# GDAL looks at no file beside the one that it is told to open.
_ALONE = {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
# Tags that say something of the pixels: the others may be long, and headers travel to workers.
_TAGS = (
    "product_id", "PRODUCT_ID", "PRODUCT_URI", "PROCESSING_BASELINE", "BOA_ADD_OFFSET",
    "RADIO_ADD_OFFSET", "earthsearch:boa_offset_applied", "DATASET_FINGERPRINT", "MODALITY",
)  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of its bands; an alpha band is none of them.

    Attributes:
        indexes: the bands' numbers in the file, from 1.
        names: labels of the bands, "" where it has none.
        dtype: of a stored pixel.
        nodata: each band's nodata value, or None.
        scales: physical value = stored value * scale + offset, by the file's tags; 1 without.
        offsets: as above; 0 without.
        alpha: number of the alpha band, or None.
        masked: the file holds a mask of all its bands.
        unit: of its coordinates: "metres", "degrees", or "" without a CRS.
        gsd: side of a pixel, in that unit.
        tags: those that say something of the pixels.
    """

    indexes: tuple[int, ...]
    names: tuple[str, ...]
    dtype: str
    nodata: tuple[float | None, ...]
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    alpha: int | None
    masked: bool
    unit: str
    gsd: float
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, image: DatasetReader) -> "Header":
        """Of an open file."""
        alphas = [n for n, c in zip(image.indexes, image.colorinterp, strict=True)
                  if c is ColorInterp.alpha]  # fmt: skip
        alpha = alphas[0] if alphas and image.count > len(alphas) else None
        indexes = tuple(n for n in image.indexes if alpha is None or n not in alphas)
        flags = image.mask_flag_enums[indexes[0] - 1]
        unit, gsd = "", 1.0
        if image.crs is not None:
            unit = "degrees" if image.crs.is_geographic else "metres"
            gsd = float(abs(image.res[0]))
        tags = image.tags()

        def of_bands(values: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(values[number - 1] for number in indexes)

        return cls(
            indexes=indexes,
            names=tuple((name or "").strip() for name in of_bands(image.descriptions)),
            dtype=image.dtypes[0],
            nodata=of_bands(image.nodatavals),
            scales=of_bands(image.scales),
            offsets=of_bands(image.offsets),
            alpha=alpha,
            masked=MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags,
            unit=unit,
            gsd=gsd,
            tags={key: tags[key] for key in _TAGS if key in tags},
        )

    @property
    def count(self) -> int:
        """Bands without alpha."""
        return len(self.indexes)

    def check_like(self, first: "Header", file: str, first_file: str) -> None:
        """Refuses a file that cannot be read as the first one is.

        Raises:
            UsageError: other bands, another kind of CRS, or another pixel size.
        """
        if self.count != first.count:
            raise UsageError(f"image {file} has {self.count} bands, {first_file} has {first.count}")
        if self.names != first.names:
            raise UsageError(f"image {file} names its bands otherwise than {first_file}")
        if self.unit != first.unit:
            raise UsageError(
                f"image {file} lies in {_crs_text(self.unit)}, {first_file} in "
                f"{_crs_text(first.unit)}: reproject one of them"
            )
        if abs(self.gsd - first.gsd) > _GSD_TOLERANCE * first.gsd:
            raise UsageError(
                f"image {file} has pixels of {self.gsd:g} {self.unit}, {first_file} of "
                f"{first.gsd:g}: resample one of them"
            )


@dataclass(frozen=True)
class Stored:
    """Pixels of a file or of a window of it.

    Attributes:
        pixels: (C, H, W), as stored, without alpha.
        missing: (C, H, W) bool, where the file itself says that nothing was measured.
        header: of the file.
    """

    pixels: NDArray[Any]
    missing: NDArray[np.bool_]
    header: Header

    def has_pixels(self) -> bool:
        """Whether anything was measured, of whatever sensor."""
        nodata = self.header.nodata
        return any(
            bool((~hidden & ~is_missing(band, value) & (band != 0)).any())
            for band, hidden, value in zip(self.pixels, self.missing, nodata, strict=True)
        )

    def measured(
        self, modality: str, where: str, take: Sequence[int] | None = None
    ) -> NDArray[Any]:
        """Bands with the file's scale and offset applied and what is missing marked in them.

        Args:
            modality: whose pixels they are.
            where: the file, for the message.
            take: positions of the bands; all by default.

        Returns:
            (len(take), H, W): optical integers without tags as they are, 0 where nothing was
            measured; else floats, NaN there.

        Raises:
            PixelError: only some of the bands have a scale tag, or one is 0 or not finite.
        """
        at = list(range(len(self.pixels)) if take is None else take)
        header = self.header
        stored, missing = self.pixels[at], self.missing[at].copy()
        for band, number in enumerate(at):
            missing[band] |= is_missing(stored[band], header.nodata[number])
        tags = [(header.scales[number], header.offsets[number]) for number in at]
        if not np.isfinite(tags).all() or not all(scale for scale, _ in tags):
            scale, offset = header.scales[at[0]], header.offsets[at[0]]
            raise PixelError(where, f"its tags say scale {scale:g} and offset {offset:g}: correct "
                             "them with gdal_edit.py -scale, -offset")  # fmt: skip
        plain = (1.0, 0.0)
        if plain in tags and len(set(tags)) > 1:
            raise PixelError(where, "some of its bands have a scale tag and others have none")
        integers = stored.dtype.kind in "ui"
        optical = MODALITIES[modality].unit == "reflectance"
        if integers and optical:
            # The sensor's own nodata.
            missing |= stored == 0
        if tags[:1] == [plain] or not tags:
            if integers and optical:
                return np.where(missing, stored.dtype.type(0), stored) if missing.any() else stored
            values = stored.astype(np.float64 if integers else stored.dtype)
        else:
            scales, offsets = (np.array(pair)[:, None, None] for pair in zip(*tags, strict=True))
            values = stored.astype(np.float64) * scales + offsets
        declared = any(header.nodata[number] is not None for number in at) or self.missing.any()
        if integers and (optical or declared):
            # Zero is fill in floats; an integer that comes to zero where fill is marked
            # otherwise was measured.
            values[values == 0] = np.finfo(np.float64).tiny
        values[missing] = np.nan
        return values


def read_stored(image: DatasetReader, header: Header, window: Window | None = None,
                mask: DatasetReader | None = None) -> Stored:  # fmt: skip
    """Reads pixels and what the file says is missing.

    Args:
        image: open file.
        header: of it.
        window: part of it; all by default.
        mask: open file of a mask beside it.

    Raises:
        RasterioError, MemoryError: they cannot be read.
    """
    numbers = list(header.indexes) + ([header.alpha] if header.alpha else [])
    pixels = image.read(numbers, window=window)
    hidden = np.zeros(pixels.shape[1:], dtype=bool)
    if header.alpha:
        hidden |= pixels[-1] == 0
        pixels = pixels[:-1]
    if header.masked:
        hidden |= image.read_masks(header.indexes[0], window=window) == 0
    missing = np.repeat(hidden[None], len(pixels), axis=0)
    if mask is not None:
        beside = mask.read(window=window) == 0
        missing |= beside if len(beside) == len(pixels) else beside[:1]
    return Stored(pixels, missing, header)


def band_levels(measured: NDArray[Any]) -> list[float]:
    """Median of each band of (C, H, W) optical pixels, 0 or NaN where nothing was measured."""
    bands = (sample(band, None) for band in measured)
    return [float(np.median(values)) if values.size else 0.0 for values in bands]


class OpenGeotiff:
    """A file that stays open for the windows that are read of it."""

    def __init__(self, uri: str) -> None:
        """Opens it, and the mask beside it.

        Raises:
            RasterioError, OSError, ValueError: see `open_geotiff`, `open_mask`.
        """
        self.image = open_geotiff(uri)
        self.header = Header.of(self.image)
        self._mask = open_mask(uri, self.image)

    def read(self, window: Window | None = None) -> Stored:
        """See `read_stored`."""
        return read_stored(self.image, self.header, window, self._mask)

    def sample(self) -> Stored:
        """Some of its pixels, those of a large file from all over it: always the same ones.

        (C, H, W) of a small file, of a large one windows beside each other.
        """
        height, width = self.image.shape
        if height * width <= _SMALL:
            return self.read()
        for windows_a_side in _LOOKS:
            found = [self.read(w) for w in _spread(height, width, windows_a_side)]
            pixels = np.concatenate([part.pixels for part in found], axis=2)
            missing = np.concatenate([part.missing for part in found], axis=2)
            whole = Stored(pixels, missing, self.header)
            if whole.has_pixels():
                break
        return whole

    def close(self) -> None:
        """Lets go of the files."""
        self.image.close()
        if self._mask is not None:
            self._mask.close()


def _spread(height: int, width: int, a_side: int) -> Iterator[Window]:
    side = min(_WINDOW, height, width)
    for top in np.linspace(0, height - side, a_side).astype(int):
        for left in np.linspace(0, width - side, a_side).astype(int):
            yield Window(int(left), int(top), side, side)


@contextmanager
def open_bytes(content: bytes) -> Iterator[DatasetReader]:
    """A GeoTIFF in memory.

    Raises:
        RasterioError: it is none, or damaged.
    """
    with warnings.catch_warnings(), MemoryFile(content) as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        # GDAL would go by the content: a VRT points at any other file or address.
        with memory.open(driver="GTiff") as image:
            yield image


def read_whole(uri: str) -> Stored:
    """All pixels of a file.

    Raises:
        UsageError: it cannot be read, or claims more pixels than its bytes can hold or than fit
            into memory.
    """
    try:
        content = read_bytes(uri)
        with open_bytes(content) as image:
            check_claim(size_in_memory(image), len(content))
            mask = open_mask(uri, image)
            return read_stored(image, Header.of(image), mask=mask)
    except MemoryError:
        raise UsageError(f"cannot read image {uri}: its pixels do not fit into memory") from None
    except (RasterioError, OSError, ValueError) as error:
        raise UsageError(f"cannot read image {uri}: {error}") from None


def open_geotiff(uri: str) -> DatasetReader:
    """Opens a file where it lies; of one in a store only what is asked for is read.

    Raises:
        RasterioError, OSError, ValueError: it cannot be read, or the blocks it is decoded by are
            larger than its bytes can hold.
    """
    path = resolve(uri)[1]
    if path.startswith("/vsi"):
        raise ValueError("GDAL would look for it elsewhere")

    if is_local(uri):
        with rasterio.Env(**_ALONE):
            image = rasterio.open(path, driver="GTiff")
    else:
        image = open_through(uri, lambda: open_file(uri))
    _check_block(image, uri)
    return image


def open_through(name: str, open_file: Callable[[], Any]) -> DatasetReader:
    """Opens a GeoTIFF whose bytes Python reads, alone: files beside it are not looked for.

    GDAL gets a name of its own. It looks for neighbours by cutting bytes off a name, and what is
    left of letters outside ASCII is no text, at which rasterio 1.4 raises a SystemError.

    Args:
        name: of the file, any text.
        open_file: opens it, to read and seek.

    Raises:
        RasterioError, OSError: it is no GeoTIFF, or cannot be opened.
    """
    alias = f"{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()}.tif"

    def opener(path: str, mode: str = "rb") -> Any:
        if path.rpartition("/")[2] != alias:
            raise FileNotFoundError(path)
        return open_file()

    try:
        with rasterio.Env(**_ALONE):
            return rasterio.open(alias, driver="GTiff", opener=opener)
    except RasterioError:
        raise RasterioIOError(f"{name} is not a readable GeoTIFF (damaged or cut short)") from None


def open_mask(uri: str, image: DatasetReader) -> DatasetReader | None:
    """The mask beside a file on a disk, IMAGE.tif.msk; None where there is none.

    Raises:
        RasterioError, ValueError: it is damaged, or no mask of that file.
    """
    beside = uri + _MASK_SUFFIX
    if not is_local(uri) or not exists(beside):
        return None
    with warnings.catch_warnings(), rasterio.Env(**_ALONE):
        # It lies where its image does.
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        mask = rasterio.open(resolve(beside)[1], driver="GTiff")
    _check_block(mask, beside)
    if mask.shape != image.shape:
        raise ValueError(f"{beside} has {mask.shape} pixels, not {image.shape}")
    return mask


def size_in_memory(image: DatasetReader) -> int:
    """Bytes of an open GeoTIFF once it is read, in whole blocks.

    GDAL decodes block by block: one of gigabytes may lie behind an image of 8 x 8.
    """
    rows, columns = _block(image)
    down, across = -(-int(image.height) // rows), -(-int(image.width) // columns)
    return block_size(image) * down * across


def block_size(image: DatasetReader) -> int:
    """Bytes that GDAL decodes for any one pixel: the block around it, in all bands."""
    # rasterio reads pairs of 16-bit integers, for which numpy has no type, as floats.
    names = (str(name).replace("complex_int16", "complex64") for name in image.dtypes)
    rows, columns = _block(image)
    return rows * columns * sum(np.dtype(name).itemsize for name in names)


def _block(image: DatasetReader) -> tuple[int, int]:
    rows, columns = max(image.block_shapes, default=(1, 1))
    return int(rows), int(columns)


def _check_block(image: DatasetReader, uri: str) -> None:
    block = block_size(image)
    if block > HARMLESS_BYTES:
        check_claim(block, file_size(uri) or 0)


def _crs_text(unit: str) -> str:
    return f"a CRS in {unit}" if unit else "no CRS"
