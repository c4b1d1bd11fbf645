"""TerraMesh and SSL4EO-S12 v1.1: Zarr zips, in tar shards or by themselves, a folder each sensor.

    ARCHIVE/[train|val]/S2L2A/majortom_shard_000001.tar     samples NAME.zarr.zip, one date
    ARCHIVE/[train|val]/S1GRD/ssl4eos12_shard_000001.tar    of SSL4EO-S12 v1.1 four dates
    ARCHIVE/[train|val]/S2L1C/ssl4eos12_train_seasonal_data_000001.zarr.zip    64 places of v1.1

Shards of one name hold the same samples in every folder: S1RTC (in dB, of Major-TOM's places) or
S1GRD (in dB, of SSL4EO-S12's), S2L1C, S2L2A and LULC are read, where they lie, without unpacking
(https://huggingface.co/datasets/ibm-esa-geospatial/TerraMesh,
https://github.com/DLR-MF-DAS/SSL4EO-S12-v1.1). A sample is a group of arrays: `bands` (time, band,
y, x), `band`, `x` and `y` (centres of pixels), `crs` (EPSG), `time`, `center_lon`, `center_lat`,
of optical ones `cloud_mask`. All bands are on the 10 m grid, as published.
"""

import io
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import BadCellError, Cell, CellRef, Layout, Product
from terrafm.data.land.selection import ANCHORS, NO_CLASS
from terrafm.data.rasters.bands import CIRRUS
from terrafm.data.sources.folders import LAND_COVER, archive_names, for_all, usual_shape
from terrafm.data.sources.zarr_samples import SAMPLE_GSD, Sample, read_classes, read_sample
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import exists, join, open_file
from terrafm.storage.tar_members import BadTarError, TarMember, list_tar, read_tar_member
from terrafm.storage.zarr_arrays import BadZarrError
from terrafm.storage.zarr_zip import ZarrZip
from terrafm.storage.zip_members import BadZipError

FOLDERS = {
    "s1": ("S1RTC", "S1GRD"),
    "s2_l1c": ("S2L1C",),
    "s2_l2a": ("S2L2A",),
    LAND_COVER: ("LULC",),
}
SPLITS = ("train", "val")
# ESRI's classes in the compact numbers of TerraMesh, as codes of WorldCover; its clouds are none.
_CODES = {0: NO_CLASS, 1: 80, 2: 10, 3: 90, 4: 40, 5: 50, 6: 60, 7: 70, 8: NO_CLASS, 9: 30}
_NAMES = {30: "rangeland"}
_SHARD = re.compile(r"(majortom|ssl4eos12)_\w+\.tar")
_ZIP = ".zarr.zip"
_SHAPE = (264, 264)
_OPEN = 8


@dataclass(frozen=True)
class Place:
    """Where a sample of one sensor lies.

    Attributes:
        uri: the shard, or the zip of many places.
        member: in a shard.
        row: number of the place in a zip of many; None of a sample of one.
        time: number of the date.
    """

    uri: str
    member: TarMember | None
    row: int | None
    time: int

    @property
    def where(self) -> str:
        """For messages."""
        inside = f"/{self.member.name}" if self.member is not None else f" place {self.row}"
        return f"{self.uri}{inside} date {self.time}"


@dataclass
class _Shard:
    """A shard of one name in all folders.

    Attributes:
        samples: name -> content -> place, of the first date.
        faults: (content, fault) of files that cannot be read, or not to their end.
        dates: of each sample.
    """

    samples: dict[str, dict[str, Place]] = field(default_factory=dict)
    faults: list[tuple[str, BadCellError]] = field(default_factory=list)
    dates: int = 1


