"""BigEarthNet: pairs of Sentinel-1 and Sentinel-2 Level-2A patches, one file for each band.

    ARCHIVE/BigEarthNet-v1.0/S2A_MSIL2A_20170613T101031_87_48/..._B01.tif .. _B12.tif
    ARCHIVE/BigEarthNet-S1-v1.0/S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48/..._VV.tif, _VH.tif
    .../..._labels_metadata.json     time, source product; for Sentinel-1 its Sentinel-2 patch

The folders may have any name: a folder of patches is known by the names of the patches in it.
Archives as published (.tar.gz, .tar.bz2) must be unpacked first. Patches are 120 px at 10 m, so a
tile size of 120 takes each as one tile. Radar is in dB. There is no Level-1C; the labels are not
read.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from terrafm.data.sources.base import BadCellError, Cell, CellRef, Layout, Listed, Product
from terrafm.data.sources.folders import for_all, read_json
from terrafm.data.sources.raster import Grid, read_geotiff, reference_grid
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join, list_names

_PREFIXES = {"s1": "S1", "s2_l2a": "S2"}
_SHAPE = (120, 120)
_GSD = 10
_PROBES = 4
_PACKED = (".tar", ".tar.gz", ".tar.bz2", ".tar.zst", ".tgz")


@dataclass(frozen=True)
class _Metadata:
    # What the JSON beside a patch says; `pair` is a Sentinel-1 patch's Sentinel-2 patch.
    time: str
    product_id: str
    pair: str


class BigEarthNet:
    """The `bigearthnet` source."""

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri = uri
        self._modalities = tuple(m for m in _PREFIXES if m in modalities)

    def __getstate__(self) -> dict[str, Any]:
        """A reading task does not get the listing."""
        return {name: value for name, value in self.__dict__.items() if name != "_listing"}

    def layout(self) -> Layout:
        """120 x 120 px at 10 m (or what the first cells have instead), without Level-1C.

        Raises:
            UsageError: no such archive, or no patches in it.
        """
        return Layout(
            gsd=_GSD,
            shape=self._shape(),
            band_gsd={m: MODALITIES[m].gsd for m in self._modalities},
        )

    def cells(self) -> list[CellRef]:
        """Sentinel-2 patches with the Sentinel-1 patch that names them, by name.

        A Sentinel-1 patch without its partner is a cell of its own under its own name.

        Raises:
            UsageError: no such archive, or no patches in it.
        """
        return self._listing

    @cached_property
    def _listing(self) -> list[CellRef]:
        cells: dict[str, dict[str, tuple[str, str]]] = {}
        for modality, patches in self._patches().items():
            for uri, metadata in zip(patches, for_all(_read_metadata, patches), strict=True):
                name = uri.rpartition("/")[2]
                cell = metadata.pair if modality == "s1" and metadata.pair else name
                cells.setdefault(cell, {})[modality] = (uri, metadata.time)
        return [
            CellRef(
                cell_id=cell_id,
                location={m: uri for m, (uri, _) in found.items()},
                modalities=tuple(found),
                listed={m: Listed(time) for m, (_, time) in found.items()},
            )
            for cell_id, found in sorted(cells.items())
        ]

    def read(self, ref: CellRef) -> Cell:
        """Reads the bands of one pair.

        Raises:
            BadCellError: no product of the cell can be read.
        """
        products: dict[str, Product] = {}
        grids: dict[str, Grid] = {}
        faults: dict[str, BadCellError] = {}
        for modality in ref.modalities:
            try:
                products[modality], grids[modality] = _read(modality, ref.location[modality])
            except BadCellError as fault:
                faults[modality] = fault
        if not products:
            raise next(iter(faults.values()))
        reference, differences = reference_grid(grids)
        for modality, why in differences.items():
            faults[modality] = BadCellError(ref.location[modality], why)
            del products[modality]
        grid = grids[reference]
        return Cell(ref.cell_id, grid.crs, grid.transform, grid.shape, grid.gsd, products, faults)

    def _shape(self) -> tuple[int, int]:
        for ref in self._listing[:_PROBES]:
            try:
                return self.read(ref).shape
            except BadCellError:
                continue
        return _SHAPE

    def _patches(self) -> dict[str, list[str]]:
        """URIs of all patches by modality."""
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        if not self._modalities:
            raise UsageError(f"BigEarthNet has {', '.join(_PREFIXES)} and nothing else")
        found: dict[str, list[str]] = {}
        names = list_names(self._uri)
        for folder in [self._uri, *(join(self._uri, n) for n in names if not _is_patch(n))]:
            for name in names if folder == self._uri else list_names(folder):
                for modality in self._modalities:
                    if _is_patch(name) and name.startswith(_PREFIXES[modality]):
                        found.setdefault(modality, []).append(join(folder, name))
        if not found:
            packed = [name for name in names if name.endswith(_PACKED)]
            advice = (
                f"unpack {packed[0]} first (tar -xf {packed[0]})"
                if packed
                else "expected folders of patches such as S2A_MSIL2A_20170613T101031_87_48"
            )
            raise UsageError(f"{self._uri} holds no BigEarthNet patches: {advice}")
        return found


def _is_patch(name: str) -> bool:
    return name.startswith(("S1A_", "S1B_", "S2A_MSIL2A_", "S2B_MSIL2A_")) and "." not in name


def _read_metadata(patch: str) -> _Metadata:
    name = patch.rpartition("/")[2]
    try:
        content: dict[str, Any] = read_json(join(patch, f"{name}_labels_metadata.json"))
    except BadCellError:
        # The patch is listed without a time; without its pair's name it stands alone.
        return _Metadata("", name, "")
    time = str(content.get("acquisition_time", content.get("acquisition_date", "")))
    product = str(content.get("tile_source", content.get("scene_source", name)))
    return _Metadata(
        time.replace(" ", "T"),
        product.removesuffix(".SAFE"),
        str(content.get("corresponding_s2_patch", "")),
    )


def _read(modality: str, patch: str) -> tuple[Product, Grid]:
    spec = MODALITIES[modality]
    name = patch.rpartition("/")[2]
    metadata = _read_metadata(patch)
    files = {band: join(patch, f"{name}_{band}.tif") for band in spec.bands}
    rasters = {band: read_geotiff(uri) for band, uri in files.items()}
    finest = rasters[spec.bands[spec.gsd.index(_GSD)]].grid
    for (band, raster), gsd in zip(rasters.items(), spec.gsd, strict=True):
        grid = raster.grid
        why = grid.difference(finest) if grid.gsd == gsd else f"{grid.gsd} m, not {gsd} m"
        if len(raster.pixels) != 1:
            why = f"{len(raster.pixels)} bands, not 1"
        if why is not None:
            raise BadCellError(files[band], f"grid does not match the patch: {why}")
    product = Product(
        modality=modality,
        bands={band: raster.measured(modality)[0] for band, raster in rasters.items()},
        gsd=dict(zip(spec.bands, spec.gsd, strict=True)),
        product_id=metadata.product_id,
        time=metadata.time,
        source=patch,
        claim=rasters[spec.bands[0]].claim(),
    )
    return product, finest
