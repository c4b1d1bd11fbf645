"""Files of a product, in a folder or in a zip, by their paths inside it."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.opening import Driver
from terrafm.data.sources.raster import Grid
from terrafm.data.sources.scenes.scene import Layer
from terrafm.storage import join, list_names, read_bytes, read_range
from terrafm.storage.clutter import is_clutter
from terrafm.storage.limits import XML_BYTES
from terrafm.storage.zip_members import BadZipError, Member, list_members, read_member


@dataclass(frozen=True)
class ProductFiles:
    """A product's folder, or one folder of a zip.

    Attributes:
        uri: the folder, or the zip.
        members: of a zip, by path below the product's folder; None for a folder.
    """

    uri: str
    members: dict[str, Member] | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """Of the folder or zip, without its suffix."""
        stem = self.uri.rstrip("/").rpartition("/")[2]
        for suffix in (".zip", ".SAFE", ".safe", ".ZIP"):
            stem = stem.removesuffix(suffix)
        return stem

    @cached_property
    def _folders(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {"": set()}
        for path in self.members or ():
            parts = path.split("/")
            for depth, part in enumerate(parts):
                found.setdefault("/".join(parts[:depth]), set()).add(part)
        return found

    def names(self, folder: str = "") -> list[str]:
        """Names directly in a folder, sorted; empty where there is none."""
        if self.members is not None:
            found = self._folders.get(folder, set())
        else:
            found = set(list_names(join(self.uri, folder) if folder else self.uri))
            # A file lists as itself.
            found -= {folder.rpartition("/")[2]} if len(found) == 1 else set()
        return sorted(name for name in found if not is_clutter(name))

    def where(self, path: str) -> str:
        """A file, for messages."""
        return f"{self.uri.rstrip('/')}/{path}"

    def read(self, path: str, most: int | None = None) -> bytes:
        """A file of metadata, or its first bytes.

        Raises:
            BadCellError: it is missing, damaged, or larger than metadata are.
        """
        try:
            if self.members is not None:
                member = self.members.get(path)
                if member is None:
                    raise FileNotFoundError(path)
                return read_member(self.uri, member, XML_BYTES)[:most]
            if most is not None:
                return read_range(join(self.uri, path), 0, most)
            return read_bytes(join(self.uri, path), XML_BYTES)
        except (OSError, BadZipError) as error:
            missing = isinstance(error, FileNotFoundError)
            raise BadCellError(
                self.where(path), "file not found" if missing else str(error)
            ) from None

    def layer(self, path: str, grid: Grid | None = None, band: int = 1) -> Layer:
        """A raster of the product, not opened."""
        driver = Driver.JPEG_2000 if path.lower().endswith(".jp2") else Driver.GEOTIFF
        if self.members is not None:
            return Layer(self.uri, driver, self.members[path], band, grid)
        return Layer(join(self.uri, path), driver, None, band, grid)


def open_zip(uri: str) -> Iterator[tuple[str, ProductFiles]]:
    """The folders at the top of a zip, and each as a product; files beside them under "".

    Raises:
        BadCellError: it cannot be read.
    """
    try:
        members = list_members(uri)
    except (OSError, BadZipError) as error:
        raise BadCellError(uri, str(error)) from None
    tops: dict[str, dict[str, Member]] = {}
    for member in members:
        top, slash, rest = member.name.partition("/")
        tops.setdefault(top if slash else "", {})[rest if slash else top] = member
    for top, inside in sorted(tops.items()):
        if not is_clutter(top) or not top:
            yield top, ProductFiles(uri, inside)
