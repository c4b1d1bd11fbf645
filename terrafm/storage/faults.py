"""Faults of storage: which pass by themselves, how long to try again, and one line for the rest.

Every library reports the same faults in classes of its own; this is the one place that knows
them. A passing fault (throttling, a reset, a stall, a server that restarts) is met by trying
again, later and later, at random moments so that many workers do not come back all at once. A
lasting one (credentials, a missing bucket, a full disk) is never repeated.
"""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import tenacity

from terrafm.errors import StoreFailedError, StoreRefusedError, TerraFMError
from terrafm.storage.addresses import without_secrets

logger = logging.getLogger(__name__)

# From the environment, as the credentials are: files are read before any configuration, which is
# one of them.
STALL_SECONDS = float(os.environ.get("TERRAFM_STALL_SECONDS", "20"))
"""A request without a byte for so long is given up and made again."""
RETRY_SECONDS = float(os.environ.get("TERRAFM_RETRY_SECONDS", "120"))
"""A store that fails for so long has failed."""

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0
# Shorter waits are everyday; a longer one means that somebody may be waiting for the command.
_WORTH_A_WARNING = 4

# By name, so that none of these libraries has to be imported.
_PASSING = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.ResponseParserError",
    "builtins.ConnectionError",
    "builtins.TimeoutError",
    "fsspec.exceptions.FSTimeoutError",
    "http.client.IncompleteRead",
    "httpx.TransportError",
    "requests.exceptions.ChunkedEncodingError",
    "requests.exceptions.ConnectionError",
    "requests.exceptions.Timeout",
}
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}
# Error codes of S3 that may come with a status of 400.
_PASSING_CODES = {"RequestTimeout", "SlowDown", "ServiceUnavailable", "InternalError"}
_REFUSED = {
    "botocore.exceptions.NoCredentialsError",
    "botocore.exceptions.PartialCredentialsError",
    "builtins.PermissionError",
    "obstore.exceptions.PermissionDeniedError",
    "obstore.exceptions.UnauthenticatedError",
}
_LASTING_TEXTS = ("Received redirect", "Error performing token", "builder error")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

Answer = TypeVar("Answer")


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    for cause in _chain(error):
        names = _names(cause)
        if names & _REFUSED:
            return False
        status, code = _response(cause)
        if status is not None or code is not None:
            return status in _PASSING_STATUS or code in _PASSING_CODES
        if "obstore.exceptions.GenericError" in names:
            return not any(text in str(cause) for text in _LASTING_TEXTS)
        if names & _PASSING:
            return True
    return False


def is_full(error: BaseException) -> bool:
    """Whether a write failed because there is no room."""
    return isinstance(error, OSError) and error.errno in _FULL


def patiently(call: Callable[[], Answer], where: str, seconds: float | None = None) -> Answer:
    """Makes a request until it succeeds, fails for good, or has failed for too long.

    A server that says when to come again (`Retry-After`) is left alone until then, as far as that
    is within the patience.

    Args:
        call: the request; may be made any number of times.
        where: URI, for the warning that something takes long.
        seconds: the patience; `RETRY_SECONDS` by default.

    Raises:
        Exception: the last one of `call`.
    """
    patience = RETRY_SECONDS if seconds is None else seconds
    where = without_secrets(where)

    def warn(state: tenacity.RetryCallState) -> None:
        if state.attempt_number == _WORTH_A_WARNING and state.outcome is not None:
            fault = one_line(state.outcome.exception() or "no answer")
            logger.warning("%s: %s; trying again for %g s", where, fault, patience)

    backoff = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT)

    def wait(state: tenacity.RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome is not None else None
        return max(backoff(state), min(_asked_to_wait(fault), patience))

    attempts = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_passing),
        wait=wait,
        stop=tenacity.stop_after_delay(patience),
        before_sleep=warn,
        reraise=True,
    )
    return attempts(call)


def explain(error: BaseException, doing: str, where: str) -> TerraFMError:
    """A fault that no repetition cured, as one line: what, where, what to do.

    Args:
        error: of a library.
        doing: "read" or "write".
        where: URI.

    Returns:
        A `StoreRefusedError` where the user must change something, else a `StoreFailedError`.
    """
    fault, where = one_line(error), without_secrets(where)
    if is_full(error):
        return StoreRefusedError(
            f"cannot {doing} {where}: no room left ({fault}): make room, repeat"
        )
    if is_passing(error):
        # The cause has the store's own word for it, such as its HTTP status.
        fault = one_line(error.__cause__ or error)
        return StoreFailedError(
            f"cannot {doing} {where}: {fault}; tried again for {RETRY_SECONDS:g} s: "
            "see whether the store is up and the address right, then repeat the command"
        )
    if isinstance(error, FileNotFoundError) or "NoSuchBucket" in fault:
        return StoreRefusedError(
            f"cannot {doing} {where}: the bucket or folder does not exist: make it"
        )
    if any(_names(cause) & _REFUSED for cause in _chain(error)):
        return StoreRefusedError(
            f"cannot {doing} {where}: access refused ({fault}): check credentials and permissions"
        )
    return StoreRefusedError(f"cannot {doing} {where}: {fault}")


def status_of(error: BaseException) -> int | None:
    """HTTP status of a store's answer; None where the fault is another."""
    found = (_response(cause)[0] for cause in _chain(error))
    return next((status for status in found if status is not None), None)


def one_line(error: BaseException | str) -> str:
    """The first line of what an error says, of bounded length, without secrets in addresses."""
    text = str(error).strip() or type(error).__name__
    return without_secrets(text.splitlines()[0])[:300]


def _asked_to_wait(error: BaseException | None) -> float:
    """Seconds that a server asks to be left alone for; 0 where it does not say."""
    for cause in _chain(error):
        response: Any = getattr(cause, "response", cause)
        headers = getattr(response, "headers", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        pairs = dict(headers).items() if isinstance(headers, Mapping) else ()
        said = next((str(value) for key, value in pairs if key.lower() == "retry-after"), "")
        if said.strip().isdigit():
            return float(said)
        try:
            moment = parsedate_to_datetime(said)
            return max(0.0, moment.timestamp() - time.time())
        except (ValueError, OverflowError):
            continue
    return 0.0


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _names(error: BaseException) -> set[str]:
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__}


def _response(error: BaseException) -> tuple[int | None, str | None]:
    """HTTP status and S3 error code, where the error carries them."""
    response: Any = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return status, response.get("Error", {}).get("Code")
    status = getattr(response, "status_code", getattr(error, "status", None))
    return (status if isinstance(status, int) else None), None
