"""A STAC API on loopback: search by POST and GET, items, paging, faults, signing, files."""

import json
from contextlib import contextmanager
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

from range_server import RangeHandler, answering, range_server


@contextmanager
def stac_api(folder, items, **options):
    """Serves items of the collection of their own names, and a folder's files under /files.

    Args:
        folder: of the files.
        items: plain JSON.
        options: attributes of the server, below.

    Yields:
        The server: `address` of the API; `asked`, a list of (method, path, query or body); and
        `sent`, see `range_server`. `methods` are those of search that it offers; `faults` a list
        of (status, headers) that the next requests get; `most` items of a page; `pages`, a function
        from (number, page) to the page that is sent instead; `signed`, whether files are sent to
        signed addresses only.
    """
    server = range_server(folder, _Api)
    server.items, server.asked, server.faults = items, [], []
    server.methods, server.most, server.pages = ("POST", "GET"), 100, lambda number, page: page
    server.signed, server.signatures, server.lifetime = False, 0, "2099-01-01T00:00:00Z"
    server.password = None
    vars(server).update(options)
    server.home = server.address
    server.address = f"{server.home}/api"
    with answering(server):
        yield server


class _Api(RangeHandler):
    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self._api("POST", json.loads(self.rfile.read(length)))

    def do_GET(self):
        parts = urlsplit(self.path)
        if parts.path.startswith("/files/"):
            return self._file(parts, body=True)
        return self._api("GET", {k: v[0] for k, v in parse_qs(parts.query).items()})

    def do_HEAD(self):
        self._file(urlsplit(self.path), body=False)

    def _file(self, parts, body):
        self.path = parts.path.removeprefix("/files")
        if self.server.signed and parts.query != f"sig=S{self.server.signatures}":
            return self._json({}, 403)
        return self._answer(body)

    def _api(self, method, asked):
        server = self.server
        path = urlsplit(self.path).path.rstrip("/")
        server.asked.append((method, path, asked))
        if server.faults:
            status, headers = server.faults.pop(0)
            return self._json({"description": "a fault"}, status, headers)
        if server.password and self.headers.get("Authorization") != server.password:
            return self._json({}, 401)
        names = sorted({item["collection"] for item in server.items})
        if path == "/api":
            links = [
                {"rel": "search", "href": f"{server.address}/search", "method": m,
                 "type": "application/geo+json"} for m in server.methods
            ]  # fmt: skip
            return self._json({"type": "Catalog", "id": "api", "links": [*links, {"rel": "self"}]})
        if path == "/api/collections":
            return self._json({"collections": [{"id": name} for name in names]})
        if path == "/sas/sign":
            server.signatures += 1
            href = f"{asked['href']}?sig=S{server.signatures}"
            return self._json({"href": href, "msft:expiry": server.lifetime})
        parts = path.split("/")
        if path.startswith("/api/collections/") and parts[3] in names:
            if parts[4:] == ["items"]:
                return self._search(method, {**asked, "collections": parts[3]})
            if not parts[4:]:
                return self._json({"type": "Collection", "id": parts[3], "links": []})
        if path == "/api/search" and method in server.methods:
            return self._search(method, asked)
        return self._json({"code": "NotFound"}, 404)

    def _search(self, method, asked):
        server = self.server
        limit = int(asked.get("limit", 10))
        if limit > server.most:
            return self._json({"code": "limit"}, 400)
        listed = asked["collections"]
        wanted = listed.split(",") if isinstance(listed, str) else listed
        box, when = asked.get("bbox"), asked.get("datetime")
        box = [float(side) for side in box.split(",")] if isinstance(box, str) else box
        found = [i for i in server.items if i["collection"] in wanted and _meets(i, box, when)]
        start = int(asked.get("token", 0))
        page = {"type": "FeatureCollection", "features": found[start : start + limit], "links": []}
        if start + limit < len(found):
            page["links"].append(self._next(method, asked, start + limit))
        return self._json(server.pages(start // limit, page))

    def _next(self, method, asked, token):
        path = urlsplit(self.path).path
        if method == "POST":
            return {"rel": "next", "href": f"{self.server.home}{path}", "method": "POST",
                    "body": {"token": str(token)}, "merge": True}  # fmt: skip
        said = {**asked, "token": token}
        query = "&".join(f"{key}={value}" for key, value in said.items())
        # As behind a proxy: an address relative to this one.
        return {"rel": "next", "href": f"{path}?{query}"}

    def _json(self, value, status=200, headers=()):
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in dict(headers).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _meets(item, box, when):
    if box is None and when is None:
        return True
    (west, south), (east, north) = item["bbox"][:2], item["bbox"][2:]
    inside = box is None or (west <= box[2] and east >= box[0] and south <= box[3]
                             and north >= box[1])  # fmt: skip
    if when is None:
        return inside
    first, _, last = when.partition("/")
    time = datetime.fromisoformat(item["properties"]["datetime"])
    return (
        inside
        and (first == ".." or datetime.fromisoformat(first) <= time)
        and (last == ".." or time <= datetime.fromisoformat(last))
    )
