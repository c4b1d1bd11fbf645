"""A STAC API: its items of a collection, page by page, as far as an area and a time ask for them.

    stac+https://host/path#collection        several: #one,another

`POST /search` where the landing page offers it, `GET /search` where it offers that alone, else the
items of the collection (https://api.stacspec.org/v1.0.0/item-search, .../ogcapi-features). What a
page links to as `next` is asked for next, on the same server. pystac-client speaks to more kinds of
servers; it reads a page of any length and follows `next` for as long as there is one.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from urllib.parse import quote

from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.errors import StoreFailedError, StoreRefusedError, UsageError
from terrafm.storage.addresses import without_secrets
from terrafm.storage.faults import status_of
from terrafm.storage.limits import STAC_ITEMS
from terrafm.storage.records import shortened
from terrafm.storage.web_json import JsonServer

PREFIX = "stac+"
# Of more than a few polygons the box around all is asked for: the engine chooses among the items.
_MOST_BOXES = 8
# Items have 10 to 50 kB, and some servers answer with no more than 6 MB.
_PAGE_SIZES = (200, 50, 10)
# Several have an empty page at the end; one that never ends is none.
_MOST_EMPTY_PAGES = 3
_TOO_LARGE = (400, 413)
_NAMED = 20
_LONGEST_ID = 200


class StacApi:
    """The items of some collections.

    Attributes:
        url: of the interface, without secrets.
        collections: their ids.
    """

    def __init__(self, uri: str) -> None:
        """Connects to nothing yet.

        Args:
            uri: stac+https://host/path#collection.

        Raises:
            UsageError: it is of another form.
        """
        address, _, named = uri.removeprefix(PREFIX).partition("#")
        self._server = JsonServer(address)
        self.url = self._server.url
        self.collections = [part.strip() for part in named.split(",") if part.strip()]

    def pages(self, request: SceneRequest) -> Iterator[list[dict[str, Any]]]:
        """Items of the area and time that are asked for, each once, page by page.

        Raises:
            UsageError: there is no such interface or collection, or it has too many items.
            StoreRefusedError, StoreFailedError: the server refuses, fails for too long, or its
                pages do not come to an end.
        """
        home = self._get(self.url, "no STAC API answers there")
        links = home.get("links")
        if not isinstance(links, list):
            raise UsageError(f"{self.url} is no STAC API: its first page links to nothing")
        self._check_collections()
        known: set[tuple[str, str]] = set()
        for first in self._searches(links, request):
            for page in self._follow(first):
                yield self._fresh(page, known)

    def _get(self, url: str, otherwise: str) -> dict[str, Any]:
        try:
            return self._server.get(url)
        except FileNotFoundError:
            raise UsageError(f"{without_secrets(url)}: {otherwise}") from None
        except ValueError as error:
            raise UsageError(f"{without_secrets(url)} is no STAC API: {error}") from None

    def _check_collections(self) -> None:
        """A search in a collection that is not there finds nothing, and no fault."""
        for name in self.collections:
            url = f"{self.url}/collections/{quote(name, safe='')}"
            try:
                self._server.get(self._server.own(url))
            except FileNotFoundError:
                raise UsageError(f"{self.url} has no collection {shortened(name)}{self._those()}"
                                 ) from None  # fmt: skip
            except ValueError as error:
                raise UsageError(f"{url} is no collection: {error}") from None
        if not self.collections:
            raise UsageError(
                f"name the collection: --input '{PREFIX}{self.url}#COLLECTION'{self._those()}"
            )

    def _those(self) -> str:
        try:
            found = self._server.get(f"{self.url}/collections").get("collections")
        except (FileNotFoundError, ValueError, StoreRefusedError, StoreFailedError):
            return ""
        if not isinstance(found, list):
            return ""
        names = [
            shortened(str(one["id"])) for one in found if isinstance(one, dict) and "id" in one
        ]
        more = ", ..." if len(names) > _NAMED else ""
        return f"; it has: {', '.join(sorted(names)[:_NAMED])}{more}" if names else ""

    def _searches(
        self, links: list[Any], request: SceneRequest
    ) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(method, address, query) of the first pages."""
        offered = {
            str(link.get("method", "GET")).upper(): str(link.get("href"))
            for link in links
            if isinstance(link, dict) and link.get("rel") == "search"
        }
        asked: dict[str, Any] = {}
        if request.start or request.end:
            asked["datetime"] = f"{_moment(request.start)}/{_moment(request.end)}"
        for box in _boxes(request):
            query = {**asked, **({"bbox": box} if box else {})}
            if "POST" in offered:
                yield "POST", offered["POST"], {"collections": self.collections, **query}
                continue
            if box:
                query["bbox"] = ",".join(map(str, box))
            if "GET" in offered:
                yield "GET", offered["GET"], {"collections": ",".join(self.collections), **query}
                continue
            for name in self.collections:
                yield "GET", f"{self.url}/collections/{quote(name, safe='')}/items", query

    def _follow(self, first: tuple[str, str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
        method, url, query = first
        page = self._first_page(method, url, query)
        asked: set[str] = set()
        empty = 0
        while True:
            yield page
            empty = 0 if page.get("features") else empty + 1
            following = _next(page)
            if following is None:
                return
            url, method, body = self._next_request(following, query)
            # Not by the text of a record, which hides the token that tells pages apart.
            key = json.dumps([method, url, body], sort_keys=True)
            if key in asked or empty > _MOST_EMPTY_PAGES:
                raise StoreFailedError(
                    f"{self.url}: its pages do not come to an end (page {len(asked) + 2} links "
                    "back, or to nothing new): narrow the search with --bbox and --time"
                )
            asked.add(key)
            page = self._page(method, url, body)

    def _first_page(self, method: str, url: str, query: dict[str, Any]) -> dict[str, Any]:
        for size in _PAGE_SIZES:
            query["limit"] = size
            try:
                return self._page(method, url, query)
            except StoreRefusedError as error:
                # Servers refuse pages that are larger than they make.
                if status_of(error) not in _TOO_LARGE or size == _PAGE_SIZES[-1]:
                    raise
        raise AssertionError("unreachable")

    def _page(self, method: str, url: str, query: dict[str, Any] | None) -> dict[str, Any]:
        try:
            if method == "POST":
                page = self._server.post(url, query or {})
            else:
                page = self._server.get(url, query)
        except FileNotFoundError:
            raise StoreRefusedError(f"{without_secrets(url)}: there is no such page") from None
        except ValueError as error:
            raise StoreFailedError(f"{without_secrets(url)} is no page of items: {error}") from None
        if not isinstance(page.get("features"), list):
            raise StoreFailedError(f"{without_secrets(url)} is no page of items: no features")
        context = page.get("context")
        matched = page.get("numberMatched", context.get("matched") if isinstance(context, dict)
                           else None)  # fmt: skip
        if isinstance(matched, int) and matched > STAC_ITEMS:
            raise self._too_many(f"{matched:,}")
        return page

    def _next_request(
        self, link: dict[str, Any], query: dict[str, Any]
    ) -> tuple[str, str, dict[str, Any] | None]:
        method = "POST" if str(link.get("method", "GET")).upper() == "POST" else "GET"
        url = self._server.own(str(link.get("href") or ""), f"{self.url}/")
        if method == "GET":
            return url, method, None
        body = link.get("body")
        body = body if isinstance(body, dict) else {}
        # `merge` says that the body holds only what changes; without a body nothing would.
        return url, method, {**query, **body} if link.get("merge") or not body else body

    def _fresh(self, page: dict[str, Any], known: set[tuple[str, str]]) -> list[dict[str, Any]]:
        fresh = []
        for item in page["features"]:
            if not isinstance(item, dict):
                continue
            key = str(item.get("collection")), str(item.get("id"))
            if key not in known:
                known.add(key)
                fresh.append(item)
        if len(known) > STAC_ITEMS:
            raise self._too_many(f"more than {STAC_ITEMS:,}")
        return fresh

    def _too_many(self, number: str) -> UsageError:
        return UsageError(
            f"{self.url} has {number} items of what is asked for, and {STAC_ITEMS:,} are read: "
            "narrow the search with --bbox, --geometry and --time"
        )

    def item_uri(self, item: dict[str, Any]) -> str:
        """Where an item stands."""
        collection, name = item.get("collection") or self.collections[0], item.get("id")
        one, other = (quote(str(word)[:_LONGEST_ID], safe="") for word in (collection, name))
        return f"{self.url}/collections/{one}/items/{other}"


def _next(page: dict[str, Any]) -> dict[str, Any] | None:
    links = page.get("links")
    for link in links if isinstance(links, list) else ():
        if isinstance(link, dict) and link.get("rel") == "next" and link.get("href"):
            return link
    return None


def _moment(time: datetime | None) -> str:
    return ".." if time is None else time.isoformat().replace("+00:00", "Z")


def _boxes(request: SceneRequest) -> list[list[float] | None]:
    if request.area is None:
        return [None]
    parts = getattr(request.area, "geoms", [request.area])
    parts = parts if len(parts) <= _MOST_BOXES else [request.area]
    return [[float(side) for side in part.bounds] for part in parts]
