"""An index beside a folder of embeddings: what is near a vector, without looking at all of them.

An inverted file (Sivic and Zisserman 2003): vectors lie in lists by their nearest of some thousand
centroids, and only the lists whose centroids are nearest to a query are looked at. Each vector is
there in a byte a dimension, as its distance from the centroid. FAISS looks through the lists,
which stay on the disk and are mapped into memory, so that a search takes the memory of the lists
that it looks at.

FAISS reads files of its own without checks. So this file is none: lengths and places are stated in
a record and held against the files before FAISS sees them.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import safetensors.numpy
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from terrafm.embed.schema import LARGEST_DIM, EmbeddingManifest
from terrafm.errors import UsageError
from terrafm.search.spread import Spread
from terrafm.storage import file_size, is_local, join, load_record, read_bytes
from terrafm.storage.faults import one_line
from terrafm.storage.limits import WHOLE_FILE_BYTES
from terrafm.storage.local import check_regular
from terrafm.storage.records import Count, Finite

SEARCH = "search"
RECORD = "index.json"
REMEDY = "terrafm search --index builds it anew, --exact needs none"
ARRAYS, LISTS, IDS = "arrays.safetensors", "lists.bin", "ids.bin"
MOST_LISTS = 1 << 16
ID_BYTES = 8
_ARRAYS = {
    "centroids": np.float32, "low": np.float32, "step": np.float32, "sizes": np.int64,
}  # fmt: skip


class IndexRecord(BaseModel):
    """What an index says of itself.

    Attributes:
        embeddings: fingerprint of the embeddings that it is of.
        rows: of the folder.
        indexed: those that have a direction.
        dim: length D of a vector.
        lists: how many, L.
        probes: how many of them are looked at.
        recall: share of the 10 nearest that were found, of `queries` of its rows, leaving
            themselves out.
        recall_deviation: of that share from query to query.
        queries: compared with all rows while it was built.
        milliseconds: of one of those searches, the median.
        seconds: that building took.
        key: in the names of its files.
        faiss: version that made it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["terrafm-search-index"] = "terrafm-search-index"
    format_version: Literal[1] = 1
    embeddings: str
    rows: Count
    indexed: Count
    dim: Annotated[int, Field(ge=1, le=LARGEST_DIM)]
    lists: Annotated[int, Field(ge=1, le=MOST_LISTS)]
    probes: Annotated[int, Field(ge=1, le=MOST_LISTS)]
    recall: Finite
    recall_deviation: Finite
    queries: Count
    milliseconds: Finite
    seconds: Finite
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
    faiss: str


@dataclass(frozen=True)
class Found:
    """What a search in an index found, the most similar first.

    Attributes:
        rows: places in the folder.
        similarities: cosines, as far as a byte a dimension tells.
    """

    rows: list[int]
    similarities: list[float]


