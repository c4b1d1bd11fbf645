"""JSON that a server answers with: bounded, from that server alone, patient where it is busy.

fsspec's HTTP has files and no POST. What an interface answers is a document of the same kind as a
file of JSON: it is read up to the same length, and parsed under the same limits.
"""

from functools import cached_property
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urljoin, urlsplit, urlunsplit

from terrafm.errors import StoreRefusedError, TerraFMError, UsageError
from terrafm.storage.addresses import without_secrets
from terrafm.storage.faults import STALL_SECONDS, explain, patiently
from terrafm.storage.limits import DOCUMENT_BYTES
from terrafm.storage.local import check_length
from terrafm.storage.records import parse_json

_CHUNK = 1 << 16
_MOST_REDIRECTS = 3


class JsonServer:
    """A server that answers with JSON objects.

    User, password and query of the address go with every request, and to no other server.

    Attributes:
        url: the address without them and without a slash at its end.
    """

    def __init__(self, address: str) -> None:
        """Connects to nothing yet.

        Raises:
            UsageError: it is no address of HTTP.
        """
        try:
            parts = urlsplit(address)
            port = f":{parts.port}" if parts.port else ""
        except ValueError as error:
            raise UsageError(f"{without_secrets(address)} is no address: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(
                f"{without_secrets(address)!r} is no address of a server: give one such as "
                "https://HOST/PATH"
            )
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        self._scheme, self._place = parts.scheme, f"{host}{port}"
        self._query = dict(parse_qsl(parts.query))
        self._user = None
        if parts.username is not None:
            self._user = unquote(parts.username), unquote(parts.password or "")
        self.url = urlunsplit((parts.scheme, self._place, parts.path.rstrip("/"), "", ""))

    def __getstate__(self) -> dict[str, Any]:
        """Another process makes connections of its own."""
        return {name: value for name, value in self.__dict__.items() if name != "_session"}

    @cached_property
    def _session(self) -> Any:
        # Imported where it is needed: most commands speak to no such server.
        import requests

        session = requests.Session()
        session.auth = self._user
        session.headers["Accept"] = "application/geo+json, application/json"
        return session

    def own(self, href: str, beside: str = "") -> str:
        """An address that the server named, on the server itself.

        Behind a proxy that ends TLS many call themselves http://; the address here is the user's.

        Args:
            href: it.
            beside: address of the document that named it.

        Raises:
            StoreRefusedError: it is on another server.
        """
        try:
            parts = urlsplit(urljoin(beside or f"{self.url}/", href))
            port, mine = parts.port, urlsplit(self.url)
            same = parts.hostname == mine.hostname and port in (None, mine.port)
        except ValueError:
            same = False
        if not same or parts.scheme not in ("http", "https"):
            raise StoreRefusedError(
                f"{self.url} sends on to {without_secrets(href)[:200]}, another server: give that "
                "one's address if you trust it"
            )
        return urlunsplit((self._scheme, self._place, parts.path, parts.query, ""))

    def get(self, url: str, query: dict[str, Any] | None = None) -> dict[str, Any]:
        """What it answers to a GET.

        Args:
            url: on this server.
            query: beside that of the address.

        Raises:
            FileNotFoundError: there is nothing.
            ValueError: it is no JSON object, or larger than one may be.
            StoreRefusedError, StoreFailedError: the server refuses, or fails for too long.
        """
        return self._ask("GET", self._with(self.own(url), query or {}), None)

    def post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """What it answers to a POST of JSON; raises as `get`."""
        return self._ask("POST", self._with(self.own(url), {}), body)

    def _with(self, url: str, query: dict[str, Any]) -> str:
        parts = urlsplit(url)
        said = parse_qsl(parts.query, keep_blank_values=True)
        known = {key for key, _ in said}
        said += [(k, v) for k, v in {**self._query, **query}.items() if k not in known]
        return urlunsplit(parts._replace(query=urlencode(said)))

    def _ask(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            content = patiently(lambda: self._content(method, url, body), url)
        except (FileNotFoundError, ValueError, TerraFMError):
            raise
        except Exception as error:
            raise explain(error, "read", url) from error
        answer = parse_json(content)
        if not isinstance(answer, dict):
            raise ValueError("it answers with something else than a JSON object")
        return answer

    def _content(self, method: str, url: str, body: dict[str, Any] | None) -> bytes:
        for _ in range(_MOST_REDIRECTS):
            try:
                answer = self._session.request(
                    method, url, json=body, stream=True, timeout=STALL_SECONDS,
                    allow_redirects=False,
                )  # fmt: skip
            except ValueError as error:
                # requests looks at where it would be sent on to, asked or not.
                raise StoreRefusedError(
                    f"{without_secrets(url)} is no address, or sends on to another server: {error}"
                ) from None
            with answer:
                if answer.is_redirect:
                    url = self.own(answer.headers["Location"], url)
                    continue
                if answer.status_code in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                    raise FileNotFoundError(without_secrets(url))
                answer.raise_for_status()
                content = bytearray()
                for part in answer.iter_content(_CHUNK):
                    content += part
                    check_length(len(content), DOCUMENT_BYTES, without_secrets(url))
                return bytes(content)
        raise StoreRefusedError(f"{without_secrets(url)} redirects without end")
