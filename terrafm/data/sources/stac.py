"""STAC items of one-band GeoTIFFs: a file of items, one item, a static catalogue, or an API.

    ARCHIVE/items.json             an ItemCollection, as a search answers
    ARCHIVE/items.parquet          the same as stac-geoparquet
    ARCHIVE/catalog.json           a catalogue or collection: its links to children and items
    https://host/collection.json   the same on a server; pixels are read by ranges
    stac+https://host/path#NAME    a collection of a STAC API, which is searched

Assets are bands by their `eo:bands` or `bands` (name, common name) or else by their keys, as Earth
Search, Planetary Computer and CDSE have them. Where an item states projection, transform and
shape, no raster is opened while listing.
"""

import posixpath
from collections.abc import Iterable
from typing import Any
from urllib.parse import urljoin

from terrafm.config.yaml_text import shortened
from terrafm.data.archive import BadCellError
from terrafm.data.sources.folders import for_all, read_json
from terrafm.data.sources.scenes.engine import Found, SceneSource
from terrafm.data.sources.scenes.scene import Scene
from terrafm.data.sources.stac_api import PREFIX, StacApi
from terrafm.data.sources.stac_item import modality_of, read_item
from terrafm.data.sources.stac_table import SUFFIXES, read_items
from terrafm.errors import UsageError
from terrafm.storage import exists, is_local

_MOST_DEEP = 12
# Where an item may send a reader, beside the catalogue's own place; see docs/security.md.
_PUBLISHED = ("https://", "s3://")
_LINKS = ("child", "item")


class StacItems(SceneSource):
    """The `stac` source."""

    def find(self) -> Found:
        """Items by their JSON, or their rows.

        Raises:
            UsageError: there is no such file or collection, or it is no STAC.
            StoreRefusedError, StoreFailedError: a server refuses, or fails for too long.
        """
        found = Found()
        if self._is_api:
            api = StacApi(self._uri)
            for page in api.pages(self._request):
                self._take([(api.item_uri(item), item) for item in page], found)
            return found
        if not exists(self._uri):
            raise UsageError(f"archive {self._uri} does not exist")
        if self._uri.lower().endswith(SUFFIXES):
            for rows in read_items(self._uri):
                self._take([(self._uri, item) for item in rows], found)
            return found
        items, found.broken = self._items()
        self._take(items, found)
        return found

    @property
    def _is_api(self) -> bool:
        return self._uri.startswith(PREFIX)

    def _worldcover(self) -> str | None:
        return None if self._is_api else super()._worldcover()

    def _take(self, items: Iterable[tuple[str, dict[str, Any]]], found: Found) -> None:
        """Scenes of items; the items themselves, which may be many, are not kept."""
        items = list(items)
        found.counts["items"] += len(items)
        for (where, item), scene in zip(items, for_all(self._scene, items), strict=True):
            if isinstance(scene, BadCellError):
                modality = modality_of(item) or self._modalities[0]
                if modality in self._modalities:
                    found.broken.append((shortened(item.get("id", where)), modality, scene))
            elif scene is None:
                found.counts["items_of_others"] += 1
            else:
                found.scenes.append(scene)

    def _items(
        self,
    ) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, str, BadCellError]]]:
        """(URI, item) of all items, and links that lead nowhere."""
        items: list[tuple[str, dict[str, Any]]] = []
        broken: list[tuple[str, str, BadCellError]] = []
        seen, waiting = {self._uri}, [self._uri]
        for _ in range(_MOST_DEEP):
            following: list[str] = []
            for where, content in zip(waiting, for_all(_read, waiting), strict=True):
                if isinstance(content, BadCellError):
                    if where == self._uri:
                        raise UsageError(str(content))
                    broken.append((where.rpartition("/")[2], self._modalities[0], content))
                    continue
                kind = content.get("type")
                if kind == "FeatureCollection":
                    features = content.get("features")
                    items += [(where, f) for f in features or () if isinstance(f, dict)]
                elif kind == "Feature":
                    items.append((where, content))
                elif "links" in content:
                    for link in content["links"] if isinstance(content["links"], list) else ():
                        if isinstance(link, dict) and link.get("rel") in _LINKS:
                            try:
                                target = self._locate(where, link.get("href"))
                            except BadCellError as fault:
                                broken.append((where, self._modalities[0], fault))
                                continue
                            if target not in seen:
                                seen.add(target)
                                following.append(target)
                elif where == self._uri:
                    raise UsageError(f"{where} is no STAC: neither items, a catalogue nor a "
                                     "collection")  # fmt: skip
            waiting = following
            if not waiting:
                break
        return items, broken

    def _locate(self, where: str, href: Any) -> str:
        """An address in a file of the catalogue, which leads nowhere but below or to the public.

        Raises:
            BadCellError: it does.
        """
        if not isinstance(href, str) or not href or "::" in href:
            raise BadCellError(where, f"href is {shortened(href)}")
        home = self._uri.removeprefix(PREFIX)
        if self._is_api and "://" not in href:
            # An item stands deep in the interface, and its server is the whole of it.
            href = str(urljoin(where, href))
        root = home.rpartition("/")[0]
        if self._is_api or ("://" in href and not href.startswith("file://")):
            scheme, _, rest = home.partition("://")
            server = rest.partition("/")[0].rpartition("@")[2]
            own = f"{scheme}://{server}/" if rest else None
            if href.startswith(_PUBLISHED) or (own and href.startswith(own)):
                return str(href)
            raise BadCellError(where, f"{href[:80]} is neither public nor beside the catalogue")
        path = href.removeprefix("file://")
        scheme, separator, base = where.rpartition("/")[0].rpartition("://")
        joined = posixpath.normpath(posixpath.join(base, path))
        target = f"{scheme}{separator}{joined}"
        if is_local(home) and not target.startswith(f"{root}/"):
            raise BadCellError(where, f"{href[:80]} leads out of {root}")
        return target

    def _scene(self, entry: tuple[str, dict[str, Any]]) -> Scene | BadCellError | None:
        where, item = entry
        modality = modality_of(item)
        if modality not in self._modalities:
            return None
        try:
            return read_item(where, item, modality, self._locate, self._sign)
        except BadCellError as fault:
            return fault
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            return BadCellError(where, f"item {shortened(item.get('id'))} is not as STAC has it: "
                                f"{error}")  # fmt: skip


def _read(uri: str) -> dict[str, Any] | BadCellError:
    try:
        return read_json(uri)
    except BadCellError as fault:
        return fault
