"""Major-TOM Core: one folder for each sensor, products of grid cells as rows of Parquet files.

    ARCHIVE/Core-S2L2A/metadata.parquet          one row per product: cell, time, clouds, place
    ARCHIVE/Core-S2L2A/images/part_00001.parquet one row group per product, bands as GeoTIFFs
    ARCHIVE/Core-S2L1C/...  ARCHIVE/Core-S1RTC/...

`terrafm.data.sources.pairing` says which products of a cell belong together.
"""

from collections import OrderedDict
from typing import Any

import pyarrow as pa

from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Product
from terrafm.data.land.selection import ANCHORS
from terrafm.data.sources.folders import (
    WORLDCOVER,
    content_of,
    find_folders,
    is_file,
    is_missing,
    usual_shape,
)
from terrafm.data.sources.metadata import read_metadata
from terrafm.data.sources.pairing import MetadataRow, pair_products
from terrafm.data.sources.raster import Grid, decode_geotiff, reference_grid
from terrafm.errors import TerraFMError, UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, is_local, join
from terrafm.storage.faults import explain, is_passing, patiently
from terrafm.storage.parquet import TableFile, open_parquet

PUBLISHED = {"s2_l2a": "Core-S2L2A", "s2_l1c": "Core-S2L1C", "s1": "Core-S1RTC"}
_SHAPE = (1068, 1068)
_GSD = 10
_CIRRUS = "B10"
_PRODUCT = "product_id"
_OPEN_FILES = 6


class MajorTom:
    """The `major-tom` source."""

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri = uri
        self._modalities = modalities
        self._listing: tuple[list[CellRef], dict[str, Any]] | None = None
        self._files: OrderedDict[str, TableFile] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """A reading task gets neither the listing nor open files."""
        return self.__dict__ | {"_listing": None, "_files": OrderedDict()}

    def layout(self) -> Layout:
        """Major-TOM's grid: 1068 x 1068 px at 10 m (or what most of a few cells have instead).

        Raises:
            UsageError: no such archive, or its metadata cannot be read.
        """
        refs, notes = self._list()
        return Layout(
            gsd=_GSD,
            shape=usual_shape(self, refs, _SHAPE),
            band_gsd={m: MODALITIES[m].gsd for m in self._modalities},
            worldcover=find_folders(self._uri).get(WORLDCOVER),
            notes=notes,
        )

    def cells(self) -> list[CellRef]:
        """Grid cells in the order in which their anchors lie in the archive's files.

        Raises:
            UsageError: no such archive, or its metadata cannot be read.
        """
        return self._list()[0]

    def read(self, ref: CellRef) -> Cell:
        """Reads the rows and bands of one cell.

        Raises:
            BadCellError: no product of the cell can be read.
        """
        products: dict[str, Product] = {}
        grids: dict[str, Grid] = {}
        faults: dict[str, BadCellError] = {}
        for modality in ref.modalities:
            row = ref.location[modality]
            try:
                products[modality], grids[modality] = self._product(modality, row, ref.cell_id)
            except BadCellError as fault:
                faults[modality] = fault
        if not products:
            raise next(iter(faults.values()))
        reference, differences = reference_grid(grids)
        for modality, why in differences.items():
            faults[modality] = BadCellError(_where(ref.location[modality]), why)
            del products[modality]
        grid = grids[reference]
        return Cell(
            cell_id=ref.cell_id,
            crs=grid.crs,
            transform=grid.transform,
            shape=grid.shape,
            gsd=grid.gsd,
            products=products,
            faults=faults,
        )

    def _list(self) -> tuple[list[CellRef], dict[str, Any]]:
        if self._listing is None:
            folders = self._folders()
            read = {m: read_metadata(folders[m]) for m in ANCHORS if m in folders}
            tables = {modality: table for modality, (table, _) in read.items()}
            bad = {modality: rows for modality, (_, rows) in read.items()}
            self._listing = pair_products(tables, bad)
        return self._listing

    def _folders(self) -> dict[str, str]:
        folders = find_folders(self._uri)
        own = content_of(self._uri.rstrip("/").rpartition("/")[2])
        if own is not None:
            folders = {own: self._uri, **folders}
        folders = {m: join(self._uri, name) for m, name in PUBLISHED.items()} | folders
        folders = {
            content: folder
            for content, folder in folders.items()
            if content in self._modalities and is_file(join(folder, "metadata.parquet"))
        }
        if not folders:
            if is_local(self._uri) and not exists(self._uri):
                raise UsageError(f"archive {self._uri} does not exist")
            raise UsageError(
                f"{self._uri} holds no Major-TOM dataset of {', '.join(self._modalities)}: "
                "expected folders such as Core-S2L2A/ with metadata.parquet and images/"
            )
        return folders

    def _product(self, modality: str, row: MetadataRow, cell_id: str) -> tuple[Product, Grid]:
        spec = MODALITIES[modality]
        bands = {b: b.lower() if modality == "s1" else b for b in spec.bands}
        columns = ["grid_cell", *bands.values()]
        # The cirrus band tells the offset, and whether a processing baseline in the name does.
        optional = [_PRODUCT, *([_CIRRUS] if modality == "s2_l1c" else [])]
        cells = self._row(row, columns, optional)
        if cells["grid_cell"] != cell_id:
            raise BadCellError(
                _where(row), f"holds cell {cells['grid_cell']}, metadata says {cell_id}"
            )
        # Time, clouds and offset are those of the product that the metadata names.
        held = cells.get(_PRODUCT)
        if held is not None and _plain(held) != _plain(row.product_id):
            raise BadCellError(_where(row), f"holds product {held}, metadata says {row.product_id}")
        rasters = {}
        for name in [name for name in cells if name not in ("grid_cell", _PRODUCT)]:
            if cells[name] is None and name in optional:
                continue
            where = f"{_where(row)}, band {name}"
            if cells[name] is None:
                raise BadCellError(where, "no pixels")
            rasters[name] = decode_geotiff(cells[name], where)
            if len(rasters[name].pixels) != 1:
                raise BadCellError(where, f"{len(rasters[name].pixels)} bands, not 1")
        finest = min((rasters[c].grid for c in bands.values()), key=lambda grid: grid.gsd)
        for (band, name), gsd in zip(bands.items(), spec.gsd, strict=True):
            grid = rasters[name].grid
            why = grid.difference(finest) if grid.gsd == gsd else f"{grid.gsd} m, not {gsd} m"
            if why is not None:
                raise BadCellError(
                    f"{_where(row)}, band {band}", f"grid does not match the cell: {why}"
                )
        first = rasters[next(iter(bands.values()))]
        product = Product(
            modality=modality,
            bands={band: rasters[name].measured(modality)[0] for band, name in bands.items()},
            gsd=dict(zip(spec.bands, spec.gsd, strict=True)),
            product_id=row.product_id,
            time=row.time,
            cloud_cover=row.cloud_cover,
            cirrus=rasters[_CIRRUS].measured(modality)[0] if _CIRRUS in rasters else None,
            source=_where(row),
            claim=first.claim(),
        )
        return product, finest

    def _row(self, row: MetadataRow, columns: list[str], optional: list[str]) -> dict[str, Any]:
        try:
            return patiently(lambda: self._read_row(row, columns, optional), row.uri)
        except BadCellError:
            raise
        # Stores report failures in types of their own libraries.
        except Exception as error:  # noqa: BLE001
            raise _fault(row, error) from None

    def _read_row(
        self, row: MetadataRow, columns: list[str], optional: list[str]
    ) -> dict[str, Any]:
        file = self._open(row.uri)
        present = {name.lower(): name for name in file.schema_arrow.names}
        absent = [name for name in columns if name.lower() not in present]
        if absent:
            raise BadCellError(row.uri, f"no column {', '.join(absent)}")
        columns = columns + [name for name in optional if name.lower() in present]
        names = {name: present[name.lower()] for name in columns}
        group, index = _row_group(file, row)
        read = file.read_row_group(group, columns=list(names.values()))
        values = read.slice(index, 1).to_pylist()[0]
        return {column: values[name] for column, name in names.items()}

    def _open(self, uri: str) -> TableFile:
        if uri not in self._files:
            self._files[uri] = open_parquet(uri)
            if len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)[1].close()
        return self._files[uri]