class Index:
    """An open index.

    Args:
        uri: of the folder of embeddings.
        record: of its index, which fits the embeddings.

    Raises:
        UsageError: its files are missing or damaged, or FAISS is not installed.
    """

    def __init__(self, uri: str, record: IndexRecord) -> None:
        faiss = need_faiss()
        self.record = record
        self._ids = _path(uri, record, IDS)
        lists = _path(uri, record, LISTS)
        try:
            arrays = _read_arrays(uri, record)
            _check_size(lists, record.indexed * (record.dim + ID_BYTES))
            _check_size(self._ids, record.rows * 2 * ID_BYTES)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"the index in {join(uri, SEARCH)} is damaged: {one_line(error)}: {REMEDY}"
            ) from None
        self._spread = spread_of(arrays)
        self._index = ivf(arrays, record.indexed)
        self._stored = on_disk(self._index, lists, arrays["sizes"])
        self._index.nprobe = min(record.probes, record.lists)
        faiss.omp_set_num_threads(1)

    def search(self, vector: NDArray[np.floating], count: int) -> Found:
        """The most similar rows.

        Args:
            vector: (D,) as the folder has it.
            count: how many, at least 1; fewer come where the lists looked at hold fewer.
        """
        query = unit(self.prepared(vector[None]))
        similarities, rows = self._index.search(query, count)
        # A row outside of the folder would be a damaged list's.
        real = (rows[0] >= 0) & (rows[0] < self.record.rows)
        return Found(rows[0][real].tolist(), similarities[0][real].tolist())

    def row_of(self, tile_id: str) -> list[int]:
        """Places where a tile may stand: of its own id, and rarely of another one too."""
        count = self.record.rows
        hashes = np.memmap(self._ids, np.uint64, "r", shape=(count,))
        rows = np.memmap(self._ids, np.int64, "r", offset=count * ID_BYTES, shape=(count,))
        (wanted,) = hashes_of([tile_id])
        first, stop = np.searchsorted(hashes, wanted), np.searchsorted(hashes, wanted, "right")
        found = np.asarray(rows[first:stop])
        return [row for row in found.tolist() if 0 <= row < count]

    def prepared(self, vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        """Vectors (N, D) such that their cosines mean something."""
        return vectors if self._spread is None else self._spread.standardise(vectors)


def find_index(uri: str, manifest: EmbeddingManifest) -> IndexRecord | None:
    """The record of the index that fits a folder; None where there is none.

    Raises:
        UsageError: there is one of other embeddings, or its record is damaged.
    """
    where = join(uri, SEARCH, RECORD)
    record = load_record(where, IndexRecord, REMEDY, UsageError)
    if record is None:
        return None
    if record.embeddings != fingerprint(manifest) or record.dim != manifest.dim:
        raise UsageError(f"the index in {join(uri, SEARCH)} is of other embeddings: {REMEDY}")
    return record


def fingerprint(manifest: EmbeddingManifest) -> str:
    """Of embeddings: changes with any of their files."""
    return hashlib.sha256(manifest.to_json().encode()).hexdigest()


def check_possible(uri: str) -> None:
    """Whether a folder can have an index.

    Raises:
        UsageError: it lies in a store, or FAISS is not installed.
    """
    need_faiss()
    if not is_local(uri):
        raise UsageError(
            f"an index lies on a disk, and {uri} lies in a store: copy it, or take --exact"
        )


def need_faiss() -> Any:
    """The library.

    Raises:
        UsageError: it is not installed.
    """
    if find_spec("faiss") is None:
        raise UsageError("an index needs faiss-cpu: pip install 'terrafm[search]', or --exact")
    import faiss

    return faiss


def ivf(arrays: dict[str, NDArray[Any]], rows: int) -> Any:
    """An index of FAISS without its lists."""
    faiss = need_faiss()
    centroids = np.ascontiguousarray(arrays["centroids"])
    count, dim = centroids.shape
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(centroids)
    eight_bits, inner = faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    index = faiss.IndexIVFScalarQuantizer(quantizer, dim, count, eight_bits, inner, True)
    trained = np.concatenate([arrays["low"], arrays["step"]]).astype(np.float32)
    faiss.copy_array_to_vector(trained, index.sq.trained)
    index.is_trained = True
    index.ntotal = rows
    # FAISS keeps a pointer, Python the centroids.
    index.referenced_objects = [quantizer]
    return index


def on_disk(index: Any, path: str, sizes: NDArray[np.int64]) -> Any:
    """Lets an index look through lists that lie in a file, one after the other; keep the result."""
    faiss = need_faiss()
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, path)
    lists.read_only = True
    lists.prefetch_nthread = 0
    lists.totsize = os.path.getsize(path)
    # FAISS copies them while this name holds them: a temporary would be gone by then.
    lengths = np.ascontiguousarray(sizes.astype(np.uint64))
    lists.set_all_lists_sizes(faiss.swig_ptr(lengths))
    if lists.totsize:
        lists.do_mmap()
    index.replace_invlists(lists, False)
    return lists


def unit(vectors: NDArray[np.floating]) -> NDArray[np.float32]:
    """(N, D) as unit vectors; NaN where one has no direction."""
    exact = np.asarray(vectors, np.float32)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        made = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return np.ascontiguousarray(made, np.float32)


def hashes_of(tile_ids: Sequence[str]) -> NDArray[np.uint64]:
    """(N,) 64 bits of each id, the same in every process."""
    names = np.array(tile_ids, dtype=object)
    return np.asarray(pd.util.hash_array(names, categorize=False), np.uint64)


def spread_of(arrays: dict[str, NDArray[Any]]) -> Spread | None:
    """What standardises the vectors of an index; None where they are compared as they are."""
    return Spread.from_moments(arrays) if "mean" in arrays else None


def _path(uri: str, record: IndexRecord, name: str) -> str:
    check_possible(uri)
    return str(Path(uri) / SEARCH / f"{record.key}-{name}")


def _check_size(path: str, size: int) -> None:
    check_regular(path)
    if file_size(path) != size:
        raise ValueError(f"{path} has {file_size(path):,} bytes, not {size:,}")


def _read_arrays(uri: str, record: IndexRecord) -> dict[str, NDArray[Any]]:
    content = read_bytes(_path(uri, record, ARRAYS), WHOLE_FILE_BYTES)
    try:
        arrays: dict[str, NDArray[Any]] = safetensors.numpy.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{ARRAYS}: {error}") from None
    shapes = {
        "centroids": (record.lists, record.dim), "low": (record.dim,), "step": (record.dim,),
        "sizes": (record.lists,),
    }  # fmt: skip
    if "mean" in arrays:
        shapes |= {name: (1,) if name == "count" else (record.dim,) for name in Spread.MOMENTS}
    for name, shape in shapes.items():
        found = arrays.get(name)
        if found is None or found.shape != shape or found.dtype != _ARRAYS.get(name, found.dtype):
            raise ValueError(f"{ARRAYS}: {name} is missing or of another shape")
        if not np.isfinite(found).all():
            raise ValueError(f"{ARRAYS}: {name} is not finite")
    if arrays["sizes"].min() < 0 or arrays["sizes"].sum() != record.indexed:
        raise ValueError(f"{ARRAYS}: the lists do not add up to {record.indexed:,} rows")
    return arrays
