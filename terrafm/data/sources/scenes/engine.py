"""One engine under all sources of scenes: which scenes show a cell, and their pixels on its grid.

A source lists its scenes (`SceneSource.find`); filters, cells, pairs, windows and warping are here.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Listed, Product
from terrafm.data.land.selection import ANCHORS
from terrafm.data.rasters.bands import CIRRUS
from terrafm.data.rasters.units import is_missing, unit_of
from terrafm.data.sources.folders import WORLDCOVER, find_folders
from terrafm.data.sources.offsets import claimed_offset
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.choice import CellScenes, Seen, choose, filtered, newest
from terrafm.data.sources.scenes.grid import (
    GSD,
    CellIndex,
    GridCell,
    cells_over,
    centre,
    in_area,
    shares,
)
from terrafm.data.sources.scenes.open_layers import OpenLayers
from terrafm.data.sources.scenes.pixels import (
    fetch_layers,
    read_classes,
    read_layer,
    sample_layer,
)
from terrafm.data.sources.scenes.request import MGRS, SceneRequest
from terrafm.data.sources.scenes.scene import Scene
from terrafm.data.sources.scenes.signing import Signer
from terrafm.errors import PixelError, UsageError
from terrafm.modalities import MODALITIES

_MASK_GSD = 20
# Of Level-1C's classification opaque clouds and cirrus; snow follows, as a band or as a flag.
_MASK_BANDS, _CLOUD_FLAGS = {"classi": 2}, 1 | 2
# Of the scene classification: no data; shadows are no clouds.
_SCL_NO_DATA, _SCL_CLOUDS = 0, (8, 9, 10)
# A radar raster that measured less of the cell makes room for the next in time.
_ENOUGH = 0.95


@dataclass
class Found:
    """What lies in an archive.

    Attributes:
        scenes: in any order.
        broken: (name, modality, fault) of each product that cannot be used.
        counts: for the report.
    """

    scenes: list[Scene] = field(default_factory=list)
    broken: list[tuple[str, str, BadCellError]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class SceneSource(ABC):
    """Scenes to cells. Made from (uri, modalities, request)."""

    def __init__(
        self, uri: str, modalities: tuple[str, ...], request: SceneRequest | None = None
    ) -> None:
        self._uri = uri
        self._modalities = modalities
        self._request = request or SceneRequest()
        self._sign = Signer(self._request.sign) if self._request.sign else None
        self._layers = OpenLayers(self._sign)
        self._units: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A reading task gets neither the listing nor open files."""
        return {n: v for n, v in self.__dict__.items() if n not in ("_listing", "_layers")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._layers = OpenLayers(self._sign)

    @abstractmethod
    def find(self) -> Found:
        """Lists the archive; no raster is opened that a name or metadata describe.

        Raises:
            UsageError: it does not exist, or holds nothing of this layout.
        """

    def _worldcover(self) -> str | None:
        """ESA's tiles among the files of the archive."""
        return find_folders(self._uri).get(WORLDCOVER)

    def layout(self) -> Layout:
        """10 m, all bands at their own resolutions, cells of the grid that is asked for.

        Raises:
            UsageError: no such archive, or no scene of it is asked for.
        """
        refs, found = self._listing
        present = {m for ref in refs for m in ref.modalities}
        if not present:
            raise UsageError(
                f"none of the {len(found.broken)} products in {self._uri} can be used; the first: "
                f"{found.broken[0][2]}"
            )
        shapes = [(ref.location.cell.rows, ref.location.cell.columns) for ref in refs
                  if ref.modalities]  # fmt: skip
        return Layout(
            gsd=GSD,
            shape=Counter(shapes).most_common(1)[0][0],
            band_gsd={m: MODALITIES[m].gsd for m in self._modalities if m in present},
            worldcover=self._worldcover(),
            notes={"scenes": dict(sorted(found.counts.items()))},
        )

    def cells(self) -> list[CellRef]:
        """Cells by scene, so that neighbours are read of the same files.

        Raises:
            UsageError: as `layout`.
        """
        return self._listing[0]

    @cached_property
    def _listing(self) -> tuple[list[CellRef], Found]:
        found = self.find()
        request = self._request
        kept = newest(filtered(found.scenes, request, found.counts), found.counts)
        if not kept and not found.broken:
            # A server that is asked for an area and a time answers with nothing else.
            limits = (request.area, request.start, request.end)
            asked = " in the area and time that are asked for" if any(limits) else ""
            outside = found.counts["outside_time"] + found.counts["outside_area"]
            raise UsageError(
                f"none of the {outside} scenes in {self._uri} lies in the time and area that "
                "--time, --bbox and --geometry ask for"
                if outside
                else f"{self._uri} holds no scene of {', '.join(self._modalities)}{asked}"
            )
        counts = Counter(scene.modality for scene in kept)
        found.counts.update({f"{modality}_scenes": n for modality, n in counts.items()})
        if kept and request.grid == MGRS and set(counts) == {"s1"}:
            raise UsageError(
                f"{self._uri} holds radar alone, which has no MGRS tiles: give --grid utm:1068 or "
                "--grid major-tom"
            )
        places = [place for cell in _cells(kept, request) for place in choose(*cell, request)]
        if kept and not places:
            raise UsageError(
                f"no cell of --grid {request.grid} with tiles of {request.tile_size} px lies in "
                f"the {len(kept)} scenes of {self._uri} that are asked for"
            )
        refs = sorted((_ref(place) for place in places), key=_reading_order)
        refs += [
            CellRef(name, {}, (), faults=((modality, fault),))
            for name, modality, fault in sorted(found.broken, key=lambda entry: entry[:2])
        ]
        return refs, found

    def read(self, ref: CellRef) -> Cell:
        """Reads the bands of a cell.

        Raises:
            BadCellError: no product of the cell can be read.
        """
        place: CellScenes = ref.location
        products: dict[str, Product] = {}
        faults: dict[str, BadCellError] = {}
        for modality in ref.modalities:
            try:
                products[modality] = self._product(place.cell, place.scenes[modality])
            except BadCellError as fault:
                faults[modality] = fault
        if not products:
            raise next(iter(faults.values()))
        cell = place.cell
        transform = (float(GSD), 0.0, float(cell.left), 0.0, -float(GSD), float(cell.top))
        shape = (cell.rows, cell.columns)
        return Cell(ref.cell_id, cell.crs, transform, shape, GSD, products, faults, place=cell.name)

    def _product(self, cell: GridCell, scenes: Sequence[Scene]) -> Product:
        """Of the first scene that measured enough of the cell, else of the one that did most."""
        best: tuple[float, Product] | None = None
        faults = []
        for scene in scenes:
            try:
                product = self._read(cell, scene)
            except BadCellError as fault:
                faults.append(fault)
                continue
            measured = _measured(product) if len(scenes) > 1 else 1.0
            if best is None or measured > best[0]:
                best = measured, product
            if measured >= _ENOUGH:
                break
        if best is None:
            raise faults[0]
        return best[1]

    def _read(self, cell: GridCell, scene: Scene) -> Product:
        sensor = MODALITIES[scene.modality]
        gsds = dict(zip(sensor.bands, sensor.gsd, strict=True))
        needed = [(layer, _grid(cell, gsds.get(band, 60))) for band, layer in scene.layers.items()]
        if scene.mask is not None:
            needed.append((scene.mask[0], _grid(cell, _MASK_GSD)))
        fetch_layers(self._layers, needed)
        unit = self._unit(scene) if scene.modality == "s1" else ""
        pixels: dict[str, NDArray[Any]] = {}
        for band in (*sensor.bands, CIRRUS):
            if band in scene.layers:
                target = _grid(cell, gsds.get(band, 60))
                layer = scene.layers[band]
                pixels[band] = read_layer(self._layers, layer, target, scene.modality, unit)
        if not set(pixels) - {CIRRUS}:
            raise BadCellError(scene.source, f"it has no band of {scene.modality}")
        cloud_cover = scene.cloud_cover
        if scene.mask is not None:
            clouds, missing = self._classes(cell, scene)
            cloud_cover = cloud_cover if clouds is None else clouds
            for band, values in pixels.items():
                hidden = _at_gsd(missing, gsds.get(band, 60))
                if hidden.any():
                    values[hidden] = np.nan if values.dtype.kind == "f" else 0
        claim = self._claim(scene, pixels)
        if (scene.quantification != 10_000 or scene.add) and claim == scene.claim:
            pixels = {band: _reflectance(v, band, scene) for band, v in pixels.items()}
        cirrus = pixels.pop(CIRRUS, None)
        return Product(
            modality=scene.modality,
            bands=pixels,
            gsd={band: gsds[band] for band in pixels},
            product_id=scene.product_id,
            time=scene.time,
            cloud_cover=cloud_cover,
            cirrus=cirrus,
            source=scene.source,
            claim=claim,
            origin=scene.origin,
        )

    def _unit(self, scene: Scene) -> str:
        """Of radar, by the pixels of the whole scene; amplitude from power tells the name alone."""
        if scene.source not in self._units:
            samples = {
                band: sample_layer(self._layers, layer, "s1")
                for band, layer in scene.layers.items()
            }
            try:
                unit = unit_of(samples, "s1", None, scene.source)
            except PixelError as fault:
                raise BadCellError(fault.where, fault.why) from None
            is_amplitude = scene.unit == "amplitude" and unit == "linear"
            self._units[scene.source] = "amplitude" if is_amplitude else unit
        return self._units[scene.source]

    def _claim(self, scene: Scene, pixels: Mapping[str, Any]) -> tuple[int, str] | None:
        """The offset that the scene states, where its files do not state it themselves."""
        headers = [self._layers.image(scene.layers[band]).header for band in pixels]
        if any(any(header.offsets) for header in headers):
            # It has been applied, with the scale beside it.
            return claimed_offset({}, offset_tag=True)
        return scene.claim or claimed_offset(headers[0].tags, offset_tag=False)

    def _classes(self, cell: GridCell, scene: Scene) -> tuple[float | None, NDArray[np.bool_]]:
        """Percent of cloud in what was measured of the cell, and what was not, both at 20 m."""
        assert scene.mask is not None
        layer, kind = scene.mask
        target = _grid(cell, _MASK_GSD)
        classes = read_classes(self._layers, layer, target)
        if kind == "scl":
            missing = classes[0] == _SCL_NO_DATA
            cloudy = np.isin(classes[0], _SCL_CLOUDS)
            measured = int((~missing).sum())
            share = 100.0 * float(cloudy.sum()) / measured if measured else None
            return share, missing
        if kind == "flags":
            cloudy = (classes[0] & _CLOUD_FLAGS) > 0
        else:
            cloudy = np.any(classes[: _MASK_BANDS[kind]] > 0, axis=0)
        return 100.0 * float(cloudy.mean()), np.zeros(target.shape, dtype=bool)


def _cells(
    scenes: Sequence[Scene], request: SceneRequest
) -> list[tuple[GridCell, dict[str, list[Seen]]]]:
    """Cells of the area with the scenes that show them, by name."""
    found: dict[GridCell, dict[str, list[Seen]]] = {}
    inside: dict[GridCell, bool] = {}
    optical = [scene for scene in scenes if scene.modality != "s1"]
    # Radar has no tiles of its own: it is looked for under the cells that others make.
    makers = optical if request.grid == MGRS else scenes
    for scene in makers:
        cells = list(cells_over(scene, request))
        fresh = [cell for cell in cells if cell not in inside]
        inside.update(zip(fresh, in_area(fresh, request.area), strict=True))
        _add(scene, [cell for cell in cells if inside[cell]], found, request)
    if request.grid == MGRS:
        index = CellIndex(list(found))
        for scene in scenes:
            if scene.modality == "s1":
                _add(scene, index.near(scene), found, request)
    return sorted(found.items(), key=lambda entry: (entry[0].name, entry[0].crs))


def _add(
    scene: Scene,
    cells: list[GridCell],
    found: dict[GridCell, dict[str, list[Seen]]],
    request: SceneRequest,
) -> None:
    by_crs: dict[str, list[GridCell]] = {}
    for cell in cells:
        by_crs.setdefault(cell.crs, []).append(cell)
    for some in by_crs.values():
        for cell, share in zip(some, shares(scene, some), strict=True):
            tiles = cell.rows * cell.columns / request.tile_size**2
            # Where no tile can have enough pixels nothing is to be read, and nothing at fault.
            if share * tiles > 0.9 * (1 - request.max_nodata) and share > 0:
                found.setdefault(cell, {}).setdefault(scene.modality, []).append(
                    Seen(scene, float(share))
                )


def _ref(place: CellScenes) -> CellRef:
    first = {modality: scenes[0] for modality, scenes in place.scenes.items()}
    anchor = next(first[m] for m in ANCHORS if m in first)
    stamp = anchor.moment.strftime("%Y%m%dT%H%M%S") if anchor.moment else anchor.product_id
    return CellRef(
        cell_id=f"{place.cell.name}_{stamp}",
        location=place,
        modalities=tuple(m for m in MODALITIES if m in first),
        # Where a mask tells the clouds of the cell itself, those of the product do not count.
        listed={
            m: Listed(s.time, None if s.mask is not None else s.cloud_cover)
            for m, s in first.items()
        },
        centre=centre(place.cell),
    )


def _reading_order(ref: CellRef) -> tuple[str, str, float, float]:
    place: CellScenes = ref.location
    first = next(place.scenes[m][0] for m in ANCHORS if m in place.scenes)
    return first.time, first.source, -place.cell.top, place.cell.left


def _grid(cell: GridCell, gsd: int) -> Grid:
    transform = (float(gsd), 0.0, float(cell.left), 0.0, -float(gsd), float(cell.top))
    return Grid(cell.crs, transform, (cell.rows * GSD // gsd, cell.columns * GSD // gsd), gsd)


def _measured(product: Product) -> float:
    """Share of the cell that every band measured."""
    bands = list(product.bands.values())
    there = [~is_missing(band, None) & (band != 0) for band in bands]
    return float(np.mean(np.logical_and.reduce(there)))


def _at_gsd(mask: NDArray[np.bool_], gsd: int) -> NDArray[np.bool_]:
    """A mask of 20 m at another size; a pixel of 60 m is hidden where all of it is."""
    if gsd < _MASK_GSD:
        times = _MASK_GSD // gsd
        return np.repeat(np.repeat(mask, times, 0), times, 1)
    times = gsd // _MASK_GSD
    rows, columns = mask.shape
    blocks = mask.reshape(rows // times, times, columns // times, times)
    return np.asarray(blocks.all(axis=(1, 3)))


def _reflectance(pixels: NDArray[Any], band: str, scene: Scene) -> NDArray[np.float64]:
    """Of digital numbers whose step or offset is not the usual one."""
    values = (pixels.astype(np.float64) + scene.add.get(band, 0.0)) / scene.quantification
    values[(pixels == 0) if pixels.dtype.kind in "ui" else ~np.isfinite(pixels)] = np.nan
    return values
