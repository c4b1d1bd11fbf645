"""Arrays of Zarr as rasters of scenes: read by windows, chunks kept while neighbours need them."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.windows import Window

from terrafm.data.rasters.geotiff import Header
from terrafm.storage.zarr_arrays import ArrayInfo, BadZarrError
from terrafm.storage.zarr_store import ZarrStore
from terrafm.storage.zip_members import BadZipError

# Chunks of EOPF are a sixth of a scene's side: two rows of them, of all bands, take 460 MB.
_KEPT_BYTES = 512 << 20

Key = tuple[str, str, tuple[int, int]]


class ChunkCache:
    """Decoded chunks of open arrays up to a number of bytes, the last ones; safe in threads.

    Attributes:
        most: bytes that are kept.
        bytes: that are here.
    """

    def __init__(self, most: int = _KEPT_BYTES) -> None:
        self.most = most
        self._chunks: OrderedDict[Key, NDArray[Any]] = OrderedDict()
        self.bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Key) -> NDArray[Any] | None:
        """A chunk that is here."""
        with self._lock:
            if key in self._chunks:
                self._chunks.move_to_end(key)
            return self._chunks.get(key)

    def put(self, key: Key, chunk: NDArray[Any]) -> None:
        """Keeps a chunk; the oldest make room."""
        with self._lock:
            self.bytes += chunk.nbytes - getattr(self._chunks.pop(key, None), "nbytes", 0)
            self._chunks[key] = chunk
            while self.bytes > self.most:
                self.bytes -= self._chunks.popitem(last=False)[1].nbytes

    def drop(self, uri: str, name: str) -> None:
        """Forgets the chunks of an array."""
        with self._lock:
            for key in [key for key in self._chunks if key[:2] == (uri, name)]:
                self.bytes -= self._chunks.pop(key).nbytes


class ZarrRaster:
    """An array of two dimensions with what the engine asks of an open file of rasterio.

    Attributes:
        count, indexes, height, width, shape, dtypes: as rasterio has them.
    """

    def __init__(self, store: ZarrStore, name: str, cache: ChunkCache) -> None:
        """Reads its metadata.

        Raises:
            BadZipError, BadZarrError: there is no such array, or it is no raster.
            OSError, StoreRefusedError, StoreFailedError: it cannot be read.
        """
        info = store.info(name)
        if info is None:
            raise BadZarrError("file not found")
        if len(info.shape) != 2 or info.dtype.kind not in "uif":
            raise BadZarrError(f"an array of {info.shape} {info.dtype} is no raster")
        self._store, self._name, self._info, self._cache = store, name, info, cache
        self.count, self.indexes = 1, (1,)
        self.height, self.width = self.shape = (info.shape[0], info.shape[1])
        self.dtypes = (info.dtype.name,)

    @property
    def header(self) -> Header:
        """What is known of its pixels: scale and offset are the product's."""
        return Header((1,), ("",), self.dtypes[0], (None,), (1.0,), (0.0,), None, False,
                      "metres", 1.0)  # fmt: skip

    def read(self, _: Any = None, window: Window | None = None) -> NDArray[Any]:
        """(1, H, W) of a window.

        Raises:
            ValueError: a chunk of it is damaged.
            StoreRefusedError, StoreFailedError: the store does not answer.
        """
        window = window or Window(0, 0, self.width, self.height)
        left, top, width, height = (int(side) for side in window.flatten())
        rows, columns = self._info.chunks
        found = np.full((height, width), self._info.fill, self._info.dtype)
        for row, column in _touched(window, self._info):
            part = self._chunk(row, column)
            if part is None:
                continue
            first, second = row * rows - top, column * columns - left
            # Corners of the chunk and of the window, each in the other.
            y, x = max(first, 0), max(second, 0)
            part = part[y - first :, x - second :][: height - y, : width - x]
            found[y : y + part.shape[0], x : x + part.shape[1]] = part
        # Bytes of another order are none that arithmetic is fast with.
        return found.astype(found.dtype.newbyteorder("="), copy=False)[None]

    def wanted(self, windows: Sequence[Window]) -> list[tuple[int, int]]:
        """Row and column of chunks that windows touch and that are not here."""
        touched = dict.fromkeys(at for window in windows for at in _touched(window, self._info))
        return [at for at in touched if self._cache.get(self._key(*at)) is None]

    def fetch(self, row: int, column: int) -> None:
        """Reads a chunk ahead; what is wrong with it is told by who reads it."""
        try:
            self._chunk(row, column)
        except ValueError:
            return

    @property
    def chunk_bytes(self) -> int:
        """Bytes of a decoded chunk."""
        return self._info.chunks[0] * self._info.chunks[1] * self._info.dtype.itemsize

    def close(self) -> None:
        """Lets go of its chunks."""
        self._cache.drop(self._store.uri, self._name)

    def _key(self, row: int, column: int) -> Key:
        return self._store.uri, self._name, (row, column)

    def _chunk(self, row: int, column: int) -> NDArray[Any] | None:
        key = self._key(row, column)
        part = self._cache.get(key)
        if part is None:
            try:
                part = self._store.chunk(self._name, self._info, (row, column))
            except (OSError, BadZipError, BadZarrError) as error:
                raise ValueError(f"not readable (damaged or cut short): {error}") from None
            if part is not None:
                self._cache.put(key, part)
        return part


def fetch_limit(rasters: Iterable[tuple[ZarrRaster, Sequence[Window]]], most: int
                ) -> Iterator[tuple[ZarrRaster, int, int]]:  # fmt: skip
    """Chunks to read ahead, no more than are kept until they are asked for."""
    left = most
    for raster, windows in rasters:
        for row, column in raster.wanted(windows):
            left -= raster.chunk_bytes
            if left < 0:
                return
            yield raster, row, column


def _touched(window: Window, info: ArrayInfo) -> Iterator[tuple[int, int]]:
    left, top, width, height = (int(side) for side in window.flatten())
    rows, columns = info.chunks
    for row in range(top // rows, -(-(top + height) // rows)):
        for column in range(left // columns, -(-(left + width) // columns)):
            yield row, column
