"""One grid cell to tiles: radiometry, land cover, selection, quarantine."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyproj import Transformer

from terrafm.data.archive import BadCellError, Cell, CellRef, Listed, Product, Source
from terrafm.data.ingest.tally import Tally
from terrafm.data.land.climate import UNKNOWN, ClimateZones
from terrafm.data.land.landcover import WorldCover, histogram, majority
from terrafm.data.land.legend import Legend
from terrafm.data.land.selection import NO_CLASS, WATER, Limits, days_from_anchor, drops_water
from terrafm.data.rasters.units import Decision, to_storage
from terrafm.data.shards.entry import TileRecord
from terrafm.data.shards.manifest import LARGEST_TILE, CellGroup, side_of
from terrafm.data.sources.offsets import Survey, decide, unclear
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage.addresses import recorded


@dataclass(frozen=True)
class Cutter:
    """Cuts cells into tiles.

    Attributes:
        tile_size: side of a tile, pixels of the finest grid.
        gsd: metres of the finest grid.
        cell_shape: rows and columns of a usual cell: how many tiles a cell that cannot be read
            counts for.
        groups: arrays of a tile.
        required: modalities without which a tile is quarantined.
        max_nodata: largest share of pixels without measurement in a modality's worst band.
        ocean_drop: share of water-only tiles to drop, chosen by the hash of their ids.
        seed: of the ocean rule.
        worldcover: land cover of cells that bring no raster of their own.
        legend: of the rasters that cells bring; None takes their codes as they are.
        limits: what products must keep to be joined.
        climate: zones of the tiles' centres, or None.
        survey: what other products of the archive say of those that do not tell their offset.
        partial: modalities whose products may lack bands, which are nodata then.
    """

    tile_size: int
    gsd: int
    cell_shape: tuple[int, int]
    groups: tuple[CellGroup, ...]
    required: tuple[str, ...]
    max_nodata: float
    ocean_drop: float
    seed: int
    worldcover: WorldCover | None
    legend: Legend | None = None
    limits: Limits = field(default_factory=Limits)
    climate: ClimateZones | None = None
    survey: Survey = field(default_factory=Survey)
    partial: tuple[str, ...] = ()

    def tiles(self, source: Source, ref: CellRef, tally: Tally) -> Iterator[TileRecord]:
        """Reads a cell and yields its usable tiles; everything else goes into the tally."""
        tally.counts["cells"] += 1
        if self._lost_by_listing(ref, tally):
            self._lose(self.cell_shape, tally)
            return
        kept = self._within_limits(ref.modalities, ref.listed, self.cell_shape, tally)
        if not kept:
            return
        try:
            cell = source.read(replace(ref, modalities=kept))
            if cell.gsd != self.gsd:
                raise BadCellError(
                    ref.cell_id, f"grid of {cell.gsd} m; the archive's is {self.gsd} m"
                )
            for modality, product in list(cell.products.items()):
                if why := self._odd_band(product, cell.shape):
                    cell.faults[modality] = BadCellError(product.source or ref.cell_id, why)
                    del cell.products[modality]
            cover = self._land_cover(cell, tally)
            places = self._places(cell)
        except BadCellError as fault:
            tally.fault(ref.cell_id, "", fault.where, fault.why, fatal=True)
            self._lose(self.cell_shape, tally)
            return
        for modality, odd in unclear(cell.products, self.survey, ref.cell_id).items():
            cell.faults[modality] = BadCellError(odd.where, odd.why)
            del cell.products[modality]
        lost = not cell.products
        for modality, reason in sorted(cell.faults.items()):
            fatal = modality in self.required or not cell.products
            tally.fault(ref.cell_id, modality, reason.where, reason.why, fatal=fatal)
            lost |= fatal
        if lost:
            self._lose(cell.shape, tally)
            return
        opened = {m: Listed(p.time, p.cloud_cover) for m, p in cell.products.items()}
        kept = self._within_limits(tuple(cell.products), opened, cell.shape, tally)
        if not kept:
            return
        cell.products = {modality: cell.products[modality] for modality in kept}
        yield from self._cut(cell, cover, places, tally)

    def tiles_per_cell(self, shape: tuple[int, int]) -> int:
        """Whole tiles in a cell."""
        return (shape[0] // self.tile_size) * (shape[1] // self.tile_size)

    def _lost_by_listing(self, ref: CellRef, tally: Tally) -> bool:
        """Records what the listing says is missing or useless; whether that loses the cell."""
        lost = not ref.modalities
        told = set()
        for modality, fault in ref.faults:
            # A fault that is not of a sensor is of the land cover, which every tile needs.
            needed = modality in self.required or modality not in MODALITIES
            fatal = lost or (needed and modality not in ref.modalities)
            tally.fault(ref.cell_id, modality, fault.where, fault.why, fatal=fatal)
            told.add(modality)
            lost |= fatal
        if not ref.modalities:
            return True
        for modality in self.required:
            if modality not in ref.modalities and modality not in told:
                why = f"the archive has no {modality} for this cell"
                tally.fault(ref.cell_id, modality, ref.cell_id, why, fatal=True)
                lost = True
        return lost

    def _odd_band(self, product: Product, shape: tuple[int, int]) -> str | None:
        """What keeps a product's bands from the arrays of a tile; None where they fit.

        Args:
            product: as it was read.
            shape: rows and columns of its cell.
        """
        if product.missing_bands and product.modality not in self.partial:
            return (
                f"no {', '.join(product.missing_bands)}; "
                f"ingest.allow_missing_bands=[{product.modality}] takes it as nodata"
            )
        for group in self.groups:
            if group.modality != product.modality:
                continue
            for band in (b for b in group.bands if b in product.bands):
                rows, columns = product.bands[band].shape
                wanted = tuple(side * self.gsd // group.gsd for side in shape)
                if product.gsd[band] != group.gsd or (rows, columns) != wanted:
                    return (
                        f"{band} has {rows} x {columns} px of {product.gsd[band]} m, "
                        f"not {wanted[0]} x {wanted[1]} px of {group.gsd} m"
                    )
        return None

    def _within_limits(
        self,
        modalities: tuple[str, ...],
        listed: dict[str, Listed],
        shape: tuple[int, int],
        tally: Tally,
    ) -> tuple[str, ...]:
        """The modalities that break no limit; none where a required one does."""
        left_out = self.limits.left_out(listed)
        for modality, rule in left_out.items():
            tally.left_out[modality, rule] += 1
        kept = tuple(m for m in modalities if m not in left_out)
        if kept and not any(m in left_out for m in self.required):
            return kept
        count = self.tiles_per_cell(shape)
        tally.counts["tiles_seen"] += count
        tally.counts["tiles_over_limits"] += count
        return ()

    def _lose(self, shape: tuple[int, int], tally: Tally) -> None:
        count = self.tiles_per_cell(shape)
        tally.counts["tiles_seen"] += count
        tally.counts["tiles_quarantined"] += count

    def _land_cover(self, cell: Cell, tally: Tally) -> NDArray[np.integer[Any]]:
        """Codes on the cell's finest grid, `NO_CLASS` where the class is not known.

        Raises:
            BadCellError: no class is known anywhere in the cell.
        """
        if cell.land_cover is not None:
            if self.legend is None:
                return cell.land_cover
            return self.legend.translate(cell.land_cover, f"cell {cell.cell_id}")
        if self.worldcover is None:
            raise BadCellError(
                cell.cell_id, "no land-cover raster, though other cells of the archive have one"
            )
        where = cell.crs, cell.transform, cell.shape
        codes = self.worldcover.codes(*where)
        unknown = codes == NO_CLASS
        if unknown.any():
            lacking = self.worldcover.lacking(*where)
            tally.lacking.update(lacking)
            tally.counts["cells_without_worldcover"] += 1
            if unknown.all():
                raise BadCellError(
                    self.worldcover.uri, f"no WorldCover tile {', '.join(lacking)} for this cell"
                )
        return codes

    def _cut(
        self, cell: Cell, cover: NDArray[np.integer[Any]], places: "_Places", tally: Tally
    ) -> Iterator[TileRecord]:
        for name, product in cell.products.items():
            for band in product.missing_bands:
                tally.missing_bands[name, band] += 1
        decisions = decide(cell.products, self.survey, cell.cell_id)
        for name, decision in decisions.items():
            tally.decide(name, decision)
        stored = self._stored(cell, decisions)
        notes = _notes(cell.products, decisions)
        size = self.tile_size
        rows, columns = (side // size for side in cell.shape)
        tally.counts["edge_pixels_dropped"] += (
            cell.shape[0] * cell.shape[1] - rows * columns * size * size
        )
        for row, column in np.ndindex(rows, columns):
            tally.counts["tiles_seen"] += 1
            tile_id = f"{cell.cell_id}_{row}_{column}"
            counts = self._histogram(cover, cell, row, column)
            if not counts:
                where = f"{cell.cell_id} row {row} column {column}"
                why = "no class of land cover is known for any of its pixels"
                tally.fault(tile_id, "land_cover", where, why, fatal=True)
                tally.counts["tiles_quarantined"] += 1
                continue
            tally.classes_before[majority(counts)] += 1
            # Of pixels without a class nobody knows that they are sea.
            if counts.get(WATER) == size * size:
                tally.counts["water_only"] += 1
                if drops_water(tile_id, self.seed, self.ocean_drop):
                    tally.counts["water_only_dropped"] += 1
                    continue
            arrays = self._arrays(stored, cell, row, column, tile_id, tally)
            if not arrays:
                tally.counts["tiles_quarantined"] += 1
                continue
            modalities = {group.modality for group in arrays}
            for group, pixels in arrays.items():
                tally.add_pixels(group.modality, group.bands, pixels)
            tally.counts["tiles"] += 1
            tally.codes |= set(counts)
            a, b, c, d, e, f = cell.transform
            yield TileRecord(
                tile_id=tile_id,
                arrays={group.name: pixels for group, pixels in arrays.items()},
                land_cover=majority(counts),
                histogram=counts,
                crs=cell.crs,
                transform=(a, b, c + a * column * size, d, e, f + e * row * size),
                latitude=float(places.latitude[row, column]),
                longitude=float(places.longitude[row, column]),
                products={name: notes[name] for name in sorted(modalities)},
                climate=int(places.climate[row, column]),
                place=f"{cell.place}_{row}_{column}" if cell.place else "",
            )

    def _histogram(
        self, cover: NDArray[np.integer[Any]], cell: Cell, row: int, column: int
    ) -> dict[int, int]:
        """Classes of a tile, where its raster knows none WorldCover's; none where neither does."""
        size = self.tile_size
        counts = histogram(_window(cover, row, column, size, size))
        if counts or self.worldcover is None or cell.land_cover is None:
            return counts
        a, b, c, d, e, f = cell.transform
        corner = (a, b, c + a * column * size, d, e, f + e * row * size)
        return histogram(self.worldcover.codes(cell.crs, corner, (size, size)))

    def _places(self, cell: Cell) -> "_Places":
        size = self.tile_size
        rows, columns = np.mgrid[0 : cell.shape[0] // size, 0 : cell.shape[1] // size]
        a, _, c, _, e, f = cell.transform
        to_degrees = Transformer.from_crs(cell.crs, "EPSG:4326", always_xy=True)
        longitude, latitude = to_degrees.transform(
            c + a * size * (columns + 0.5), f + e * size * (rows + 0.5)
        )
        # Grids in degrees may count on beyond 180.
        beyond = np.abs(longitude) > 180
        longitude[beyond] = (longitude[beyond] + 180) % 360 - 180
        climate = np.full(rows.shape, UNKNOWN, dtype=np.int32)
        if self.climate is not None:
            zones = self.climate.codes(latitude.ravel(), longitude.ravel())
            climate = zones.reshape(rows.shape)
        return _Places(latitude, longitude, climate)

    def _stored(self, cell: Cell, decisions: dict[str, Decision]) -> dict[CellGroup, NDArray[Any]]:
        """The whole cell's pixels as storage integers, (bands, H, W) for each group."""
        stored = {}
        for group in self.groups:
            if group.modality in cell.products:
                product, decision = cell.products[group.modality], decisions[group.modality]
                sensor = MODALITIES[group.modality]
                shape = [side * cell.gsd // group.gsd for side in cell.shape]
                pixels = np.full((len(group.bands), *shape), sensor.nodata, sensor.dtype)
                for number, band in enumerate(group.bands):
                    if band in product.bands:
                        pixels[number] = to_storage(
                            product.bands[band], group.modality, product.nodata, decision
                        )
                stored[group] = pixels
        return stored

    def _arrays(
        self,
        stored: dict[CellGroup, NDArray[Any]],
        cell: Cell,
        row: int,
        column: int,
        tile_id: str,
        tally: Tally,
    ) -> dict[CellGroup, NDArray[Any]]:
        """Arrays of the tile's usable modalities; none where a required one is not usable."""
        arrays = {
            group: np.ascontiguousarray(_window(pixels, row, column, group.height, group.width))
            for group, pixels in stored.items()
        }
        usable = set(cell.products)
        for modality in sorted(cell.products):
            band, share = _worst_band(arrays, cell.products[modality])
            if share > self.max_nodata:
                fatal = modality in self.required
                why = f"{share:.0%} of {band} is without a measurement (nodata, NaN or zero)"
                tally.fault(
                    tile_id, modality, f"{cell.cell_id} row {row} column {column}", why, fatal=fatal
                )
                usable.discard(modality)
        if not usable >= set(self.required):
            return {}
        return {group: pixels for group, pixels in arrays.items() if group.modality in usable}


@dataclass(frozen=True)
class _Places:
    # Of the centres of a cell's tiles, (rows, columns) each.
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    climate: NDArray[np.int32]


def make_groups(
    band_gsd: dict[str, tuple[int, ...]], gsd: int, tile_size: int
) -> tuple[CellGroup, ...]:
    """The arrays of a tile: for each modality, the bands that share a ground sampling distance.

    Args:
        band_gsd: modality -> GSD of each band in model order, metres.
        gsd: finest GSD, metres.
        tile_size: side of a tile at the finest GSD, pixels.

    Raises:
        UsageError: a tile of this size would split a pixel of the coarsest band, or is too large.
    """
    if tile_size > LARGEST_TILE:
        raise UsageError(f"a tile size of {tile_size} px is too large: take {LARGEST_TILE} at most")
    coarsest = max(max(values) for values in band_gsd.values())
    if tile_size < 1 or tile_size * gsd % coarsest:
        raise UsageError(
            f"a tile size of {tile_size} px at {gsd} m would split a pixel of {coarsest} m: "
            f"take a multiple of {coarsest // gsd}"
        )
    groups = []
    for name in MODALITIES:
        if name in band_gsd:
            for value in sorted(set(band_gsd[name])):
                bands = [
                    band
                    for band, g in zip(MODALITIES[name].bands, band_gsd[name], strict=True)
                    if g == value
                ]
                side = side_of(tile_size, gsd, value)
                groups.append(CellGroup(name, value, tuple(bands), side, side))
    return tuple(groups)


def _window(pixels: NDArray[Any], row: int, column: int, height: int, width: int) -> NDArray[Any]:
    return pixels[..., row * height : (row + 1) * height, column * width : (column + 1) * width]


def _worst_band(arrays: dict[CellGroup, NDArray[Any]], product: Product) -> tuple[str, float]:
    modality = product.modality
    nodata = MODALITIES[modality].nodata
    shares = {
        band: float(np.mean(pixels == nodata))
        for group, stack in arrays.items()
        if group.modality == modality
        for band, pixels in zip(group.bands, stack, strict=True)
        if band in product.bands
    }
    worst = max(shares, key=lambda band: shares[band])
    return worst, shares[worst]


def _notes(
    products: dict[str, Product], decisions: dict[str, Decision]
) -> dict[str, dict[str, Any]]:
    """What is kept of every product: its name, time, and what was decided."""
    gaps = days_from_anchor({name: product.time for name, product in products.items()})
    notes: dict[str, dict[str, Any]] = {}
    for name, product in products.items():
        notes[name] = {
            "product_id": product.product_id,
            "time": product.time,
            "offset": decisions[name].offset,
            "offset_reason": decisions[name].reason,
            "input_unit": decisions[name].unit,
        }
        if product.origin is not None:
            notes[name]["origin"] = recorded(product.origin)
        if product.missing_bands:
            notes[name]["missing_bands"] = list(product.missing_bands)
        if product.cloud_cover is not None:
            notes[name]["cloud_cover"] = product.cloud_cover
        if name in gaps:
            notes[name]["days_from_anchor"] = round(gaps[name], 4)
    return notes
