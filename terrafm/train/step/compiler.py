"""Whether this machine can compile what `train.compile` asks for."""

import os
import shutil
import socket

from terrafm.errors import UsageError

_COMPILERS = ("g++", "clang++", "c++", "gcc", "clang", "cc")


def check_compiler() -> None:
    """PyTorch calls one in the first step, for a GPU too, and fails at length without.

    Raises:
        UsageError: there is none.
    """
    named = (os.environ.get("CXX"), os.environ.get("CC"))
    if not any(map(shutil.which, filter(None, (*named, *_COMPILERS)))):
        raise UsageError(
            "train.compile needs a compiler on every machine that trains, and "
            f"{socket.gethostname()} has none: install g++, or set train.compile=false"
        )
