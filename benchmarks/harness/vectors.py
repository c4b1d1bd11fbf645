"""Folders of made-up embeddings of any size: GeoParquet as `terrafm embed` writes it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import shapely
from numpy.typing import NDArray

from terrafm.embed.hilbert import hilbert_order
from terrafm.embed.rows import file_bytes
from terrafm.embed.schema import (
    MANIFEST,
    TILES,
    EmbeddingManifest,
    PartFile,
    embedding_schema,
    part_name,
)
from terrafm.storage import write_bytes

ROWS_PER_FILE = 70_000
"""Of 384 numbers: 128 MB."""


class Mixture:
    """Vectors as encoders give them: clusters of very different sizes on a bent surface.

    Points of a space of few dimensions (a cluster's centre and what differs within it) go through a
    fixed random layer of tanh and are mapped to `dim` numbers, to which a little noise is added.
    Neighbours are then within a cluster, whose own dimension is `latent`.

    Args:
        dim: numbers of a vector.
        latent: dimensions of the surface.
        clusters: how many; their sizes fall off as 1 / rank^0.7.
    """

    def __init__(self, dim: int, latent: int = 32, clusters: int = 20_000) -> None:
        rng = np.random.default_rng(0)
        self.dim, self.latent = dim, latent
        self._bend = (rng.normal(size=(latent, 512)) * 1.5 / np.sqrt(latent)).astype(np.float32)
        self._map = (rng.normal(size=(512, dim)) / np.sqrt(512)).astype(np.float32)
        self._centres = rng.normal(size=(clusters, latent)).astype(np.float32)
        shares = 1 / np.arange(1, clusters + 1) ** 0.7
        self._shares = shares / shares.sum()

    def draw(self, count: int, seed: int) -> NDArray[np.float32]:
        """(count, dim) vectors."""
        rng = np.random.default_rng([1, seed])
        cluster = rng.choice(len(self._centres), count, p=self._shares)
        within = rng.standard_normal((count, self.latent), dtype=np.float32)
        bent = np.tanh((self._centres[cluster] + 0.35 * within) @ self._bend)
        noise = rng.standard_normal((count, self.dim), dtype=np.float32)
        return np.asarray(bent @ self._map + 0.05 * noise, np.float32)


def make_folder(folder: Path, rows: int, dim: int) -> Iterator[int]:
    """Writes a folder of embeddings, and yields how many rows are there."""
    mixture, parts = Mixture(dim), []
    rng = np.random.default_rng(2)
    places = rng.uniform((-180, -60), (179, 80), (rows, 2)).astype(np.float32)
    places = places[hilbert_order(places[:, 0], places[:, 1])]
    for number, first in enumerate(range(0, rows, ROWS_PER_FILE)):
        here = places[first : first + ROWS_PER_FILE].astype(np.float64)
        vectors = mixture.draw(len(here), number)
        content = file_bytes(_table(first, here, vectors))
        name = f"{part_name(number)}.parquet"
        write_bytes(str(folder / TILES / name), content)
        digest = hashlib.sha256(content).hexdigest()
        parts.append(PartFile(name=name, rows=len(here), bytes=len(content), sha256=digest))
        yield first + len(here)
    manifest = EmbeddingManifest(
        rows=rows, skipped=0, dim=dim, model="synthetic", weights="none", model_fingerprint="none",
        data="none", data_kind="dataset", data_fingerprint="none", modalities=("s2_l2a",),
        normalisation={}, options={"dense": False}, legend={}, parts=tuple(parts), versions={},
    )  # fmt: skip
    write_bytes(str(folder / MANIFEST), manifest.to_json().encode())


def _table(first: int, places: NDArray[np.float64], vectors: NDArray[np.float32]) -> pa.Table:
    count, dim = vectors.shape
    schema = embedding_schema(dim)
    boxes = np.concatenate([places, places + 0.05], axis=1)
    numbers = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    constant = {"crs": "EPSG:4326", "source": "none", "model_fingerprint": "none",
                "data_fingerprint": "none"}  # fmt: skip
    known = {
        "tile_id": pa.array([f"tile_{row:08d}" for row in range(first, first + count)]),
        "embedding": pa.FixedSizeListArray.from_arrays(numbers, dim),
        "geometry": pa.array(shapely.to_wkb(shapely.box(*boxes.T))),
        "bbox": pa.StructArray.from_arrays(
            [pa.array(np.ascontiguousarray(side)) for side in boxes.T],
            fields=list(schema.field("bbox").type),
        ),
        "modalities": pa.array([["s2_l2a"]] * count),
        **{name: pa.array([text] * count) for name, text in constant.items()},
    }
    arrays = [known.get(f.name, pa.array([None] * count, f.type)) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)
