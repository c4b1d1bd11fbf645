"""Archive layouts by name, and those of other packages.

Sources of scenes are made from (uri, modalities, request): they cut cells by a grid.

A layout of one's own is a class with `Source`'s methods, made from (uri, modalities). It is named
as "package.module:ClassName", or by a name that its package gives it as an entry point in the
group "terrafm.sources". docs/sources.md has a complete one.
"""

import inspect
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, cast

from terrafm.data.archive import Source
from terrafm.errors import UsageError
from terrafm.modalities import SENTINEL

if TYPE_CHECKING:
    # The command line lists the sources before anything that takes time is loaded.
    from terrafm.data.sources.scenes.request import SceneRequest

ENTRY_POINTS = "terrafm.sources"

# By import path: a layout's libraries are loaded when it is used.
_BUILT_IN = {
    "geotiff": "terrafm.data.sources.geotiff_folder:GeotiffFolder",
    "major-tom": "terrafm.data.sources.major_tom:MajorTom",
    "ssl4eo-s12": "terrafm.data.sources.ssl4eo_s12:Ssl4eoS12",
    "terramesh": "terrafm.data.sources.terramesh:TerraMesh",
    "bigearthnet": "terrafm.data.sources.bigearthnet:BigEarthNet",
}
_SCENES = {
    "safe": "terrafm.data.sources.safe:SafeArchive",
    "stac": "terrafm.data.sources.stac:StacItems",
    "eopf": "terrafm.data.sources.eopf:EopfArchive",
}
_SYNTHETIC = "synthetic"
# The layouts of which a folder can hold a sensor of another package.
_ANY_SENSOR = ("geotiff",)
_METHODS = ("layout", "cells", "read")


def source_names() -> tuple[str, ...]:
    """Names that `open_source` knows: the built-in ones, then those of installed packages."""
    installed = {point.name for point in entry_points(group=ENTRY_POINTS)}
    own = (*_BUILT_IN, *_SCENES, _SYNTHETIC)
    return (*own, *sorted(installed - set(own)))


def scene_sources() -> tuple[str, ...]:
    """Names of the sources of scenes."""
    return tuple(_SCENES)


def reads_scenes(name: str) -> bool:
    """Whether a source cuts scenes by a grid, and takes a `SceneRequest`."""
    return name in _SCENES


def open_source(
    name: str,
    uri: str,
    modalities: tuple[str, ...],
    workspace: str,
    request: "SceneRequest | None" = None,
) -> Source:
    """Opens an archive.

    Args:
        name: one of `source_names`, or "package.module:ClassName".
        uri: the archive, or the specification of a synthetic one.
        modalities: those to read.
        workspace: URI of a folder where a synthetic archive is written, under its own name.
        request: what to take of scenes; other sources take no notice of it.

    Raises:
        UsageError: no such source, or a specification that cannot be read.
    """
    others = [modality for modality in modalities if modality not in SENTINEL]
    if others and name in (*_BUILT_IN, *_SCENES, _SYNTHETIC) and name not in _ANY_SENSOR:
        raise UsageError(
            f"--source {name} reads {', '.join(SENTINEL)}: for {', '.join(others)} take "
            f"--source {' or '.join(_ANY_SENSOR)}, or a source of your own (docs/sources.md)"
        )
    if name == _SYNTHETIC:
        from terrafm.data.sources.synthetic import open_synthetic

        return open_synthetic(uri, modalities, workspace)
    if name in _SCENES:
        opened: Source = _load(_SCENES[name])(uri, modalities, request)
        return opened
    points = {point.name: point.value for point in entry_points(group=ENTRY_POINTS)}
    path = _BUILT_IN.get(name) or points.get(name) or (name if ":" in name else None)
    if path is None:
        raise UsageError(
            f"no source named {name!r}; sources: {', '.join(source_names())}, "
            "or package.module:ClassName"
        )
    return _load(path)(uri, modalities)


def _load(path: str) -> Callable[..., Source]:
    module_name, _, attribute = path.partition(":")
    try:
        found: Any = getattr(import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"cannot load the source {path}: {error}; install its package or set PYTHONPATH"
        ) from None
    absent = [m for m in _METHODS if not callable(getattr(found, m, None))]
    if not inspect.isclass(found) or absent:
        what = f"lacks {', '.join(absent)}()" if absent else "is not a class"
        wanted = ", ".join(f"{method}()" for method in _METHODS)
        raise UsageError(f"the source {path} {what}: a source is a class with {wanted}")
    return cast(Callable[..., Source], found)
