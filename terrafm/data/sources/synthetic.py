"""The synthetic archive: a small seeded Earth written as Major-TOM Core and WorldCover tiles.

Nothing downstream knows that it is synthetic: the archive is read by the same source as a real
one. Specification: `synthetic:cells=24,seed=0[,px=1068][,clouds=0.15]`.
"""

import difflib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from terrafm.data.sources.major_tom import MajorTom
from terrafm.data.synthetic import optics, radar
from terrafm.data.synthetic.globe import Footprint, settle
from terrafm.data.synthetic.landscape import BIOMES, make_landscape
from terrafm.data.synthetic.products import offset, optical_date, radar_date
from terrafm.data.synthetic.worldcover import warp, write_tiles
from terrafm.errors import UsageError
from terrafm.storage import exists, is_local, join, resolve, upload, write_bytes
from terrafm.storage.faults import explain

PREFIX = "synthetic:"
FOLDERS = {"s2_l2a": "Core-S2L2A", "s2_l1c": "Core-S2L1C", "s1": "Core-S1RTC"}
_ROWS_PER_PART = 64
_L2A_BANDS = tuple(band for band in optics.BANDS if band != "B10")


@dataclass(frozen=True)
class SyntheticSpec:
    """What to draw.

    Attributes:
        cells: number of grid cells.
        seed: another seed is another Earth.
        px: side of a cell, pixels of 10 m, a multiple of 6.
        clouds: mean cloud cover of the optical products, 0..0.6.
    """

    cells: int = 24
    seed: int = 0
    px: int = 1068
    clouds: float = 0.15

    def __post_init__(self) -> None:
        for key, low, high in (
            ("cells", 1, 100_000),
            ("seed", 0, 2**31),
            ("px", 48, 1068),
            ("clouds", 0.0, 0.6),
        ):
            if not low <= getattr(self, key) <= high:
                raise UsageError(
                    f"synthetic source: {key} must be within {low}..{high}, "
                    f"not {getattr(self, key)}"
                )
        if self.px % 6:
            raise UsageError(
                f"synthetic source: px must be a multiple of 6 (60 m bands), not {self.px}"
            )

    @classmethod
    def parse(cls, text: str) -> "SyntheticSpec":
        """Reads "synthetic:cells=24,seed=0[,px=1068][,clouds=0.15]".

        Raises:
            UsageError: not of that form, an unknown or repeated key, or a value out of bounds.
        """
        if not text.startswith(PREFIX) and text != PREFIX.rstrip(":"):
            raise UsageError(f"synthetic source: input must be like {cls.example()}, not {text!r}")
        types: dict[str, type[int] | type[float]] = {
            f.name: float if f.name == "clouds" else int for f in fields(cls)
        }
        values: dict[str, Any] = {}
        for part in filter(None, text.removeprefix(PREFIX.rstrip(":")).lstrip(":").split(",")):
            key, _, value = part.partition("=")
            key = key.strip()
            if key not in types:
                near = difflib.get_close_matches(key, types, n=1)
                hint = f" (did you mean {near[0]}?)" if near else ""
                raise UsageError(
                    f"synthetic source: unknown key {key!r}{hint} in {text!r}; "
                    f"keys: {', '.join(types)}"
                )
            if key in values:
                raise UsageError(f"synthetic source: key {key!r} is given twice in {text!r}")
            try:
                values[key] = types[key](value)
            except ValueError:
                kind = "a number" if types[key] is float else "a whole number"
                raise UsageError(
                    f"synthetic source: {key} must be {kind}, not {value!r} in {text!r}"
                ) from None
        return cls(**values)

    @staticmethod
    def example() -> str:
        """The form of a specification."""
        return "synthetic:cells=24,seed=0[,px=1068][,clouds=0.15]"


@dataclass(frozen=True)
class ArchivePaths:
    """Where an archive was written: its root for the Major-TOM source, and WorldCover tiles."""

    archive: Path
    worldcover: Path


@dataclass
class _Row:
    # One product: metadata.parquet's row and images' row.
    modality: str
    metadata: dict[str, Any]
    image: dict[str, Any]


