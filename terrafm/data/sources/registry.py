"""Archive layouts by name. A new one is a class with `Source`'s methods and a line here."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict

from terrafm.data.sources.base import Source
from terrafm.data.sources.geotiff_folder import GeotiffFolder
from terrafm.data.sources.major_tom import MajorTom
from terrafm.data.sources.synthetic import SyntheticSpec, write_archive
from terrafm.errors import UsageError
from terrafm.storage import exists, is_local, join, resolve, write_bytes

_Factory = Callable[[str, tuple[str, ...], str], Source]


def source_names() -> tuple[str, ...]:
    """Names that `open_source` knows."""
    return tuple(_FACTORIES)


def open_source(name: str, uri: str, modalities: tuple[str, ...], workspace: str) -> Source:
    """Opens an archive.

    Args:
        name: "geotiff", "major-tom" or "synthetic".
        uri: the archive, or the specification of a synthetic one.
        modalities: those to read.
        workspace: URI of a folder where a synthetic archive is written, under its own name.

    Raises:
        UsageError: no such source, or a specification that cannot be read.
    """
    if name not in _FACTORIES:
        raise UsageError(f"no source named {name!r}; sources: {', '.join(_FACTORIES)}")
    return _FACTORIES[name](uri, modalities, workspace)


def _synthetic(uri: str, modalities: tuple[str, ...], workspace: str) -> Source:
    spec = SyntheticSpec.parse(uri)
    values = asdict(spec)
    archive = join(workspace, "-".join(f"{key}{value}" for key, value in values.items()))
    # Written last: without it the archive may have been cut short and is drawn again.
    seal = join(archive, "specification.json")
    if not exists(seal):
        if is_local(archive):
            write_archive(spec, resolve(archive)[1])
        else:
            filesystem, path = resolve(archive)
            with tempfile.TemporaryDirectory() as folder:
                write_archive(spec, folder)
                filesystem.put(f"{folder}/", f"{path}/", recursive=True)
        write_bytes(seal, json.dumps(values).encode())
    return MajorTom(archive, modalities)


_FACTORIES: dict[str, _Factory] = {
    "geotiff": lambda uri, modalities, _: GeotiffFolder(uri, modalities),
    "major-tom": lambda uri, modalities, _: MajorTom(uri, modalities),
    "synthetic": _synthetic,
}
