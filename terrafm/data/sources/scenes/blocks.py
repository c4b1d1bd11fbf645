"""Which bytes of a GeoTIFF a window needs: the blocks that it touches, by the file's own index."""

from collections.abc import Iterable, Iterator

import numpy as np
from rasterio.io import DatasetReader
from rasterio.windows import Window

from terrafm.storage.seekable import Range

# A block that was compressed without success, and its checksums.
_LARGER, _AROUND = 2, 4096


def block_ranges(
    dataset: DatasetReader, windows: Iterable[Window], seen: set[tuple[int, int]]
) -> list[Range]:
    """First byte and byte behind the last of each block, of all bands.

    Args:
        dataset: an open GeoTIFF.
        windows: parts of it.
        seen: row and column of blocks that are left out; gets those that are found.

    Returns:
        None of blocks that are not there, or whose size is none of a block.
    """
    rows, columns = max(dataset.block_shapes)
    largest = rows * columns * sum(np.dtype(name).itemsize for name in dataset.dtypes)
    found = set()
    for row, column in sorted({at for w in windows for at in _touched(w, rows, columns)} - seen):
        seen.add((row, column))
        for band in dataset.indexes:
            start = dataset.get_tag_item(f"BLOCK_OFFSET_{column}_{row}", "TIFF", bidx=band)
            size = dataset.get_tag_item(f"BLOCK_SIZE_{column}_{row}", "TIFF", bidx=band)
            if start and size and int(size) <= _LARGER * largest + _AROUND:
                found.add((int(start), int(start) + int(size)))
    return sorted(found)


def _touched(window: Window, rows: int, columns: int) -> Iterator[tuple[int, int]]:
    left, top, width, height = (int(side) for side in window.flatten())
    for row in range(top // rows, -(-(top + height) // rows)):
        for column in range(left // columns, -(-(left + width) // columns)):
            yield row, column