def write_archive(
    spec: SyntheticSpec, folder: str | os.PathLike[str], workers: int | None = None
) -> ArchivePaths:
    """Draws the Earth of a specification and writes it; the same bytes for the same one.

    Args:
        spec: what to draw.
        folder: local folder, made where it is missing: Core-S2L2A, Core-S2L1C, Core-S1RTC in
            Major-TOM's schema and worldcover/ with ESA WorldCover tiles.
        workers: threads that draw cells; by default one per CPU.
    """
    root = Path(folder)
    rng = np.random.default_rng([spec.seed, 0])
    places = settle(rng, spec.cells, spec.px)
    writers = {modality: _FolderWriter(root / name) for modality, name in FOLDERS.items()}
    covers = []
    # Filters belong to the process, so they are set around the threads, not in them: rasterio
    # complains of arrays without a transform, though every transform is given beside them.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        for rows, cover in _in_order(
            pool, lambda i: _draw_cell(spec, i, *places[i]), len(places), 2 * (workers or 2)
        ):
            for row in rows:
                writers[row.modality].add(row)
            covers.append(cover)
    for writer in writers.values():
        writer.close()
    write_tiles(root / "worldcover", covers)
    return ArchivePaths(root, root / "worldcover")


def _in_order(
    pool: ThreadPoolExecutor, work: Callable[[int], Any], count: int, ahead: int
) -> Iterator[Any]:
    # Unlike Executor.map, never more than a few finished cells wait in memory.
    running = [pool.submit(work, i) for i in range(min(ahead, count))]
    for i in range(count):
        yield running.pop(0).result()
        if i + ahead < count:
            running.append(pool.submit(work, i + ahead))


def _draw_cell(
    spec: SyntheticSpec, number: int, kind: str, place: Footprint
) -> tuple[list[_Row], tuple[int, int, NDArray[np.uint8]]]:
    rng = np.random.default_rng([spec.seed, 1, number])
    land = make_landscape(rng, BIOMES[kind], spec.px)
    rows: list[_Row] = []
    date = optical_date(rng, place, spec.clouds)
    # The archive's known trouble: some cells occur more than once.
    repeats = 2 if rng.random() < 0.08 else 1
    for _ in range(repeats):
        rows += _optical_rows(rng, spec, land, place, date)
        date_of_radar = date.time
        date = optical_date(rng, place, spec.clouds)
    passes = 2 if rng.random() < 0.05 else 1
    for _ in range(passes):
        rows.append(_radar_row(rng, land, place, date_of_radar))
    return rows, warp(land.cover, place.epsg, place.left, place.top)


