"""Sentinel-2 SAFE products, Level-1C and Level-2A, as folders or zips, with radar beside them.

    ARCHIVE/S2B_MSIL2A_20220706T085559_N0400_R007_T33NZA_20220706T121536.SAFE/
        MTD_MSIL2A.xml                                      offsets, quantification, clouds
        GRANULE/L2A_T33NZA_.../MTD_TL.xml                   where the tile lies
        GRANULE/L2A_T33NZA_.../IMG_DATA/R10m/T33NZA_..._B02_10m.jp2
    ARCHIVE/2016/S2A_OPER_PRD_MSIL1C_PDMC_....SAFE/         several tiles, older names
    ARCHIVE/S2A_MSIL1C_....zip
    ARCHIVE/radar/S1A_IW_20220705T..._RTC10_G_gpuned_11F3_VV.tif, see `radar_scenes`

Products may lie in folders of any depth up to eight. While listing, two files of metadata of each
product are read and no band is opened; of radar headers are.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

from terrafm.data.archive import BadCellError
from terrafm.data.sources.folders import for_all, walk
from terrafm.data.sources.safe_metadata import SafeName, parse_name, scenes_of
from terrafm.data.sources.scenes.engine import Found, SceneSource
from terrafm.data.sources.scenes.product_files import ProductFiles, open_zip
from terrafm.data.sources.scenes.radar import (
    RadarFile,
    how_to_correct,
    radar_file,
    radar_scenes,
    raw_product,
)
from terrafm.data.sources.scenes.scene import Scene
from terrafm.errors import UsageError
from terrafm.storage import exists, join, list_kinds
from terrafm.storage.clutter import is_clutter

_METADATA = re.compile(r"(?:MTD_MSIL(1C|2A)|S2[A-D]_\w+_MTD_SAFL(1C|2A)_.*)\.xml$")
# What lies in the folder of a product and is no archive.
_PARTS = {"granule", "datastrip", "html", "rep_info", "aux_data", "quicklook"}


@dataclass
class _Seen:
    """What one folder or zip of the archive holds."""

    products: list[tuple[ProductFiles, SafeName]] = field(default_factory=list)
    radar: list[RadarFile] = field(default_factory=list)
    broken: list[tuple[str, str, BadCellError]] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


class SafeArchive(SceneSource):
    """The `safe` source."""

    def find(self) -> Found:
        """Products of the archive by their metadata.

        Raises:
            UsageError: no such archive, or a raw Sentinel-1 product lies in it and radar is asked
                for.
        """
        seen = self._walk()
        counts = Counter({"products": len(seen.products)})
        wanted = [(files, name) for files, name in seen.products if self._is_wanted(name, counts)]
        scenes: list[Scene] = []
        broken = [b for b in seen.broken if b[1] in self._modalities]
        for found in for_all(lambda entry: scenes_of(*entry), wanted):
            scenes += found.scenes
            broken += found.broken
        if "s1" in self._modalities:
            radar, faults = radar_scenes(seen.radar)
            scenes += radar
            broken += faults
            counts["radar_scenes_found"] = len(radar)
        return Found(scenes, broken, counts)

    def _is_wanted(self, name: SafeName, counts: Counter[str]) -> bool:
        if name.modality not in self._modalities:
            return False
        if name.time is not None and not self._request.includes_time(name.time):
            counts["outside_time"] += 1
            return False
        return True

    def _walk(self) -> _Seen:
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        if _is_zip(self._uri):
            return self._zip(self._uri)
        whole = _Seen()
        for seen in walk(self._folder, self._uri):
            whole.products += seen.products
            whole.radar += seen.radar
            whole.broken += seen.broken
        return whole

    def _folder(self, uri: str) -> _Seen:
        self._refuse_raw(uri)
        folders, files = list_kinds(uri)
        product = ProductFiles(uri)
        seen = _Seen()
        metadata = next((name for name in files if _METADATA.match(name)), None)
        is_product = metadata is not None or _is_partial(product.name, folders)
        if is_product and (said := parse_name(product.name, metadata)):
            seen.products.append((product, said))
            return seen
        for name in files:
            if is_clutter(name):
                continue
            if _is_zip(name):
                inside = self._zip(join(uri, name))
                seen.products += inside.products
                seen.radar += inside.radar
                seen.broken += inside.broken
            elif found := radar_file(product, name):
                seen.radar.append(found)
        seen.folders = [
            join(uri, name)
            for name in folders
            if not is_clutter(name) and name.lower() not in _PARTS
        ]
        return seen

    def _zip(self, uri: str) -> _Seen:
        """Of a zip that may be none of ours only those with a sensor in their names are opened."""
        self._refuse_raw(uri)
        seen = _Seen()
        stem = uri.rpartition("/")[2]
        if not re.search(r"S[12][A-D]?_|OPERA_", stem) and uri != self._uri:
            return seen
        modality = "s1" if stem.startswith(("S1", "OPERA")) else ""
        try:
            for top, product in open_zip(uri):
                self._refuse_raw(f"{uri}/{top}" if top else uri)
                metadata = next((n for n in product.names() if _METADATA.match(n)), None)
                named = top.removesuffix(".SAFE") or product.name
                is_product = metadata is not None or _is_partial(named, product.names())
                if is_product and (name := parse_name(named, metadata)):
                    seen.products.append((product, name))
                    continue
                seen.radar += [
                    found
                    for path in sorted(product.members or ())
                    if (found := radar_file(product, path))
                ]
        except BadCellError as fault:
            name = parse_name(stem.rpartition(".")[0], None)
            modality = name.modality if name else modality or "s2_l2a"
            seen.broken.append((stem, modality, fault))
        return seen

    def _refuse_raw(self, uri: str) -> None:
        name = uri.rstrip("/").rpartition("/")[2]
        if "s1" in self._modalities and name.lower().endswith((".safe", ".zip")):
            kind = raw_product(name[: name.rindex(".")])
            if kind is not None:
                raise UsageError(how_to_correct(uri, kind))


def _is_zip(uri: str) -> bool:
    return uri.lower().endswith(".zip")


def _is_partial(name: str, folders: list[str]) -> bool:
    """Whether a folder is named as a product though its own metadata are missing."""
    inner = [folder for folder in folders if folder.upper().endswith(".SAFE")]
    return parse_name(name, None) is not None and not inner
