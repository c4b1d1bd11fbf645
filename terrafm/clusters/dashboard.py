"""Talks to a cluster's dashboard, which is its job server; every refusal is one line."""

from __future__ import annotations

import ipaddress
import os
from typing import Any
from urllib.parse import urlsplit

import requests

from terrafm.clusters.token import HOW_TO_GIVE, Token, find_token
from terrafm.errors import TerraFMError, UsageError

_SECONDS = 30.0


def dashboard_url(address: str) -> str:
    """The address as a URL without a slash at its end.

    Raises:
        UsageError: it is none of a dashboard.
    """
    url = address if "://" in address else f"http://{address}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{address} is no address of a dashboard: give one such as http://127.0.0.1:8265"
        )
    return f"{parts.scheme}://{parts.netloc}"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class Dashboard:
    """A dashboard and the token for it.

    Args:
        address: its URL.
        token: by default the one that Ray would use.

    Raises:
        UsageError: the address is none, or the token cannot be read.
    """

    def __init__(self, address: str, token: Token | None = None) -> None:
        self.url = dashboard_url(address)
        self.token = token or find_token()

    def get(self, path: str) -> Any:
        """What it answers to a GET, from JSON.

        Raises:
            UsageError: nobody answers there, or the token is missing or refused.
            TerraFMError: it answers anything else.
        """
        answer = self.request("GET", path, self.token.headers if self.token else {})
        self.check(answer.status_code)
        try:
            answer.raise_for_status()
            return answer.json()
        except (requests.HTTPError, ValueError):
            raise self._no_dashboard(path, str(answer.status_code)) from None

    def nodes(self) -> list[dict[str, Any]]:
        """The cluster's nodes as they describe themselves.

        Raises:
            UsageError, TerraFMError: as `get`.
        """
        path = "/nodes?view=summary"
        try:
            return list(self.get(path)["data"]["summary"])
        except (KeyError, TypeError):
            raise self._no_dashboard(path, "something else") from None

    def _no_dashboard(self, path: str, answer: str) -> TerraFMError:
        return TerraFMError(
            f"{self.url}{path} answers {answer}, not as Ray's dashboard does: is this its address?"
        )

    def request(self, method: str, path: str, headers: dict[str, str]) -> requests.Response:
        """One request with these headers and no other credential.

        Raises:
            UsageError: nobody answers there.
        """
        return self.send(method, path, headers=headers, timeout=_SECONDS)

    def send(self, method: str, path: str, **options: Any) -> requests.Response:
        """One request, straight to the dashboard; the only one that speaks HTTP to clusters.

        Args:
            method: of HTTP.
            path: behind the URL.
            options: as `requests.request` has them.

        Raises:
            UsageError: nobody answers there.
        """
        with requests.Session() as session:
            # No proxy, which would read the token, and no other credential, from ~/.netrc.
            session.trust_env = False
            # What it has of the environment that is still wanted.
            authorities = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE")
            options.setdefault("verify", authorities or True)
            try:
                return session.request(method, self.url + path, allow_redirects=False, **options)
            except requests.RequestException as error:
                raise UsageError(
                    f"cannot reach a cluster at {self.url} ({type(error).__name__}): is it "
                    f"running, and is its dashboard forwarded to this machine?{_proxy_note()}"
                ) from None

    def check(self, status: int) -> None:
        """Judges the status of an answer.

        Raises:
            UsageError: it says that the token is missing or wrong.
        """
        if status == 401:
            raise UsageError(f"the cluster at {self.url} asks for a token: {HOW_TO_GIVE} (401)")
        if status == 403:
            raise UsageError(f"{refusal(self.url, self.token)} (403)")


def _proxy_note() -> str:
    """Of a proxy that was passed over, for those who expect that it is asked."""
    named = [name for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") if _set(name)]
    return f" ({named[0]} is not used for clusters: docs/security.md)" if named else ""


def _set(name: str) -> bool:
    return bool(os.environ.get(name) or os.environ.get(name.lower()))


def refusal(address: str, token: Token | None) -> str:
    """What to say of a cluster that does not know the token."""
    origin = token.origin if token else "this request"
    return f"the cluster at {address} refuses the token of {origin}: {HOW_TO_GIVE}"
