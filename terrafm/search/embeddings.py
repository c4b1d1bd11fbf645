"""The reading side of a folder of embeddings: all of it as a stream, single tiles by their ids."""

import difflib
import heapq
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from terrafm.embed.schema import (
    BBOX_SIDES,
    TIME_PREFIX,
    EmbeddingManifest,
    PartFile,
    embedding_schema,
    part_uris,
    read_manifest,
)
from terrafm.errors import TerraFMError, UsageError
from terrafm.search.footprints import Footprints, distances
from terrafm.storage import is_local, open_file
from terrafm.storage.faults import one_line
from terrafm.storage.parquet import TableFile, open_parquet

# A store answers several requests in the time of one; of large files two are enough.
_PARTS_AHEAD = 8
_BYTES_AHEAD = 128 << 20
# Ids on either side of one that is not there: among them are those that it was meant to be.
_NEIGHBOURING_IDS = 50
_NOTES = (
    "tile_id", "geometry", "modalities", "land_cover", "land_cover_name", "crs", "source", "window",
)  # fmt: skip


class Embeddings:
    """A finished folder of embeddings, at any URI.

    A few parts are in memory at a time, however many there are.

    Args:
        uri: the folder that `terrafm embed` wrote.

    Raises:
        UsageError: nothing there, unfinished, unreadable or empty.
    """

    def __init__(self, uri: str | os.PathLike[str]) -> None:
        self.uri = os.fspath(uri).rstrip("/")
        self.manifest: EmbeddingManifest = read_manifest(self.uri)
        if self.manifest.rows == 0:
            raise UsageError(f"embeddings {self.uri} are empty")
        schema = embedding_schema(
            self.manifest.dim, self.manifest.modalities, self.manifest.data_type
        )
        self._nothing = schema.empty_table()
        times = [name for name in schema.names if name.startswith(TIME_PREFIX)]
        self._notes = [*_NOTES, *times]
        # Smallest and largest id of a part, once its footer has been read.
        self._spans: dict[str, tuple[str, str] | None] = {}
        self._firsts = np.cumsum([0, *(part.rows for part in self.manifest.parts)])

    def __len__(self) -> int:
        return self.manifest.rows

    def vectors(self) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
        """All rows in their order: (n,) tile ids and (n, D) embeddings, as float32.

        Raises:
            TerraFMError: a part is missing, damaged, or not what the manifest says.
        """
        for batch in self._scan(["tile_id", "embedding"]):
            yield batch["tile_id"], self._values(batch["embedding"])

    def first_row(self, number: int) -> int:
        """Place in the folder of the first row of a file."""
        return int(self._firsts[number])

    def vectors_of_part(self, number: int) -> NDArray[np.float32]:
        """(n, D) embeddings of one file, as float32.

        Raises:
            TerraFMError: as `vectors`.
        """
        uri = part_uris(self.uri, self.manifest)[number]
        table = self._read(uri, self.manifest.parts[number], ["embedding"], None)
        return self._values(table["embedding"].combine_chunks())

    def rows(self, rows: Sequence[int]) -> tuple[list[str], NDArray[np.float32]]:
        """(n,) tile ids and (n, D) embeddings of some rows, by their places in the folder.

        Raises:
            TerraFMError: as `vectors`.
        """
        table = self._rows_at(rows, ["tile_id", "embedding"])
        return table["tile_id"].to_pylist(), self._values(table["embedding"].combine_chunks())

    def names(self, rows: Sequence[int]) -> list[str]:
        """(n,) tile ids of some rows, by their places in the folder.

        Raises:
            TerraFMError: as `vectors`.
        """
        names: list[str] = self._rows_at(rows, ["tile_id"])["tile_id"].to_pylist()
        return names

    def vector(self, tile_id: str) -> NDArray[np.float32]:
        """(D,) embedding of a tile.

        Raises:
            UsageError: there is no such tile; names the nearest ids.
            TerraFMError: as `vectors`.
        """
        found = self._rows([tile_id], ["tile_id", "embedding"])
        if found.num_rows == 0:
            raise UsageError(
                f"embeddings {self.uri} have no tile {tile_id!r}; "
                f"the nearest ids are {', '.join(self._near(tile_id))}"
            )
        vector: NDArray[np.float32] = self._values(found["embedding"].combine_chunks())[0]
        return vector

    def notes(
        self, tile_ids: Sequence[str], rows: Sequence[int] | None = None
    ) -> list[dict[str, Any]]:
        """What the folder knows about some tiles beside their embeddings, in their order.

        Args:
            tile_ids: of them.
            rows: their places in the folder, where they are known: it need not be looked through.

        Returns:
            Per tile the columns of `terrafm.embed.schema` as Python values, without `geometry`
            and with `longitude`, `latitude` of its centre, degrees.

        Raises:
            TerraFMError: as `vectors`.
        """
        if rows is None:
            table = self._rows(tile_ids, self._notes)
        else:
            table = self._rows_at(rows, self._notes)
        centres = self._footprints(table["geometry"].combine_chunks()).centres().tolist()
        found = {
            row["tile_id"]: {**row, "longitude": place[0], "latitude": place[1]}
            for row, place in zip(table.drop(["geometry"]).to_pylist(), centres, strict=True)
        }
        lost = [tile_id for tile_id in tile_ids if tile_id not in found]
        if lost:
            # The footer of its part says that it cannot be there.
            raise TerraFMError(
                f"embeddings {self.uri} contradict themselves about tile {lost[0]}: embed again"
            )
        return [found[tile_id] for tile_id in tile_ids]

    def tile_at(self, longitude: float, latitude: float) -> str:
        """Id of the tile that covers a point, of several the one with the nearest centre.

        Where none covers it, the nearest one is taken if it lies no further than a tile is wide.

        Args:
            longitude: -180..180, degrees.
            latitude: -90..90, degrees.

        Raises:
            UsageError: no tile lies there; says how far the nearest one is.
            TerraFMError: as `vectors`.
        """
        # Files follow a curve over the globe: few are at a place, and one of them has the tile.
        best = self._nearest(longitude, latitude, near=True)
        if best is None or best[0]:
            best = self._nearest(longitude, latitude, near=False)
        assert best is not None, "the folder is not empty"
        is_outside, kilometres, tile_id, diagonal = best
        if is_outside and kilometres > diagonal:
            raise UsageError(
                f"no tile of {self.uri} lies at {longitude:g},{latitude:g}: "
                f"the nearest is {tile_id}, {kilometres:,.0f} km away"
            )
        return tile_id

    def _nearest(
        self, longitude: float, latitude: float, *, near: bool
    ) -> tuple[bool, float, str, float] | None:
        """Of the tiles the best one: those that cover the point, the nearest, the smallest id.

        Args:
            longitude: of the point, degrees.
            latitude: of it.
            near: only in files whose bounds cover the point.

        Returns:
            Whether it lies outside, km to its centre, its id, its diagonal in km.
        """
        best: tuple[bool, float, str, float] | None = None
        point = (longitude, latitude) if near else None
        for batch in self._scan(["tile_id", "geometry"], point):
            footprints = self._footprints(batch["geometry"])
            away = distances(longitude, latitude, footprints.centres())
            outside = ~footprints.cover(longitude, latitude)
            ids = batch["tile_id"].to_numpy(zero_copy_only=False)
            row = int(np.lexsort((ids.astype(str), away, outside))[0])
            found = (
                bool(outside[row]), float(away[row]), str(ids[row]),
                float(footprints.diagonals()[row]),
            )  # fmt: skip
            best = found if best is None else min(best, found)
        return best

    def _near(self, tile_id: str) -> list[str]:
        before: list[str] = []
        after: list[str] = []
        for batch in self._scan(["tile_id"]):
            ids = batch["tile_id"].to_pylist()
            smaller = [*before, *(i for i in ids if i < tile_id)]
            larger = [*after, *(i for i in ids if i >= tile_id)]
            before = heapq.nlargest(_NEIGHBOURING_IDS, smaller)
            after = heapq.nsmallest(_NEIGHBOURING_IDS, larger)
        return difflib.get_close_matches(tile_id, [*before, *after], n=3, cutoff=0.0)

    def _rows(self, tile_ids: Sequence[str], columns: list[str]) -> pa.Table:
        wanted = pa.array(tile_ids, pa.string())
        tables = self._parts(columns, tile_ids)
        return pa.concat_tables([t.filter(pc.is_in(t["tile_id"], wanted)) for t in tables])

    def _rows_at(self, rows: Sequence[int], columns: list[str]) -> pa.Table:
        """Some rows by their places in the folder, in the order asked for."""
        places = np.asarray(rows, np.int64)
        parts = np.searchsorted(self._firsts, places, side="right") - 1
        uris = part_uris(self.uri, self.manifest)
        order, tables = [], []
        for number in np.unique(parts).tolist():
            here = np.flatnonzero(parts == number)
            table = self._read(uris[number], self.manifest.parts[number], columns, None)
            tables.append(table.take(pa.array(places[here] - self._firsts[number])))
            order.append(here)
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(tables).take(pa.array(back))

    def _scan(
        self, columns: list[str], point: tuple[float, float] | None = None
    ) -> Iterator[pa.RecordBatch]:
        for table in self._parts(columns, point=point):
            yield from (batch for batch in table.to_batches() if batch.num_rows)

    def _parts(
        self,
        columns: list[str],
        wanted: Sequence[str] | None = None,
        point: tuple[float, float] | None = None,
    ) -> Iterator[pa.Table]:
        """Some columns of all parts in their order; empty where nothing that is wanted can be."""
        ahead: deque[tuple[int, Future[pa.Table]]] = deque()
        uris = part_uris(self.uri, self.manifest)
        with ThreadPoolExecutor(_PARTS_AHEAD) as pool:
            for uri, part in zip(uris, self.manifest.parts, strict=True):
                job = pool.submit(self._read, uri, part, columns, wanted, point)
                ahead.append((part.bytes, job))
                while len(ahead) == _PARTS_AHEAD or sum(n for n, _ in ahead) > 2 * _BYTES_AHEAD:
                    yield ahead.popleft()[1].result()
            while ahead:
                yield ahead.popleft()[1].result()

    def _values(self, column: pa.Array) -> NDArray[np.float32]:
        numbers = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.manifest.dim)
        if self.manifest.quantisation is not None:
            return self.manifest.quantisation.decode(numbers)
        return np.asarray(numbers, np.float32)

    def _footprints(self, geometry: pa.Array) -> Footprints:
        try:
            return Footprints(geometry)
        except ValueError as error:
            raise TerraFMError(
                f"embeddings {self.uri}: column geometry: {error}: embed again"
            ) from None

    def _check_columns(self, found: pa.Schema, columns: Sequence[str]) -> None:
        for name in columns:
            wanted = self._nothing.schema.field(name).type
            types = [found.field(at).type for at in found.get_all_field_indices(name)]
            if name == "embedding" and types != [wanted] and len(types) == 1:
                self._check_numbers(types[0])
            if types != [wanted]:
                has = " and ".join(map(str, types)) or "missing"
                raise ValueError(f"column {name} is {has}, not {wanted}")

    def _check_numbers(self, found: pa.DataType) -> None:
        """Says what is wrong where the manifest and the rows disagree about their numbers."""
        is_list = pa.types.is_fixed_size_list(found)
        if is_list and pa.types.is_int8(found.value_type) and not self.manifest.quantisation:
            raise ValueError(
                "its embeddings are int8, and embedding.json has no quantisation, whose scale and "
                "offset make values of them"
            )

    def _check_rows(self, table: pa.Table) -> None:
        table.validate(full=True)
        for name in table.column_names:
            if table[name].null_count and not self._nothing.schema.field(name).nullable:
                raise ValueError(f"column {name} lacks values")

    def _read(
        self,
        uri: str,
        part: PartFile,
        columns: list[str],
        wanted: Sequence[str] | None,
        point: tuple[float, float] | None = None,
    ) -> pa.Table:
        if wanted is not None and not _between(wanted, self._spans.get(uri)):
            return self._nothing.select(columns)
        try:
            with ExitStack() as stack:
                file = stack.enter_context(_open(uri, stack))
                rows = file.metadata.num_rows
                if rows == part.rows:
                    self._check_columns(file.schema_arrow, columns)
                    self._spans[uri] = _span(file)
                    if wanted is not None and not _between(wanted, self._spans[uri]):
                        return self._nothing.select(columns)
                    if point is not None and not _may_cover(file, *point):
                        return self._nothing.select(columns)
                    if wanted is not None and not _has_any(file, wanted):
                        return self._nothing.select(columns)
                    table = file.read(columns=columns)
                    self._check_rows(table)
                    return table
        except (OSError, pa.ArrowException, ValueError) as error:
            why = "it is missing" if isinstance(error, FileNotFoundError) else one_line(error)
            raise TerraFMError(f"cannot read {uri}: {why}: restore it or embed again") from None
        raise TerraFMError(
            f"{uri} does not match its manifest: {rows} rows, not {part.rows}: "
            "restore it or embed again"
        )


