"""Features kept as Parquet, one file for each encoder, set and way of looking at it.

A file is used again when everything that its features depend on is the same; that stands in the
file's metadata. Columns: name, split, group, label, feature.
"""

import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from terrafm.errors import TerraFMError, UsageError
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.storage import exists, join, write_bytes
from terrafm.storage.faults import one_line
from terrafm.storage.parquet import read_parquet

_METADATA_KEY = b"terrafm_features"
# Raise it when the same encoder on the same images gives other features.
_VERSION = 2


def cached_features(
    folder: str | None,
    title: str,
    depends_on: Mapping[str, Any],
    images: ImageSet,
    compute: Callable[[], NDArray[np.float32]],
) -> tuple[NDArray[np.float32], str | None]:
    """Features from their file, or computed and written there.

    Args:
        folder: URI where the files lie; None computes always and writes nothing.
        title: of the encoder, part of the file's name.
        depends_on: JSON-able, all that the features depend on besides the set.
        images: the set.
        compute: makes the (N, D) features.

    Returns:
        (N, D) float32, and the file's URI where there is one.

    Raises:
        UsageError: the file is damaged.
    """
    if folder is None:
        return compute(), None
    uri, key = _place(folder, title, depends_on, images)
    if exists(uri):
        return read_features(uri), uri
    features = compute()
    write_bytes(uri, _table_bytes(features, images, key))
    return features, uri


def parts_uri(
    folder: str | None, title: str, depends_on: Mapping[str, Any], images: ImageSet
) -> str | None:
    """Where parts of the features wait until all are made; None where nothing is kept.

    Args:
        folder: as in `cached_features`.
        title: as there.
        depends_on: as there.
        images: as there.
    """
    if folder is None:
        return None
    return _place(folder, title, depends_on, images)[0].removesuffix(".parquet") + ".parts"


def read_features(uri: str) -> NDArray[np.float32]:
    """(N, D) features of a file, in the order of the set's images.

    Raises:
        UsageError: it is no file of features, or damaged.
    """
    try:
        flat = read_parquet(uri, ["feature"])["feature"].combine_chunks()
        width = flat.type.list_size
        values = flat.flatten().to_numpy(zero_copy_only=False)
    except (TerraFMError, AttributeError) as error:
        raise UsageError(
            f"no features in {uri}: {one_line(error)}; delete it to have it computed anew"
        ) from None
    return np.ascontiguousarray(values.reshape(-1, width), np.float32)


def _place(
    folder: str, title: str, depends_on: Mapping[str, Any], images: ImageSet
) -> tuple[str, str]:
    """URI of the file, and all that its features depend on as text."""
    key = json.dumps({"version": _VERSION, "set": images.fingerprint, **depends_on}, sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    slug = re.sub(r"[^A-Za-z0-9_.]+", "-", title).strip("-.")[-60:]
    return join(folder, f"{slug}-{digest}.parquet"), key


def _table_bytes(features: NDArray[np.float32], images: ImageSet, key: str) -> bytes:
    count, width = features.shape
    labels = getattr(images, "labels", None)
    splits = images.splits if images.splits is not None else [None] * count
    columns = {
        "name": pa.array([str(name) for name in images.names], pa.string()),
        "split": pa.array([None if s is None else str(s) for s in splits], pa.string()),
        "group": pa.array(images.groups, pa.int64()),
        "label": pa.array(
            [None] * count if labels is None else [np.atleast_1d(row).tolist() for row in labels],
            pa.list_(pa.int64()),
        ),
        "feature": pa.FixedSizeListArray.from_arrays(
            pa.array(np.ascontiguousarray(features).reshape(-1), pa.float32()), width
        ),
    }
    table = pa.table(columns).replace_schema_metadata({_METADATA_KEY: key.encode()})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
