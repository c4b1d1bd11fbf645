"""BigEarthNet: pairs of Sentinel-1 and Sentinel-2 Level-2A patches, one file for each band.

Version 1, paired by the JSON beside each Sentinel-1 patch:

    ARCHIVE/BigEarthNet-v1.0/S2A_MSIL2A_20170613T101031_87_48/..._B01.tif .. _B12.tif
    ARCHIVE/BigEarthNet-S1-v1.0/S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48/..._VV.tif, _VH.tif
    .../..._labels_metadata.json     time, source product; for Sentinel-1 its Sentinel-2 patch

Version 2 (reBEN), a folder for each acquisition, paired by metadata.parquet in ARCHIVE:

    ARCHIVE/BigEarthNet-S2/S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP/..._26_57/..._B01.tif ..
    ARCHIVE/BigEarthNet-S1/S1A_IW_GRDH_1SDV_20170613T165043/..._33UUP_26_57/..._VV.tif, _VH.tif
    ARCHIVE/metadata.parquet         patch_id, s1_name

The folders may have any name: patches are known by their own, which end with row and column.
Archives as published (.tar.gz, .tar.bz2, .tar.zst) must be unpacked first. Patches are 120 px at
10 m, so a tile size of 120 takes each as one tile. Radar is in dB. There is no Level-1C; labels
and reference maps are not read.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Listed, Product
from terrafm.data.sources.folders import archive_names, for_all, read_json, usual_shape
from terrafm.data.sources.raster import Grid, read_geotiff, reference_grid
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join
from terrafm.storage.parquet import read_parquet

_PREFIXES = {"s1": "S1", "s2_l2a": "S2"}
_SHAPE = (120, 120)
_GSD = 10
_PACKED = (".tar", ".tar.gz", ".tar.bz2", ".tar.zst", ".tgz")
# Version 1 writes the hours before ten with one digit: S2B_MSIL2A_20170924T93020_69_24.
_FOLDER = re.compile(r"(S1[A-D]_IW_GRDH_\w{4}|S2[A-D]_MSIL2A)_\d{8}T\d{5,6}")
_PATCH = re.compile(_FOLDER.pattern + r".*_\d+_\d+$")
# Version 2 lists its patches under snow and clouds in a file of their own.
_METADATA = re.compile(r"metadata.*\.parquet$")
_COLUMNS = ("patch_id", "s1_name")
_TIME = re.compile(r"_(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})")


@dataclass(frozen=True)
class _Metadata:
    # What is known of a patch without its pixels; `pair` is a Sentinel-1 patch's Sentinel-2 patch.
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
        """120 x 120 px at 10 m (or what most of a few cells have instead), without Level-1C.

        Raises:
            UsageError: no such archive, or no patches in it.
        """
        return Layout(
            gsd=_GSD,
            shape=usual_shape(self, self._listing, _SHAPE),
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
        patches = self._patches()
        pairs = self._pairs(patches)
        for modality, uris in patches.items():
            for uri, metadata in zip(uris, for_all(_describe, uris), strict=True):
                name = _name(uri)
                partners = [metadata.pair] if metadata.pair else pairs.get(name, [name])
                for cell in partners if modality == "s1" else [name]:
                    other = cells.setdefault(cell, {}).setdefault(modality, (uri, metadata.time))
                    if other[0] != uri:
                        raise UsageError(f"{uri} and {other[0]} are the same: remove one")
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

    def _patches(self) -> dict[str, list[str]]:
        """URIs of all patches by modality, those of `_PREFIXES` that are wanted."""
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        if not self._modalities:
            raise UsageError(f"BigEarthNet has {', '.join(_PREFIXES)} and nothing else")
        names = archive_names(self._uri)
        patches, folders = _divide(self._uri, names)
        # Folders of a sensor, and in version 2 in them those of its acquisitions.
        for _ in range(2):
            inside = for_all(archive_names, folders)
            found = [_divide(uri, some) for uri, some in zip(folders, inside, strict=True)]
            patches += [uri for some, _ in found for uri in some]
            folders = [uri for _, some in found for uri in some if _FOLDER.match(_name(uri))]
        by_modality = {
            modality: sorted(uri for uri in patches if _name(uri).startswith(_PREFIXES[modality]))
            for modality in self._modalities
        }
        if not any(by_modality.values()):
            packed = [name for name in names if name.endswith(_PACKED)]
            advice = (
                f"unpack {packed[0]} first (tar -xf {packed[0]})"
                if packed
                else "expected folders of patches such as S2A_MSIL2A_20170613T101031_87_48"
            )
            raise UsageError(f"{self._uri} holds no BigEarthNet patches: {advice}")
        return {modality: found for modality, found in by_modality.items() if found}

    def _pairs(self, patches: dict[str, list[str]]) -> dict[str, list[str]]:
        """Version 2's Sentinel-1 patch -> the Sentinel-2 patches that it belongs to.

        Raises:
            UsageError: the archive has both sensors but not what pairs them.
        """
        if not any(_is_second(uri) for uris in patches.values() for uri in uris):
            return {}
        files = [join(self._uri, n) for n in archive_names(self._uri) if _METADATA.match(n)]
        if not files and len(patches) > 1:
            raise UsageError(
                f"{self._uri} is BigEarthNet version 2, whose metadata.parquet pairs radar and "
                "optical patches, but has no such file: put it there"
            )
        pairs: dict[str, list[str]] = {}
        for uri in files:
            for row in read_parquet(uri, _COLUMNS).to_pylist():
                if row["patch_id"] and row["s1_name"]:
                    pairs.setdefault(str(row["s1_name"]), []).append(str(row["patch_id"]))
        return pairs


def _divide(folder: str, names: list[str]) -> tuple[list[str], list[str]]:
    """URIs of a folder's patches, and of what else may be a folder of them."""
    patches = [join(folder, name) for name in names if _PATCH.match(name)]
    # Reference maps lie in folders of the same names as the pixels.
    others = [name for name in names if not _PATCH.match(name) and "reference" not in name.lower()]
    return patches, [join(folder, name) for name in others]


def _name(uri: str) -> str:
    return uri.rpartition("/")[2]


def _is_second(patch: str) -> bool:
    """Whether a patch lies in the folder of its acquisition, as those of version 2."""
    return _FOLDER.match(_name(patch.rpartition("/")[0])) is not None


def _describe(patch: str) -> _Metadata:
    name = _name(patch)
    if _is_second(patch):
        # There is no JSON: the name of a patch says it all.
        match = _TIME.search(name)
        return _Metadata("{}-{}-{}T{}:{}:{}".format(*match.groups()) if match else "", name, "")
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
    name = _name(patch)
    metadata = _describe(patch)
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