class TerraMesh:
    """The `terramesh` source."""

    def __init__(self, uri: str, modalities: tuple[str, ...]) -> None:
        self._uri = uri
        self._modalities = modalities
        self._open: OrderedDict[str, ZarrZip] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        """A reading task gets neither the listing nor open files."""
        left = {n: v for n, v in self.__dict__.items() if n != "_listing"}
        return left | {"_open": OrderedDict()}

    def layout(self) -> Layout:
        """264 x 264 px, all bands at 10 m, with land cover where there is LULC.

        Raises:
            UsageError: no such archive, or no shard of it has a name that is known.
        """
        refs, land_cover = self._listing
        present = {modality for ref in refs for modality in ref.modalities}
        return Layout(
            gsd=SAMPLE_GSD,
            shape=usual_shape(self, refs, _SHAPE),
            band_gsd={
                m: (SAMPLE_GSD,) * MODALITIES[m].channels for m in self._modalities if m in present
            },
            land_cover=land_cover,
            legend_codes=_CODES if land_cover else {},
            legend_names=_NAMES if land_cover else {},
        )

    def cells(self) -> list[CellRef]:
        """All samples, by shard, date and their order in it.

        Raises:
            UsageError: as `layout`.
        """
        return self._listing[0]

    @cached_property
    def _listing(self) -> tuple[list[CellRef], bool]:
        wanted = [*(m for m in ANCHORS if m in self._modalities), LAND_COVER]
        files: dict[tuple[str, str], dict[str, str]] = {}
        for root in self._roots():
            folders = [(content, join(root, name)) for content in wanted
                       for name in FOLDERS[content]]  # fmt: skip
            names = for_all(lambda entry: archive_names(entry[1]), folders)
            for (content, folder), found in zip(folders, names, strict=True):
                for name in found:
                    if _SHARD.fullmatch(name) or name.endswith(_ZIP):
                        files.setdefault((root, name), {}).setdefault(content, join(folder, name))
        shards = [(name, some) for (_, name), some in sorted(files.items())
                  if set(some) - {LAND_COVER}]  # fmt: skip
        if not shards:
            raise UsageError(
                f"{self._uri} holds no TerraMesh or SSL4EO-S12 v1.1: expected folders "
                f"{', '.join(n for m in wanted for n in FOLDERS[m])} with majortom_*.tar, "
                f"ssl4eos12_*.tar or *{_ZIP}, or train/ and val/ with them"
            )
        refs: list[CellRef] = []
        has_land_cover = False
        for shard in for_all(_list_shard, shards):
            refs += _refs(shard, self._modalities)
            has_land_cover |= any(LAND_COVER in places for places in shard.samples.values())
        if not any(ref.modalities for ref in refs):
            fault = next((ref.faults[0][1] for ref in refs if ref.faults), "they are empty")
            raise UsageError(f"no shard of {self._uri} can be read; the first: {fault}")
        return refs, has_land_cover

    def _roots(self) -> list[str]:
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        splits = [join(self._uri, split) for split in SPLITS]
        return [self._uri, *(split for split in splits if exists(split))]

    def read(self, ref: CellRef) -> Cell:
        """Reads a sample of every sensor.

        Raises:
            BadCellError: none can be read.
        """
        samples: dict[str, Sample] = {}
        faults: dict[str, BadCellError] = {}
        first: Sample | None = None
        for modality in ref.modalities:
            place: Place = ref.location[modality]
            try:
                sample = read_sample(self._group(place), place.row, place.time, modality,
                                     place.where)  # fmt: skip
                if first is not None and (why := sample.grid.difference(first.grid)):
                    raise BadCellError(place.where, why)
            except BadCellError as fault:
                faults[modality] = fault
                continue
            first = first or sample
            samples[modality] = sample
        if first is None:
            raise next(iter(faults.values()))
        cover: NDArray[np.integer[Any]] | None = None
        if LAND_COVER in ref.location:
            place = ref.location[LAND_COVER]
            try:
                cover = read_classes(self._group(place), place.where, first.grid.shape)
            except BadCellError as fault:
                faults[LAND_COVER] = fault
        return Cell(
            cell_id=ref.cell_id,
            crs=first.grid.crs,
            transform=first.grid.transform,
            shape=first.grid.shape,
            gsd=SAMPLE_GSD,
            products={m: _product(m, ref, one) for m, one in samples.items()},
            faults=faults,
            land_cover=cover,
            place=ref.location.get("place", ""),
        )

    def _group(self, place: Place) -> ZarrZip:
        try:
            if place.member is not None:
                return ZarrZip(io.BytesIO(read_tar_member(place.uri, place.member)))
            if place.uri not in self._open:
                self._open[place.uri] = ZarrZip(open_file(place.uri))
                while len(self._open) > _OPEN:
                    self._open.popitem(last=False)[1].close()
            return self._open[place.uri]
        except (OSError, BadTarError, BadZipError, BadZarrError) as error:
            why = "file not found" if isinstance(error, FileNotFoundError) else str(error)
            raise BadCellError(place.where, why) from None