def _between(wanted: Sequence[str], span: tuple[str, str] | None) -> bool:
    """Whether any of the ids may lie in a part; yes where the part's first and last is unknown."""
    return span is None or any(span[0] <= tile_id <= span[1] for tile_id in wanted)


def _has_any(file: TableFile, wanted: Sequence[str]) -> bool:
    """Whether any of the ids stands in a file: they alone are read before all that is asked for."""
    ids = file.read(columns=["tile_id"])["tile_id"]
    return bool(pc.any(pc.is_in(ids, pa.array(wanted, pa.string()))).as_py())


def _may_cover(file: TableFile, longitude: float, latitude: float) -> bool:
    """Whether a tile of a file may cover a point; yes where its footer does not tell."""
    limits: dict[str, tuple[float, float]] = {}
    for group in range(file.metadata.num_row_groups):
        columns = file.metadata.row_group(group)
        for number in range(columns.num_columns):
            column = columns.column(number)
            found = column.statistics
            if not column.path_in_schema.startswith("bbox."):
                continue
            if found is None or not found.has_min_max:
                return True
            low, high = limits.get(column.path_in_schema, (np.inf, -np.inf))
            limits[column.path_in_schema] = (min(low, found.min), max(high, found.max))
    sides = [limits.get(f"bbox.{side}") for side in BBOX_SIDES]
    if any(side is None for side in sides):
        return True
    (west, _), (south, _), (_, east), (_, north) = [side for side in sides if side is not None]
    return west <= longitude <= east and south <= latitude <= north


def _span(file: TableFile) -> tuple[str, str] | None:
    """Smallest and largest tile id of a part, where its footer has them."""
    groups = [file.metadata.row_group(group) for group in range(file.metadata.num_row_groups)]
    # The first of the columns, whatever is nested in the others.
    first = [group.column(0) for group in groups if group.num_columns]
    if any(column.path_in_schema != "tile_id" for column in first):
        return None
    statistics = [column.statistics for column in first]
    if not statistics or any(found is None or not found.has_min_max for found in statistics):
        return None
    return min(found.min for found in statistics), max(found.max for found in statistics)


def _open(uri: str, stack: ExitStack) -> TableFile:
    if is_local(uri):
        return open_parquet(uri)
    return TableFile(stack.enter_context(open_file(uri)))
