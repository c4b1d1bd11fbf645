"""A Ray that one command starts for itself: on loopback, with a token and a folder of its own.

Ray by itself listens on every interface, keeps its files and sockets in a folder that all users of
the machine share, and makes `~/.ray/auth_token` readable to all of them.
"""

from __future__ import annotations

import atexit
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

from terrafm.clusters import state
from terrafm.clusters.local import LOOPBACK, LOOPBACK_ONLY, NO_METRICS
from terrafm.clusters.token import MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE

_PREFIX = "terrafm-"  # A number follows: of the process.
_VARIABLES = (MODE_VARIABLE, PATH_VARIABLE, TOKEN_VARIABLE, *LOOPBACK_ONLY, *NO_METRICS)

_folder: Path | None = None
_before: dict[str, str | None] = {}


def go_private() -> dict[str, Any]:
    """Has the Ray that this process starts next be reached by its own user only.

    Returns:
        Arguments of `ray.init`.
    """
    global _folder
    if _folder is None:
        _remove_left_over()
        _folder = Path(state.make_scratch(f"{_PREFIX}{os.getpid()}-"))
        state.make_token(_folder / "token")
        atexit.register(_remove, _folder)
    if not _before:
        _before.update({name: os.environ.get(name) for name in _VARIABLES})
    os.environ.pop(TOKEN_VARIABLE, None)
    os.environ.update({MODE_VARIABLE: "token", PATH_VARIABLE: str(_folder / "token")})
    os.environ.update(LOOPBACK_ONLY | NO_METRICS)
    ray_constants.ENABLE_RAY_CLUSTER = False
    _read_again()
    # Ray opens its folder to everyone: within a private one nobody comes to it.
    return {"_node_ip_address": LOOPBACK, "_temp_dir": str(_folder / "ray")}


def leave_private() -> None:
    """Undoes it, before this process joins a cluster."""
    if not _before:
        return
    for name, value in _before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    _before.clear()
    ray_constants.ENABLE_RAY_CLUSTER = True
    _read_again()


def _read_again() -> None:
    """Ray has read mode and token before."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _remove(folder: Path) -> None:
    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over() -> None:
    """Folders of this user's processes that were killed."""
    for left in Path(state.scratch_parent(f"{_PREFIX}{os.getpid()}-")).glob(f"{_PREFIX}*"):
        number = left.name.removeprefix(_PREFIX).partition("-")[0]
        with suppress(OSError):
            own = left.lstat().st_uid == os.getuid() and left.is_dir() and not left.is_symlink()
            if own and number.isdigit() and not psutil.pid_exists(int(number)):
                shutil.rmtree(left, ignore_errors=True)
