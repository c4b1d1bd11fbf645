"""The token of a cluster: found where Ray looks for it, told to Ray, never printed."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from terrafm.errors import UnreadableFileError, UsageError

_MOST_BYTES = 1 << 16

# Names of variables, not a secret.
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # nosec B105
PATH_VARIABLE = "RAY_AUTH_TOKEN_PATH"
MODE_VARIABLE = "RAY_AUTH_MODE"
HOW_TO_GIVE = f"name its file in {PATH_VARIABLE}, or put the token itself into {TOKEN_VARIABLE}"


@dataclass(frozen=True)
class Token:
    """A cluster's secret.

    Attributes:
        value: the secret; left out of what is printed.
        origin: where it was found, as a person would say it.
    """

    value: str = field(repr=False)
    origin: str

    @property
    def headers(self) -> dict[str, str]:
        """Of an HTTP request that carries it."""
        return {"Authorization": f"Bearer {self.value}"}


def find_token() -> Token | None:
    """The token that Ray would use: environment, named file, then `~/.ray/auth_token`.

    Returns:
        None where there is none, or where RAY_AUTH_MODE turns tokens off.

    Raises:
        UsageError: RAY_AUTH_TOKEN_PATH names a file that cannot be read, or an empty one.
    """
    if os.environ.get(MODE_VARIABLE, "token").lower() != "token":
        return None
    if value := os.environ.get(TOKEN_VARIABLE, "").strip():
        return Token(value, TOKEN_VARIABLE)
    if named := os.environ.get(PATH_VARIABLE):
        return Token(read_token(Path(os.path.expanduser(named))), f"{PATH_VARIABLE}={named}")
    home = home_folder()
    default = None if home is None else home / ".ray" / "auth_token"
    return Token(read_token(default), str(default)) if default and _is_file(default) else None


def turn_on() -> Token | None:
    """Has Ray send the token from this process, and from those that it starts.

    Ray reads the mode when it is imported.

    Raises:
        UsageError: as `find_token`.
    """
    token = find_token()
    if token is not None:
        os.environ.setdefault(MODE_VARIABLE, "token")
    return token


def home_folder() -> Path | None:
    """The user's; None in containers whose user has no name, and so no home."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _is_file(path: Path) -> bool:
    # A home that is closed to its user, another's for one, holds nothing for it.
    try:
        return path.is_file()
    except OSError:
        return False


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        UsageError: there is none, or it is empty or no regular file.
    """
    # Only here: commands that need no token start without the clients of object stores.
    from terrafm.storage.local import read_regular

    try:
        value = read_regular(str(path), _MOST_BYTES).decode().strip()
    except UnreadableFileError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not a text"
        raise UsageError(f"cannot read the token in {path} ({reason}): {HOW_TO_GIVE}") from None
    if not value:
        raise UsageError(f"the token in {path} is empty: {HOW_TO_GIVE}")
    return value