def _product(modality: str, ref: CellRef, sample: Sample) -> Product:
    bands = dict(sample.bands)
    cirrus = bands.pop(CIRRUS, None)
    return Product(
        modality=modality,
        bands=bands,
        gsd=dict.fromkeys(bands, SAMPLE_GSD),
        # Not the name of Sentinel's product: its baseline says nothing of pixels that were changed.
        product_id=ref.cell_id,
        time=sample.time,
        cloud_cover=sample.cloud_cover,
        cirrus=cirrus,
        source=ref.location[modality].where,
        origin={"file": sample.product} if sample.product else None,
    )


def _list_shard(entry: tuple[str, dict[str, str]]) -> _Shard:
    """The samples of a shard by what lies in each folder."""
    name, files = entry
    shard = _Shard()
    for content, uri in files.items():
        try:
            listed = _members(uri) if name.endswith(".tar") else _rows(uri)
            for sample, place in listed:
                shard.samples.setdefault(sample, {}).setdefault(content, place)
        except BadCellError as fault:
            shard.faults.append((content, fault))
    # Land cover alone is no sample.
    shard.samples = {n: p for n, p in shard.samples.items() if set(p) - {LAND_COVER}}
    shard.dates = _dates(list(shard.samples.values())[:3])
    return shard


def _members(uri: str) -> Iterator[tuple[str, Place]]:
    try:
        members, fault = list_tar(uri)
    except OSError as error:
        raise BadCellError(uri, str(error)) from None
    for member in members:
        name = member.name.rpartition("/")[2]
        if name.endswith(_ZIP):
            yield name.removesuffix(_ZIP), Place(uri, member, None, 0)
    if fault is not None:
        raise BadCellError(uri, f"after {len(members):,} members {fault}")


def _rows(uri: str) -> Iterator[tuple[str, Place]]:
    try:
        with open_file(uri) as file:
            names = ZarrZip(file).read("sample")
    except (OSError, BadZipError, BadZarrError) as error:
        raise BadCellError(uri, str(error)) from None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise BadCellError(uri, "its samples have no names")
    for row, name in enumerate(names.tolist()):
        yield str(name), Place(uri, None, row, 0)


def _dates(samples: list[dict[str, Place]]) -> int:
    """How many dates a sample has, by the first that can be read."""
    for places in samples:
        place = next(places[content] for content in places if content != LAND_COVER)
        try:
            if place.member is not None:
                group = ZarrZip(io.BytesIO(read_tar_member(place.uri, place.member)))
                return max(1, group.info("bands").shape[0])
            with open_file(place.uri) as file:
                return max(1, ZarrZip(file).info("bands").shape[1])
        except (OSError, IndexError, BadTarError, BadZipError, BadZarrError):
            continue
    return 1


def _refs(shard: _Shard, modalities: tuple[str, ...]) -> Iterator[CellRef]:
    for time in range(shard.dates):
        for name, places in shard.samples.items():
            location: dict[str, Any] = {
                content: Place(place.uri, place.member, place.row, time)
                for content, place in places.items()
                # A map of land cover has one date, or none.
                if not (content == LAND_COVER and place.row is not None)
            }
            if shard.dates > 1:
                location["place"] = name
            yield CellRef(
                cell_id=f"{name}_{time}" if shard.dates > 1 else name,
                location=location,
                modalities=tuple(m for m in ANCHORS if m in places and m in modalities),
            )
    for content, fault in shard.faults:
        yield CellRef(f"{fault.where.rpartition('/')[2]} {content}", {}, (),
                      faults=((content, fault),))  # fmt: skip
