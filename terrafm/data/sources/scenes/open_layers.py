"""Open rasters of scenes: how their bytes are reached, many at once, and what stays open.

GDAL opens and decodes one raster after the other, in one thread. What it waits for is asked for
before, in many threads: first bytes and blocks of GeoTIFFs in stores, copies of what can only be
read on a disk.
"""

import tempfile
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf
from typing import Any

import numpy as np
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.geotiff import Header
from terrafm.data.rasters.opening import Driver, open_raster, open_raster_through
from terrafm.data.sources.folders import for_all
from terrafm.data.sources.raster import Grid, why_no_place
from terrafm.data.sources.scenes.blocks import block_ranges
from terrafm.data.sources.scenes.scene import Layer
from terrafm.data.sources.scenes.signing import Signer
from terrafm.data.sources.scenes.zarr_layers import ChunkCache, ZarrRaster, fetch_limit
from terrafm.storage import download, is_local
from terrafm.storage.read_ahead import ReadAhead, fetch_all
from terrafm.storage.zarr_arrays import BadZarrError
from terrafm.storage.zarr_store import ZarrStore
from terrafm.storage.zip_members import BadZipError, member_offset, unpack_member

# All bands and the mask of some scenes stay open: the next cell is of the same ones.
_OPEN = 48
_OPEN_STORES = 8


@dataclass
class _Reached:
    """How the bytes of a raster are reached.

    Attributes:
        uri: its address, signed.
        good_until: seconds since 1970 until when that holds.
        ahead: of a GeoTIFF in a store.
        copy: a temporary file, where it had to be copied to this machine.
    """

    uri: str
    good_until: float = inf
    ahead: ReadAhead | None = None
    copy: Any = None

    def close(self) -> None:
        if self.copy is not None:
            self.copy.close()


@dataclass
class Image:
    """An open raster.

    Attributes:
        dataset: of rasterio, or a `ZarrRaster`.
        header: what it says of its bands.
        grid: where its pixels lie.
        reached: its bytes.
        seen: row and column of the blocks that were fetched: GDAL keeps them decoded.
    """

    dataset: Any
    header: Header
    grid: Grid
    reached: _Reached
    seen: set[tuple[int, int]] = field(default_factory=set)

    def close(self) -> None:
        """Lets go of its files."""
        self.dataset.close()
        self.reached.close()


class OpenLayers:
    """Rasters that stay open while cells of the same scenes are read; the oldest are closed."""

    def __init__(self, sign: Signer | None = None, most: int = _OPEN) -> None:
        self._sign = sign
        self._images: OrderedDict[Layer, Image] = OrderedDict()
        self._reached: dict[Layer, _Reached | BadCellError] = {}
        self._most = most
        self._stores: OrderedDict[str, ZarrStore] = OrderedDict()
        self._chunks = ChunkCache()

    def image(self, layer: Layer) -> Image:
        """An open raster.

        Raises:
            BadCellError: it is missing, damaged, or not what its metadata say.
        """
        if self._is_open(layer):
            self._images.move_to_end(layer)
            return self._images[layer]
        if layer.array:
            return self._keep(layer, self._open_array(layer))
        reached = self._reached.pop(layer, None) or _reach(layer, *_address(layer, self._sign))
        if isinstance(reached, BadCellError):
            raise reached
        return self._keep(layer, _open(layer, reached))

    def _keep(self, layer: Layer, image: Image) -> Image:
        self._images[layer] = image
        while len(self._images) > self._most:
            self._images.popitem(last=False)[1].close()
        return image

    def reach(self, wanted: Sequence[Layer]) -> None:
        """Asks for the bytes of several rasters at once, so that one does not wait for another.

        GDAL opens each where it is read: rasterio 1.4 finds a file of Python only in the thread
        that opened it.

        Raises:
            StoreRefusedError, StoreFailedError: a store does not answer.
        """

        def reach(layer: Layer) -> _Reached | BadCellError:
            try:
                return _reach(layer, *addresses[layer])
            except BadCellError as fault:
                return fault

        # One signature serves many: they are asked for one after the other.
        addresses = {}
        for layer in wanted:
            if not layer.array and not self._is_open(layer):
                with suppress(BadCellError):
                    addresses[layer] = _address(layer, self._sign)
        self._close_reached()
        self._reached = dict(zip(addresses, for_all(reach, addresses), strict=True))

    def fetch(self, parts: Sequence[tuple[Layer, Image, Sequence[Window]]]) -> None:
        """Fetches windows of open rasters at once, as far as these lie in stores.

        Raises:
            StoreRefusedError, StoreFailedError: a store does not answer.
        """
        arrays = [(image.dataset, windows) for layer, image, windows in parts if layer.array]
        chunks = fetch_limit(arrays, self._chunks.most)
        for_all(lambda chunk: chunk[0].fetch(*chunk[1:]), chunks)
        wanted = []
        for layer, image, windows in parts:
            ahead = image.reached.ahead
            if ahead is None:
                continue
            # What the last cell did not read after all.
            ahead.forget()
            try:
                wanted.append((ahead, block_ranges(image.dataset, windows, image.seen)))
            except RasterioError:
                self.forget(layer)
        # A file that is gone meanwhile is told by who reads it.
        with suppress(FileNotFoundError):
            fetch_all(wanted)

    def _open_array(self, layer: Layer) -> Image:
        try:
            if layer.uri not in self._stores:
                self._stores[layer.uri] = ZarrStore(layer.uri)
                while len(self._stores) > _OPEN_STORES:
                    self._stores.popitem(last=False)
            raster = ZarrRaster(self._stores[layer.uri], layer.array, self._chunks)
        except (OSError, ValueError, BadZipError, BadZarrError) as error:
            raise _unreadable(layer, error) from None
        assert layer.grid is not None
        if layer.grid.shape != raster.shape:
            rows, columns = raster.shape
            why = f"{rows} x {columns} px, but its metadata say {layer.grid}"
            raise BadCellError(layer.where, why)
        return Image(raster, raster.header, layer.grid, _Reached(layer.uri))

    def _is_open(self, layer: Layer) -> bool:
        if layer in self._images and self._images[layer].reached.good_until < time.time():
            self.forget(layer)
        return layer in self._images

    def forget(self, layer: Layer) -> None:
        """Closes a raster that cannot be read."""
        if layer in self._images:
            self._images.pop(layer).close()

    def close(self) -> None:
        """Closes all."""
        while self._images:
            self._images.popitem()[1].close()
        self._close_reached()

    def _close_reached(self) -> None:
        while self._reached:
            reached = self._reached.popitem()[1]
            if isinstance(reached, _Reached):
                reached.close()


