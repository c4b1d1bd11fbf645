"""Packages that bear the name of a verb: `terrafm.embed(...)` beside `terrafm.embed.schema`.

Importing anything below `terrafm.embed` binds the package to that name, whatever function stood
there before. So the package itself can be called, and is the function of `terrafm.api`.
"""

from __future__ import annotations

import inspect
import sys
from importlib import import_module
from types import ModuleType
from typing import Any


class VerbPackage(ModuleType):
    """A package that is called as the function of its name in `terrafm.api`."""

    def _function(self) -> Any:
        # By its name: `terrafm.api` imports what lies in these packages.
        return getattr(import_module("terrafm.api"), self.__name__.rpartition(".")[2])

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As the function."""
        return self._function()(*arguments, **options)

    @property
    def __signature__(self) -> inspect.Signature:
        """For `help()` and editors."""
        return inspect.signature(self._function())

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        """The function's: the package's own stands in its file."""
        doc: str | None = self._function().__doc__
        return doc


def make_callable(name: str) -> None:
    """Makes the package of this name callable."""
    sys.modules[name].__class__ = VerbPackage
