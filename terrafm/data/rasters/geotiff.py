"""An open GeoTIFF: what it says of its bands, and its pixels with a mask of what is missing.

What is missing: pixels under a mask of the file or under its alpha band, and each band's nodata
value. Of files beside it only a mask on a disk is looked for, IMAGE.tif.msk: in a store every
look would be a request, and GDAL would let such files point anywhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from terrafm.data.rasters.opening import (
    check_whole,
    check_window,
    open_mask,
    open_raster,
    open_raster_bytes,
)
from terrafm.data.rasters.units import is_missing, sample, stated_values
from terrafm.errors import PixelError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import file_size, read_bytes
from terrafm.storage.limits import WHOLE_FILE_BYTES

SUFFIXES = (".tif", ".tiff")
_GSD_TOLERANCE = 0.05
# Files up to so many pixels are read whole to decide what they mean; of larger ones windows of so
# many pixels, so many along each side, more where those hold none.
_SMALL = 512 * 512
_WINDOW = 128
_LOOKS = (4, 8, 16)
_MOST_LOOKED_AT = 1 << 26
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
            (len(take), H, W): Sentinel-2's integers without tags as they are, 0 where nothing was
            measured; else floats, NaN there. Of other packages' sensors physical values.

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
        sensor = MODALITIES[modality]
        optical = sensor.radiometry == "sentinel-2"
        if integers and optical:
            # The sensor's own nodata.
            missing |= stored == 0
        if tags[:1] == [plain] or not tags:
            if sensor.radiometry == "stated":
                values = stated_values(stored, sensor)
                values[missing] = np.nan
                return values
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
            RasterioError, OSError, ValueError: see `open_raster`, `open_mask`.
        """
        self._uri = uri
        self.image = open_raster(uri)
        self.header = Header.of(self.image)
        self._mask = open_mask(uri, self.image)

    def read(self, window: Window | None = None) -> Stored:
        """See `read_stored`.

        Raises:
            RasterioError, MemoryError, ValueError: it cannot be read, lies outside, or is larger
                than is read at once or than the file can hold.
        """
        if window is not None:
            check_window(self.image, window)
        else:
            check_whole(self.image, lambda: file_size(self._uri) or 0)
        return read_stored(self.image, self.header, window, self._mask)

    def sample(self) -> Stored:
        """Some of its pixels, those of a large file from all over it: always the same ones.

        (C, H, W) of a small file, of a large one windows beside each other.
        """
        height, width = self.image.shape
        if height * width <= _SMALL:
            return self.read()
        for windows_a_side in _LOOKS:
            looked_at = (windows_a_side * _WINDOW) ** 2 * self.header.count
            if windows_a_side > _LOOKS[0] and looked_at > _MOST_LOOKED_AT:
                break
            found = [self.read(w) for w in spread_windows(height, width, windows_a_side)]
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


def spread_windows(height: int, width: int, a_side: int) -> Iterator[Window]:
    """Small windows from all over an image, so many along each side."""
    side = min(_WINDOW, height, width)
    for top in np.linspace(0, height - side, a_side).astype(int):
        for left in np.linspace(0, width - side, a_side).astype(int):
            yield Window(int(left), int(top), side, side)


def read_whole(uri: str) -> Stored:
    """All pixels of a file.

    Raises:
        UsageError: it cannot be read, or claims more pixels than its bytes can hold or than fit
            into memory.
    """
    try:
        content = read_bytes(uri, WHOLE_FILE_BYTES)
        with open_raster_bytes(content) as image:
            check_whole(image, lambda: len(content))
            mask = open_mask(uri, image)
            return read_stored(image, Header.of(image), mask=mask)
    except MemoryError:
        raise UsageError(f"cannot read image {uri}: its pixels do not fit into memory") from None
    except (RasterioError, OSError, ValueError) as error:
        raise UsageError(f"cannot read image {uri}: {error}") from None


def _crs_text(unit: str) -> str:
    return f"a CRS in {unit}" if unit else "no CRS"
