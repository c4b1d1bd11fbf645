"""Folders of embeddings, written by what `terrafm embed` writes with."""

import numpy as np
import pytest

from terrafm.embed.rows import part_bytes
from terrafm.embed.schema import MANIFEST, TILES, EmbeddingManifest, PartFile
from terrafm.embed.source import DatasetTiles
from terrafm.storage import join, write_bytes

DIM = 8


def write_embeddings(
    folder, places, vectors, *, data, kind="dataset", fingerprint="", rows=4,
    modalities=("s1", "s2_l2a"), options=None, readout="cls",
):  # fmt: skip
    """A finished folder of so many rows a part; returns its URI."""
    parts = []
    for number, start in enumerate(range(0, len(places), rows)):
        here = slice(start, start + rows)
        content = part_bytes(
            places[here], [modalities] * len(places[here]), vectors[here], ("model", fingerprint)
        )
        name = f"part-{number:05d}.parquet"
        write_bytes(join(folder, TILES, name), content)
        parts.append(PartFile(name=name, rows=len(places[here]), bytes=len(content), sha256=""))
    manifest = EmbeddingManifest(
        rows=len(places), skipped=0, dim=vectors.shape[1], readout=readout,
        model="terrafm_tiny", weights="weights", model_fingerprint="model", data=str(data),
        data_kind=kind, data_fingerprint=fingerprint,
        modalities=modalities, normalisation={}, options=options or {}, legend={},
        parts=tuple(parts), versions={},
    )  # fmt: skip
    write_bytes(join(folder, MANIFEST), manifest.to_json().encode())
    return str(folder)


@pytest.fixture(scope="session")
def write():
    """Writes a folder of embeddings."""
    return write_embeddings


@pytest.fixture(scope="session")
def vectors():
    """(11, D) of the small dataset's tiles."""
    return np.random.default_rng(3).normal(1, 1, (11, DIM)).astype(np.float32)


@pytest.fixture(scope="session")
def embeddings(small_dataset, vectors, tmp_path_factory):
    """URI of the small dataset's embeddings, in three parts."""
    tiles = DatasetTiles(small_dataset)
    folder = tmp_path_factory.mktemp("search") / "embeddings"
    places = [tiles.place(row) for row in range(len(tiles))]
    return write_embeddings(
        str(folder), places, vectors, data=small_dataset, fingerprint=tiles.fingerprint
    )