def _optical_rows(
    rng: np.random.Generator, spec: SyntheticSpec, land: Any, place: Footprint, date: Any
) -> list[_Row]:
    image = optics.observe(rng, land, date.scene)
    missing = _swath_edge(rng, spec.px)
    cloudy = 100 * float(np.mean(np.isin(image.cloud_mask, (1, 2))))
    rows = []
    for modality, product, bands in (
        ("s2_l2a", date.l2a, image.l2a),
        ("s2_l1c", date.l1c, image.l1c),
    ):
        add = offset(product)
        columns: dict[str, Any] = {}
        for band, reflectance in bands.items():
            gsd = optics.GSD[band]
            digital = np.clip(np.rint(reflectance * 10000) + add, 1, 65535).astype(np.uint16)
            if missing is not None:
                digital[missing[:: gsd // 10, :: gsd // 10]] = 0
            columns[band] = _geotiff(digital, place, gsd)
        columns["cloud_mask"] = _geotiff(image.cloud_mask, place, 10)
        columns["thumbnail"] = _thumbnail(
            np.stack([bands[band] for band in ("B04", "B03", "B02")], -1) / 0.35
        )
        nodata = 0.0 if missing is None else float(missing.mean())
        stamp = (
            f"{date.time:%Y-%m-%d %H:%M:%S}"
            if modality == "s2_l2a"
            else f"{date.time:%Y%m%dT%H%M%S}"
        )
        rows.append(_row(modality, place, product, stamp, columns, nodata, {"cloud_cover": cloudy}))
    return rows


def _radar_row(rng: np.random.Generator, land: Any, place: Footprint, near: Any) -> _Row:
    date = radar_date(rng, near)
    image = radar.observe(rng, land, date.circumstances)
    missing = _swath_edge(rng, len(land.cover))
    if missing is not None:
        for power in image.values():
            power[missing] = -32768
    vv, vh = (10 * np.log10(np.maximum(image[p], 1e-4)) for p in ("vv", "vh"))
    picture = np.stack([(vv + 22) / 20, (vh + 28) / 20, (vv - vh - 2) / 12], -1)
    columns = {name: _geotiff(power, place, 10, -32768) for name, power in image.items()}
    columns["thumbnail"] = _thumbnail(picture)
    nodata = 0.0 if missing is None else float(missing.mean())
    orbit = "ascending" if date.circumstances.ascending else "descending"
    stamp = f"{date.time:%Y-%m-%dT%H:%M:%S}.000000Z"
    return _row("s1", place, date.product, stamp, columns, nodata, {"orbit_state": orbit})


def _swath_edge(rng: np.random.Generator, px: int) -> NDArray[np.bool_] | None:
    # Few images reach over the edge of the swath; the edge falls on whole 60 m pixels.
    if rng.random() > 0.06:
        return None
    side = px // 6
    y, x = np.mgrid[0:side, 0:side]
    start = rng.uniform(0.75, 0.97) * side
    beyond = x + rng.uniform(-0.25, 0.25) * (y - side / 2) > start
    return np.repeat(np.repeat(beyond, 6, 0), 6, 1)


def _row(
    modality: str,
    place: Footprint,
    product: str,
    stamp: str,
    columns: dict[str, Any],
    nodata: float,
    more: dict[str, Any],
) -> _Row:
    metadata = {
        "grid_cell": place.name,
        "grid_row_u": place.row,
        "grid_col_r": place.column,
        "product_id": product,
        "timestamp": stamp,
        **more,
        "nodata": nodata,
        "centre_lat": place.latitude,
        "centre_lon": place.longitude,
        "crs": f"EPSG:{place.epsg}",
    }
    image = {
        "product_id": product,
        "grid_cell": place.name,
        "product_datetime": stamp,
        **columns,
    }
    return _Row(modality, metadata, image)


def _geotiff(
    pixels: NDArray[Any], place: Footprint, gsd: int, nodata: float | None = None
) -> bytes:
    # Blocks are padded when written: small bands get small blocks.
    block = min(1024, -(-pixels.shape[0] // 16) * 16)
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "dtype": pixels.dtype.name,
        "count": 1,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "crs": f"EPSG:{place.epsg}",
        "transform": rasterio.Affine(gsd, 0, place.left, 0, -gsd, place.top),
        "nodata": nodata,
        "tiled": True,
        "blockxsize": block,
        "blockysize": block,
        "compress": "lzw",
        "predictor": 1 if pixels.dtype.kind == "f" else 2,
    }
    with MemoryFile() as memory:
        with memory.open(**profile) as file:
            file.write(pixels, 1)
        return bytes(memory.getbuffer())


def _thumbnail(rgb: NDArray[Any]) -> bytes:
    shown = (255 * np.clip(rgb, 0, 1)).astype(np.uint8)
    done, encoded = cv2.imencode(".jpg", shown[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])
    assert done
    return encoded.tobytes()


class _FolderWriter:
    """One Major-TOM Core folder: images/part_*.parquet, then metadata.parquet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metadata: list[dict[str, Any]] = []
        self._part: pq.ParquetWriter | None = None
        self._rows_in_part = 0
        self._parts = 0
        (folder / "images").mkdir(parents=True, exist_ok=True)

    def add(self, row: _Row) -> None:
        """Appends one product as one row group."""
        table = pa.Table.from_pylist([row.image])
        if self._part is None:
            self._parts += 1
            self._rows_in_part = 0
            path = self._folder / "images" / f"part_{self._parts:05d}.parquet"
            # GeoTIFF and JPEG bytes are compressed already.
            self._part = pq.ParquetWriter(
                path, table.schema, compression="none", use_dictionary=False, write_statistics=False
            )
        self._part.write_table(table, row_group_size=1)
        self._metadata.append(
            {
                **row.metadata,
                "parquet_url": f"images/part_{self._parts:05d}.parquet",
                "parquet_row": self._rows_in_part,
            }
        )
        self._rows_in_part += 1
        if self._rows_in_part == _ROWS_PER_PART:
            self._part.close()
            self._part = None

    def close(self) -> None:
        """Ends the last part and writes metadata.parquet."""
        if self._part is not None:
            self._part.close()
        pq.write_table(pa.Table.from_pylist(self._metadata), self._folder / "metadata.parquet")


def open_synthetic(uri: str, modalities: tuple[str, ...], workspace: str) -> MajorTom:
    """Draws the archive of a specification where that was not done yet, and opens it.

    Args:
        uri: the specification.
        modalities: those to read.
        workspace: URI of a folder; the archive lies in it under a name of its own.

    Raises:
        UsageError: a specification that cannot be read.
    """
    spec = SyntheticSpec.parse(uri)
    values = asdict(spec)
    archive = join(workspace, "-".join(f"{key}{value}" for key, value in values.items()))
    # Written last: without it the archive may have been cut short and is drawn again.
    seal = join(archive, "specification.json")
    if not exists(seal):
        if is_local(archive):
            try:
                write_archive(spec, resolve(archive)[1])
            except OSError as error:
                raise explain(error, "write", archive) from None
        else:
            with tempfile.TemporaryDirectory() as folder:
                write_archive(spec, folder)
                for file in Path(folder).rglob("*"):
                    if file.is_file():
                        upload(file, join(archive, str(file.relative_to(folder))))
        write_bytes(seal, json.dumps(values).encode())
    return MajorTom(archive, modalities)
