"""Test tiles on the disk: a dataset of shards and Major-TOM-like GeoTIFFs of the same pixels."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import rasterio
from numpy.typing import NDArray
from rasterio.io import MemoryFile

from harness.pixels import GROUPS, GSD, TILE, Pixels, describe, profile, tiles
from terrafm.data.shards.commit import commit_dataset
from terrafm.data.shards.entry import ShardEntry, TileRecord
from terrafm.data.shards.writer import write_shard
from terrafm.modalities import MODALITIES

CLASSES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)
_PER_SHARD = 16


@dataclass(frozen=True)
class TestTiles:
    """Where the tiles lie.

    Attributes:
        dataset: URI of the shards.
        geotiffs: folder TILE_ID/MODALITY/BAND.tif.
        count: number of tiles.
        data: what the pixels are.
    """

    dataset: str
    geotiffs: Path
    count: int
    data: str


def prepare(work: Path, real: Path, count: int) -> TestTiles:
    """Makes the tiles, or finds those that an earlier run made."""
    data = describe(real)
    folder = work / f"{data.split()[0]}-{count}"
    made = TestTiles(str(folder / "dataset"), folder / "geotiffs", count, data)
    seal = folder / "complete"
    if not seal.exists():
        shutil.rmtree(folder, ignore_errors=True)
        _write(made, real)
        seal.touch()
    return made


def geotiff(pixels: NDArray[Any], gsd: int, style: dict[str, Any]) -> bytes:
    """One band as one GeoTIFF in Major-TOM's style.

    A tile's blocks are no larger than the tile: the 1024 px of whole cells would pad them.
    """
    block = min(style["blockxsize"], -(-pixels.shape[0] // 16) * 16)
    fields = dict(style, blockxsize=block, blockysize=block)
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff",
            dtype=pixels.dtype.name,
            count=1,
            height=pixels.shape[0],
            width=pixels.shape[1],
            crs="EPSG:32633",
            transform=rasterio.Affine(gsd, 0, 500000, 0, -gsd, 5000000),
            nodata=-32768 if pixels.dtype.kind == "f" else None,
            **fields,
        ) as file:
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


def geotiffs(tile: Pixels, style: dict[str, Any]) -> dict[str, dict[str, bytes]]:
    """Modality -> band -> GeoTIFF of one tile."""
    return {
        name: {
            band: geotiff(tile.raw[name][band], gsd, style)
            for band, gsd in zip(sensor.bands, sensor.gsd, strict=True)
        }
        for name, sensor in MODALITIES.items()
    }


def record(number: int, tile: Pixels) -> TileRecord:
    """A tile for a shard; its land cover runs through the eleven classes."""
    code = CLASSES[number % len(CLASSES)]
    return TileRecord(
        tile_id=f"tile_{number:05d}",
        arrays=tile.stored,
        land_cover=code,
        histogram={code: TILE**2},
        crs="EPSG:32633",
        transform=(GSD, 0.0, 500000.0 + number * GSD * TILE, 0.0, -GSD, 5000000.0),
        latitude=45.0,
        longitude=15.0 + number * 0.07,
        products={name: {"product_id": f"{name}_{number}"} for name in MODALITIES},
    )


def repeat(tiles: TestTiles, folder: Path, times: int, *, own_shards: bool = False) -> str:
    """A dataset in which every tile stands many times under other names, its pixels once.

    With `own_shards` each copy has shard files of its own (hard links), so that its bytes have a
    place that no other copy's have.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shards = folder / "shards"
    folder.mkdir(parents=True)
    if own_shards:
        shards.mkdir()
    else:
        shards.symlink_to(Path(tiles.dataset) / "shards")
    entries = []
    for path in sorted((Path(tiles.dataset) / "entries").iterdir()):
        entry = ShardEntry.read(tiles.dataset, path.stem)
        assert entry is not None
        copies = [_renamed(entry.rows, copy) for copy in range(times)]
        if not own_shards:
            entries.append(replace(entry, rows=pa.concat_tables(copies), extra={}))
            continue
        for copy, rows in enumerate(copies):
            one = replace(entry, name=f"{entry.name}-{copy:05d}", extra={})
            (folder / one.path).hardlink_to(Path(tiles.dataset) / entry.path)
            entries.append(replace(one, rows=_set_column(rows, "shard", [one.path] * len(rows))))
    _commit(str(folder), entries)
    return str(folder)


def _renamed(rows: pa.Table, copy: int) -> pa.Table:
    names = [f"{name}_{copy:05d}" for name in rows["tile_id"].to_pylist()]
    return _set_column(rows, "tile_id", names)


def _set_column(rows: pa.Table, name: str, values: list[str]) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.field(name), pa.array(values))


def _write(made: TestTiles, real: Path) -> None:
    style = profile(real)
    numbered = enumerate(tiles(real, made.count))
    entries = []
    for shard in range(-(-made.count // _PER_SHARD)):
        records = _records(numbered, made.geotiffs, style)
        entries.append(write_shard(made.dataset, f"part-{shard:05d}", records, GROUPS))
    _commit(made.dataset, entries)


def _records(
    numbered: Iterator[tuple[int, Pixels]], folder: Path, style: dict[str, Any]
) -> Iterator[TileRecord]:
    for _, (number, tile) in zip(range(_PER_SHARD), numbered, strict=False):
        made = record(number, tile)
        for modality, bands in geotiffs(tile, style).items():
            (folder / made.tile_id / modality).mkdir(parents=True)
            for band, content in bands.items():
                (folder / made.tile_id / modality / f"{band}.tif").write_bytes(content)
        yield made


def _commit(uri: str, entries: list[ShardEntry]) -> None:
    statistics = {
        name: {
            "bands": list(sensor.bands),
            # Fill values of the crops; no figure depends on them.
            "mean": [-14.0 if name == "s1" else 0.2] * sensor.channels,
            "std": [3.0 if name == "s1" else 0.1] * sensor.channels,
        }
        for name, sensor in MODALITIES.items()
    }
    commit_dataset(
        uri,
        entries,
        tile_size=TILE,
        gsd=GSD,
        groups=GROUPS,
        statistics=statistics,
        legend={code: f"class {code}" for code in CLASSES},
        report={},
    )
