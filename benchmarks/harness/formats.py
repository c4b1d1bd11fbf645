"""The test tiles in the formats of other libraries: the very cells of our shards, as bytes."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import codecs
from terrafm.data.shards.dataset import Dataset

# Epochs of a few dozen tiles would measure how epochs start: LitData sees every chunk this often.
REPEATS = 64
_CHUNK = "64mb"
_TILES_PER_TAR = 16


def write(name: str, uri: str, folder: Path) -> None:
    """Writes one format, unless an earlier run did.

    Args:
        name: "litdata", "webdataset" or "mosaicml".
        uri: dataset of the tiles.
        folder: of all formats.
    """
    target = folder / name
    seal = folder / f"{name}.complete"
    if not seal.exists():
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        _WRITERS[name](Dataset.open(uri), target)
        seal.touch()


def _cells(dataset: Dataset) -> Iterator[tuple[int, dict[str, bytes]]]:
    for row in range(len(dataset)):
        pixels = dataset.read_tile(row)
        yield row, {name: codecs.encode(codecs.names()[0], p) for name, p in pixels.items()}


def _litdata(dataset: Dataset, target: Path) -> None:
    from litdata.streaming import Cache

    cache = Cache(str(target), chunk_bytes=_CHUNK.upper())
    for row, cells in _cells(dataset):
        cache[row] = {"tile": row, **cells}
    cache.done()
    cache.merge()
    index = json.loads((target / "index.json").read_text())
    index["chunks"] = [
        chunk | {"filename": _link(target, chunk["filename"], number)}
        for number in range(REPEATS)
        for chunk in index["chunks"]
    ]
    (target / "index.json").write_text(json.dumps(index))


def _link(folder: Path, name: str, number: int) -> str:
    if number == 0:
        return name
    linked = f"{name.removesuffix('.bin')}-{number}.bin"
    os.link(folder / name, folder / linked)
    return linked


def _webdataset(dataset: Dataset, target: Path) -> None:
    import webdataset

    with webdataset.ShardWriter(f"{target}/%05d.tar", maxcount=_TILES_PER_TAR, verbose=0) as sink:
        for row, cells in _cells(dataset):
            sink.write({"__key__": f"{row:05d}", **{f"{k}.bin": v for k, v in cells.items()}})


def _mosaicml(dataset: Dataset, target: Path) -> None:
    from streaming import MDSWriter

    columns: dict[str, Any] = {"tile": "int", **{group.name: "bytes" for group in dataset.groups}}
    with MDSWriter(out=str(target), columns=columns, size_limit=_CHUNK) as sink:
        for row, cells in _cells(dataset):
            sink.write({"tile": row, **cells})


_WRITERS = {"litdata": _litdata, "webdataset": _webdataset, "mosaicml": _mosaicml}