def read_header(layer: Layer, sign: Signer | None = None) -> tuple[Grid, Header]:
    """Where the pixels of a raster lie, and what it says of its bands, without reading them.

    Args:
        layer: it.
        sign: signs its address, where that needs it.

    Raises:
        BadCellError: it cannot be opened, or lies nowhere.
    """
    image = _open(layer, _reach(layer, *_address(layer, sign)))
    image.close()
    return image.grid, image.header


def _open(layer: Layer, reached: _Reached) -> Image:
    try:
        dataset = _open_where_it_lies(layer, reached)
        grid = layer.grid or _grid_of(dataset, layer.where)
        if grid.shape != dataset.shape:
            rows, columns = dataset.shape
            dataset.close()
            raise BadCellError(layer.where, f"{rows} x {columns} px, but its metadata say {grid}")
        return Image(dataset, Header.of(dataset), grid, reached)
    except BadCellError:
        reached.close()
        raise
    except RasterioError:
        reached.close()
        kind = "JPEG 2000 file" if layer.driver is Driver.JPEG_2000 else "GeoTIFF"
        raise BadCellError(layer.where, f"not a readable {kind} (damaged or cut short)") from None
    except MemoryError:
        reached.close()
        raise BadCellError(layer.where, "its pixels do not fit into memory") from None
    except (OSError, ValueError, BadZipError) as error:
        reached.close()
        raise _unreadable(layer, error) from None


def _unreadable(layer: Layer, error: Exception) -> BadCellError:
    missing = isinstance(error, FileNotFoundError)
    return BadCellError(layer.where, "file not found" if missing else str(error))


def _address(layer: Layer, sign: Signer | None) -> tuple[str, float]:
    return sign(layer.uri) if sign else (layer.uri, inf)


def _reach(layer: Layer, uri: str, good_until: float) -> _Reached:
    """Copies what GDAL cannot read where it lies; of a GeoTIFF in a store the first bytes.

    Raises:
        BadCellError: it is not there, or is damaged.
        StoreRefusedError, StoreFailedError: a store does not answer.
    """
    file = None
    try:
        if is_local(uri) and (layer.member is None or layer.member.stored):
            return _Reached(uri, good_until)
        if layer.member is None and layer.driver is Driver.GEOTIFF:
            return _Reached(uri, good_until, ReadAhead(uri))
        # It stays as long as GDAL may open it once more, which is until the dataset is closed.
        file = tempfile.NamedTemporaryFile(prefix="terrafm-band-")  # noqa: SIM115
        if layer.member is None:
            download(uri, file.name)
        else:
            unpack_member(uri, layer.member, file.name)
        return _Reached(uri, good_until, copy=file)
    except BaseException as error:
        if file is not None:
            file.close()
        if isinstance(error, OSError | ValueError | BadZipError):
            raise _unreadable(layer, error) from None
        raise


def _open_where_it_lies(layer: Layer, reached: _Reached) -> DatasetReader:
    if reached.copy is not None:
        return open_raster(reached.copy.name, layer.driver)
    if reached.ahead is not None:
        ahead = reached.ahead
        return open_raster_through(reached.uri, ahead.open, lambda: ahead.size)
    part = None
    if layer.member is not None:
        part = member_offset(reached.uri, layer.member), layer.member.size
    return open_raster(reached.uri, layer.driver, part)


def _grid_of(dataset: DatasetReader, where: str) -> Grid:
    """The grid that a file states, of any kind but rotated."""
    if why := why_no_place(dataset):
        raise BadCellError(where, why)
    a, b, c, d, e, f = (float(value) for value in tuple(dataset.transform)[:6])
    if b or d or not np.isfinite((a, c, e, f)).all() or a <= 0 or e >= 0:
        raise BadCellError(where, "its grid is not north-up: lay it so first with gdalwarp")
    return Grid(
        dataset.crs.to_string(), (a, b, c, d, e, f), (dataset.height, dataset.width), round(a)
    )
