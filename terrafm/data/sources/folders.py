"""Which sensor a folder holds, by its name."""

from terrafm.storage import join, list_names

LAND_COVER = "land_cover"
WORLDCOVER = "worldcover"

_ALIASES = {
    "s1": "s1",
    "s1rtc": "s1",
    "s1grd": "s1",
    "sentinel1": "s1",
    "s2l1c": "s2_l1c",
    "l1c": "s2_l1c",
    "sentinel2l1c": "s2_l1c",
    "s2l2a": "s2_l2a",
    "l2a": "s2_l2a",
    "sentinel2l2a": "s2_l2a",
    "lulc": LAND_COVER,
    "landcover": LAND_COVER,
    "lc": LAND_COVER,
    "worldcover": WORLDCOVER,
}


def content_of(folder: str) -> str | None:
    """A modality's name, `LAND_COVER` (aligned rasters), `WORLDCOVER` (ESA's tiles), or None.

    Case and punctuation do not count, nor does the "Core-" before Major-TOM's names.
    """
    letters = "".join(c for c in folder.lower() if c.isalnum())
    return _ALIASES.get(letters) or _ALIASES.get(letters.removeprefix("core"))


def find_folders(uri: str) -> dict[str, str]:
    """What the folders directly under a URI hold: content -> URI, first name in order wins."""
    found: dict[str, str] = {}
    for name in list_names(uri):
        content = content_of(name)
        if content is not None:
            found.setdefault(content, join(uri, name))
    return found
