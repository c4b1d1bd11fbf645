"""Addresses that are read only with a signature, which an interface gives for a while.

Planetary Computer's rasters lie in Azure's blob storage, and its interface signs any address
there: `GET {interface}/sign?href=ADDRESS` answers the address with a signature as its query
(`href`), and until when that holds (`msft:expiry`):
https://planetarycomputer.microsoft.com/docs/concepts/sas/. The signature is that of a container,
so one serves all rasters in it.
"""

import time
from datetime import datetime
from math import inf
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from terrafm.data.archive import BadCellError
from terrafm.storage.web_json import JsonServer

_BLOBS = ".blob.core.windows.net"
# A new one is asked for before the old one ends, so that no reading is cut off.
_EARLIER_SECONDS = 300.0
_LEAST_SECONDS = 30.0
_UNSAID_SECONDS = 600.0


class Signer:
    """Signs addresses in blob storage, and on the interface's own server; leaves others alone."""

    def __init__(self, interface: str) -> None:
        """Asks for nothing yet.

        Args:
            interface: its address, such as https://planetarycomputer.microsoft.com/api/sas/v1.

        Raises:
            UsageError: it is no address of HTTP.
        """
        self._server = JsonServer(interface)
        self._own = urlsplit(self._server.url).netloc
        self._signatures: dict[tuple[str, str], tuple[str, float]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Signatures stay where they were asked for."""
        return {**self.__dict__, "_signatures": {}}

    def __call__(self, uri: str) -> tuple[str, float]:
        """An address that can be read, and until when, in seconds since 1970.

        Raises:
            BadCellError: the interface does not sign it.
            StoreRefusedError, StoreFailedError: the interface refuses, or fails for too long.
        """
        parts = urlsplit(uri)
        known = (parts.hostname or "").endswith(_BLOBS) or parts.netloc == self._own
        # What has a query is signed already, or is no plain file.
        if parts.scheme not in ("http", "https") or not known or parts.query:
            return uri, inf
        container = parts.netloc, parts.path.lstrip("/").partition("/")[0]
        signature, until = self._signatures.get(container, ("", 0.0))
        if until < time.time():
            signature, until = self._ask(uri)
            self._signatures[container] = signature, until
        return urlunsplit(parts._replace(query=signature)), until

    def _ask(self, uri: str) -> tuple[str, float]:
        where = f"{self._server.url}/sign?href={quote(uri, safe='')}"
        try:
            answer = self._server.get(f"{self._server.url}/sign", {"href": uri})
            signed = urlsplit(str(answer["href"]))
            expiry = answer.get("msft:expiry")
            until = (
                datetime.fromisoformat(str(expiry)).timestamp()
                if expiry
                else time.time() + _UNSAID_SECONDS
            )
        except FileNotFoundError:
            raise BadCellError(uri, f"{self._server.url} does not sign it") from None
        except (KeyError, ValueError, OverflowError) as error:
            raise BadCellError(where, f"no signature is in the answer: {error}") from None
        asked = urlsplit(uri)
        if (signed.scheme, signed.netloc, signed.path) != (asked.scheme, asked.netloc, asked.path):
            raise BadCellError(where, "the answer is the signature of another address")
        return signed.query, max(until - _EARLIER_SECONDS, time.time() + _LEAST_SECONDS)
