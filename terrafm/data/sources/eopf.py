"""Sentinel-2 as EOPF Zarr, the successor of SAFE: products as folders or zips, radar beside them.

    ARCHIVE/S2A_MSIL2A_20220428T100601_N0400_R022_T32TPS_20220428T141313.zarr/
    ARCHIVE/2023/S02MSIL1C_20230629T120347_0000_A064_TC64.zarr.zip
    ARCHIVE/radar/S1A_IW_20220705T..._RTC10_G_gpuned_11F3_VV.tif, see `radar_scenes`

The archive may itself be one product, which then needs no store that lists its folders. Of a
product its metadata are read while listing; see `eopf_product` for what lies in it.
"""

from collections import Counter
from dataclasses import dataclass, field

from terrafm.data.archive import BadCellError
from terrafm.data.sources.eopf_product import modality_named, product_type, read_product
from terrafm.data.sources.folders import for_all, walk
from terrafm.data.sources.safe_metadata import parse_name
from terrafm.data.sources.scenes.engine import Found, SceneSource
from terrafm.data.sources.scenes.product_files import ProductFiles
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
from terrafm.storage.zarr_arrays import BadZarrError
from terrafm.storage.zarr_store import ZarrStore
from terrafm.storage.zip_members import BadZipError

_SUFFIXES = (".zarr.zip", ".zarr")


@dataclass
class _Seen:
    """What one folder of the archive holds."""

    products: list[str] = field(default_factory=list)
    radar: list[RadarFile] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


class EopfArchive(SceneSource):
    """The `eopf` source."""

    def find(self) -> Found:
        """Products of the archive by their metadata.

        Raises:
            UsageError: no such archive, or a raw Sentinel-1 product lies in it and radar is asked
                for.
        """
        seen = self._walk()
        found = Found(counts=Counter({"products": len(seen.products)}))
        wanted = [uri for uri in seen.products if self._in_time(uri, found.counts)]
        for uri, scene in zip(wanted, for_all(self._scene, wanted), strict=True):
            if isinstance(scene, BadCellError):
                name = _name(uri)
                modality = modality_named(name) or self._modalities[0]
                if modality in self._modalities:
                    found.broken.append((name, modality, scene))
            elif scene is None:
                found.counts["products_of_others"] += 1
            else:
                found.scenes.append(scene)
        if "s1" in self._modalities:
            radar, faults = radar_scenes(seen.radar)
            found.scenes += radar
            found.broken += faults
            found.counts["radar_scenes_found"] = len(radar)
        return found

    def _in_time(self, uri: str, counts: Counter[str]) -> bool:
        named = parse_name(_name(uri), None)
        if named is None or named.time is None or self._request.includes_time(named.time):
            return True
        counts["outside_time"] += 1
        return False

    def _scene(self, uri: str) -> Scene | BadCellError | None:
        """None of a product of another sensor or level."""
        name = _name(uri)
        modality = modality_named(name)
        if raw_product(name) or (modality is not None and modality not in self._modalities):
            return None
        try:
            store = ZarrStore(uri)
            modality = modality or modality_named(product_type(store))
            if modality not in self._modalities:
                return None
            return read_product(store, name, modality)
        except BadCellError as fault:
            return fault
        except (OSError, BadZipError, BadZarrError) as error:
            return BadCellError(uri, str(error))

    def _walk(self) -> _Seen:
        if _is_product(self._uri):
            # Plain HTTP has no folders: whether it is there its metadata tell.
            if not exists(self._uri) and not exists(join(self._uri, ".zmetadata")):
                raise UsageError(f"archive {self._uri} does not exist")
            self._refuse_raw(self._uri)
            return _Seen(products=[self._uri])
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        whole = _Seen()
        for seen in walk(self._folder, self._uri):
            whole.products += seen.products
            whole.radar += seen.radar
        return whole

    def _folder(self, uri: str) -> _Seen:
        folders, files = list_kinds(uri)
        seen = _Seen()
        inside = ProductFiles(uri)
        for name in (*folders, *files):
            if is_clutter(name):
                continue
            if _is_product(name):
                self._refuse_raw(join(uri, name))
                seen.products.append(join(uri, name))
            elif name in folders:
                seen.folders.append(join(uri, name))
            elif radar := radar_file(inside, name):
                seen.radar.append(radar)
        return seen

    def _refuse_raw(self, uri: str) -> None:
        kind = raw_product(_name(uri))
        if kind is not None and "s1" in self._modalities:
            raise UsageError(how_to_correct(uri, kind))


def _is_product(name: str) -> bool:
    return name.rstrip("/").lower().endswith(_SUFFIXES)


def _name(uri: str) -> str:
    stem = uri.rstrip("/").rpartition("/")[2]
    for suffix in _SUFFIXES:
        if stem.lower().endswith(suffix):
            return stem[: -len(suffix)]
    return stem