def _row_group(file: TableFile, row: MetadataRow) -> tuple[int, int]:
    """The row group that holds a row, and the row's place in it."""
    remaining = row.row
    if 0 <= remaining < file.metadata.num_rows:
        if file.metadata.num_row_groups == file.metadata.num_rows:
            return remaining, 0
        for group in range(file.metadata.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            if remaining < rows:
                return group, remaining
            remaining -= rows
    raise BadCellError(_where(row), f"the file has {file.metadata.num_rows} rows")


def _plain(product_id: Any) -> str:
    return str(product_id).strip().removesuffix(".SAFE")


def _where(row: MetadataRow) -> str:
    return f"{row.uri} row {row.row}"


def _fault(row: MetadataRow, error: Exception) -> Exception:
    """What a failed read means: the cell is bad, or the store is, which ends the ingest."""
    if is_missing(error):
        return BadCellError(_where(row), "Parquet file not found")
    if is_passing(error):
        # Tried again for long enough: it is the store that fails, not the file.
        return explain(error, "read", _where(row))
    detail = " ".join(str(error.__cause__ or error).split())[:200] or type(error).__name__
    # Network and credentials: errors of their own libraries, and these.
    refused = (ConnectionError, TimeoutError, PermissionError, FileNotFoundError)
    if isinstance(error, refused) or not isinstance(error, (OSError, pa.ArrowException)):
        return TerraFMError(f"cannot read {_where(row)}: {detail}")
    return BadCellError(_where(row), f"Parquet row is unreadable (damaged or cut short?): {detail}")
