"""Secrets in addresses: a user's password, and what signs a query.

An address that is recorded or shown may be read by others, so both are taken out of it. Only
servers that can ask for a password are given one by an address. Buckets are not among them: there
`KEY:SECRET@bucket` would be the name of a bucket that nobody has.
"""

from __future__ import annotations

import os
import re
from typing import Any

from terrafm.errors import UsageError

HIDDEN = "***"
"""What stands in a query in place of a signature."""

_ASKS_PASSWORDS = ("http", "https", "ftp", "sftp", "ssh", "smb", "webhdfs")
_SCHEME = r"[a-zA-Z][a-zA-Z0-9+.-]*://"
# Not a port, no address of IPv6, and no ARN of an access point of S3: those have colons as well.
_NO_USER = r"(?!\[|arn:|[^\s/:@\"'<>]*:\d{1,5}(?:[/?#]|$))"
# People forget to encode slashes: a secret key of AWS holds them.
_UP_TO_AT = r"(?:[^\s/\"'<>]*@|[^\s@\"'<>]*@)"
_USER_AND_PASSWORD = re.compile(rf"({_SCHEME}){_NO_USER}[^\s/:@\"'<>]*:{_UP_TO_AT}")
# A token may stand alone. In `abfs://container@account` it is part of the place.
_USER = re.compile(r"(https?://)[^\s/:@\"'<>?#]+@", re.IGNORECASE)
_SIGNATURE = re.compile(
    r"(?<=[?&;])("
    r"x-(?:amz|goog|oss|cos|obs)-(?:signature|credential|security-token)|(?:google|aws)accesskeyid|"
    r"signature|sig|key-pair-id|policy|token|access_?token|auth_?token|sas_?token|session_?token|"
    r"api_?key|apikey|subscription-key|password|passwd|secret|client_secret|authorization"
    r")=[^\s&;#\"'<>\\)]+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in which addresses have lost users with passwords, and the signatures of queries."""
    if "://" not in text:
        return text
    text = _USER.sub(r"\1", _USER_AND_PASSWORD.sub(r"\1", text))
    return _SIGNATURE.sub(rf"\1={HIDDEN}", text)


def recorded(value: Any) -> Any:
    """Plain values as they may be recorded: every text in them as `without_secrets` has it."""
    if isinstance(value, str):
        return without_secrets(value)
    if isinstance(value, dict):
        return {key: recorded(one) for key, one in value.items()}
    return [recorded(one) for one in value] if isinstance(value, list | tuple) else value


def check_address(uri: str | os.PathLike[str]) -> None:
    """Refuses an address whose user and password nobody would ask for; does not repeat them.

    Raises:
        UsageError: it is one.
    """
    uri = os.fspath(uri)
    found = _USER_AND_PASSWORD.search(uri)
    # stac+https:// is spoken to as https://.
    if found is None or found[1].lower()[:-3].removeprefix("stac+") in _ASKS_PASSWORDS:
        return
    raise UsageError(
        f"{without_secrets(uri)} was given with a key or password in it, where none is read: "
        "give credentials by the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or the "
        "files of the store's own tools"
    )


def check_shareable(words: list[str]) -> None:
    """Refuses words with secrets in addresses where others would read the words.

    Raises:
        UsageError: there is one.
    """
    for word in words:
        if (shown := without_secrets(word)) != word:
            raise UsageError(
                f"{shown} was given with a password or signature in it, which everyone on the "
                "cluster could read: give credentials to the cluster's machines instead"
            )
