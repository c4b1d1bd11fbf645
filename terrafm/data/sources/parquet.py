"""Parquet files at any URI, opened so that only what is asked for travels."""

import pyarrow.parquet as pq

from terrafm.storage import arrow_filesystem, is_local, resolve


def open_parquet(uri: str) -> pq.ParquetFile:
    """Opens a Parquet file: reads its footer.

    Elsewhere than on a disk nothing is read ahead: the footer says where the columns lie, and
    neighbouring ones come in one request.

    Raises:
        OSError, pyarrow.ArrowException: it is missing, damaged or cut short.
    """
    if is_local(uri):
        filesystem, path = arrow_filesystem(uri)
        return pq.ParquetFile(path, filesystem=filesystem)
    filesystem, path = resolve(uri)
    return pq.ParquetFile(filesystem.open(path, "rb", cache_type="none"), pre_buffer=True)
