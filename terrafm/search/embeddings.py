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

# Parts are small files; a store answers several requests in the time of one.
_PARTS_AHEAD = 8
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
        schema = embedding_schema(self.manifest.dim, self.manifest.modalities)
        self._nothing = schema.empty_table()
        times = [name for name in schema.names if name.startswith(TIME_PREFIX)]
        self._notes = [*_NOTES, *times]
        # Smallest and largest id of a part, once its footer has been read.
        self._spans: dict[str, tuple[str, str] | None] = {}

    def __len__(self) -> int:
        return self.manifest.rows

    def vectors(self) -> Iterator[tuple[pa.Array, NDArray[np.float32]]]:
        """All rows in their order: (n,) tile ids and (n, D) embeddings.

        Raises:
            TerraFMError: a part is missing, damaged, or not what the manifest says.
        """
        for batch in self._scan(["tile_id", "embedding"]):
            yield batch["tile_id"], _vectors(batch["embedding"], self.manifest.dim)

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
        vector: NDArray[np.float32] = _vectors(
            found["embedding"].combine_chunks(), self.manifest.dim
        )[0]
        return vector

    def notes(self, tile_ids: Sequence[str]) -> list[dict[str, Any]]:
        """What the folder knows about some tiles beside their embeddings, in their order.

        Returns:
            Per tile the columns of `terrafm.embed.schema` as Python values, without `geometry`
            and with `longitude`, `latitude` of its centre, degrees.

        Raises:
            TerraFMError: as `vectors`.
        """
        table = self._rows(tile_ids, self._notes)
        centres = self._footprints(table["geometry"].combine_chunks()).centres().tolist()
        rows = {
            row["tile_id"]: {**row, "longitude": place[0], "latitude": place[1]}
            for row, place in zip(table.drop(["geometry"]).to_pylist(), centres, strict=True)
        }
        lost = [tile_id for tile_id in tile_ids if tile_id not in rows]
        if lost:
            # The footer of its part says that it cannot be there.
            raise TerraFMError(
                f"embeddings {self.uri} contradict themselves about tile {lost[0]}: embed again"
            )
        return [rows[tile_id] for tile_id in tile_ids]

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
        # Those that cover the point come first, then the nearest, then the smallest id.
        best: tuple[bool, float, str, float] | None = None
        for batch in self._scan(["tile_id", "geometry"]):
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
        assert best is not None, "the folder is not empty"
        is_outside, kilometres, tile_id, diagonal = best
        if is_outside and kilometres > diagonal:
            raise UsageError(
                f"no tile of {self.uri} lies at {longitude:g},{latitude:g}: "
                f"the nearest is {tile_id}, {kilometres:,.0f} km away"
            )
        return tile_id

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

    def _scan(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for table in self._parts(columns):
            yield from (batch for batch in table.to_batches() if batch.num_rows)

    def _parts(self, columns: list[str], wanted: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Some columns of all parts in their order; empty where none of the wanted ids can be."""
        ahead: deque[Future[pa.Table]] = deque()
        uris = part_uris(self.uri, self.manifest)
        with ThreadPoolExecutor(_PARTS_AHEAD) as pool:
            for uri, part in zip(uris, self.manifest.parts, strict=True):
                ahead.append(pool.submit(self._read, uri, part, columns, wanted))
                if len(ahead) == _PARTS_AHEAD:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

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
            if types != [wanted]:
                has = " and ".join(map(str, types)) or "missing"
                raise ValueError(f"column {name} is {has}, not {wanted}")

    def _check_rows(self, table: pa.Table) -> None:
        table.validate(full=True)
        for name in table.column_names:
            if table[name].null_count and not self._nothing.schema.field(name).nullable:
                raise ValueError(f"column {name} lacks values")

    def _read(
        self, uri: str, part: PartFile, columns: list[str], wanted: Sequence[str] | None
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


def _vectors(column: pa.Array, dim: int) -> NDArray[np.float32]:
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dim)


def _between(wanted: Sequence[str], span: tuple[str, str] | None) -> bool:
    """Whether any of the ids may lie in a part; yes where the part's first and last is unknown."""
    return span is None or any(span[0] <= tile_id <= span[1] for tile_id in wanted)


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
