"""What is asked of an archive of scenes: which grid, where, when, how many dates of a place."""

import json
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from shapely import from_geojson, to_geojson
from shapely.errors import ShapelyError
from shapely.geometry import box
from shapely.geometry.base import BaseGeometry
from shapely.ops import unary_union

from terrafm.config import IngestConfig
from terrafm.errors import UsageError
from terrafm.storage import parse_json, read_bytes

MGRS, MAJOR_TOM = "mgrs", "major-tom"
SIGNERS = {"planetary-computer": "https://planetarycomputer.microsoft.com/api/sas/v1"}
"""Interfaces that sign addresses, by name."""
_UTM = re.compile(r"utm:(\d{1,5})")
# Pixels of 60 m must not be split.
_STEP = 6
_LARGEST = 4096


@dataclass(frozen=True)
class SceneWords:
    """What a user types of a request; see `SceneRequest.parse`."""

    grid: str | None = None
    bbox: str | None = None
    geometry: str | None = None
    time: str | None = None
    sign: str | None = None


@dataclass(frozen=True)
class SceneRequest:
    """What to take of an archive of scenes.

    Attributes:
        grid: "mgrs", "major-tom" or "utm".
        pixels: side of a cell of the grid "utm", pixels of 10 m; else 0.
        area: where, WGS 84 degrees; None for everywhere.
        start, end: when, [start, end); None for any time.
        tile_size: side of a tile, pixels of 10 m.
        dates_per_place: most dates of one cell.
        sign: address of the interface that signs addresses of pixels, or "".
        max_cloud_cover, max_gap_days, max_nodata: as in `IngestConfig`; they rank scenes, and
            leave out cells of which no tile can have enough pixels.
    """

    grid: str = MGRS
    pixels: int = 0
    area: BaseGeometry | None = None
    start: datetime | None = None
    end: datetime | None = None
    tile_size: int = 534
    dates_per_place: int = 1
    max_cloud_cover: float | None = None
    max_gap_days: float | None = None
    max_nodata: float = 0.5
    sign: str = ""

    @classmethod
    def parse(
        cls, words: SceneWords, tile_size: int = 534, config: IngestConfig | None = None
    ) -> "SceneRequest":
        """Reads what a user types.

        Args:
            words: `grid` "mgrs", "major-tom" or "utm:PIXELS"; `bbox` "WEST,SOUTH,EAST,NORTH" in
                degrees, across the antimeridian where west is the larger; `geometry` URI of a
                GeoJSON file of polygons in degrees; `time` "START/END", dates or times of ISO
                8601, of which an end that is a date is included, and one may be ".."; `sign`
                "planetary-computer", or the address of an interface like its own.
            tile_size: side of a tile, pixels of 10 m.
            config: settings.

        Raises:
            UsageError: one of them is not of its form.
        """
        config = config or IngestConfig()
        name, pixels = _grid(words.grid or MGRS, tile_size)
        start, end = _interval(words.time) if words.time else (None, None)
        areas = [_box(words.bbox)] if words.bbox else []
        areas += [_polygons(words.geometry)] if words.geometry else []
        area = areas[0].intersection(areas[-1]) if areas else None
        if area is not None and area.is_empty:
            raise UsageError(
                f"--bbox {words.bbox} and --geometry {words.geometry} have no ground in common"
            )
        return cls(
            name, pixels, area, start, end, tile_size, config.dates_per_place,
            config.max_cloud_cover, config.max_gap_days, config.max_nodata,
            SIGNERS.get(words.sign or "", words.sign or ""),
        )  # fmt: skip

    def to_json(self) -> dict[str, Any]:
        """What makes the tiles of the same archive others, for the report and a repeated ingest."""
        return {
            "grid": f"{self.grid}:{self.pixels}" if self.pixels else self.grid,
            "area": None if self.area is None else json.loads(to_geojson(self.area)),
            "time": [None if t is None else t.isoformat() for t in (self.start, self.end)],
            "dates_per_place": self.dates_per_place,
        }

    def includes_time(self, time: datetime | None) -> bool:
        """Whether a time is asked for; one that is not known is, unless a time is asked for."""
        if time is None:
            return self.start is None and self.end is None
        after = self.start is None or self.start <= time
        return after and (self.end is None or time < self.end)


def scene_request(
    source: str, words: SceneWords | None, tile_size: int, config: IngestConfig
) -> SceneRequest | None:
    """The request of a source of scenes; None of any other.

    Raises:
        UsageError: something of it is asked of another source, or is not of its form.
    """
    from terrafm.data.sources.registry import reads_scenes, scene_sources

    words = words or SceneWords()
    if reads_scenes(source):
        if words.sign is not None and source != "stac":
            raise UsageError(f"--sign: --source {source} has no addresses to sign; stac has")
        return SceneRequest.parse(words, tile_size, config)
    given = [f"--{name}" for name, value in asdict(words).items() if value is not None]
    given += ["ingest.dates_per_place"] if config.dates_per_place != 1 else []
    if given:
        raise UsageError(
            f"{', '.join(given)}: --source {source} has cells of its own; this is for sources of "
            f"scenes ({', '.join(scene_sources())})"
        )
    return None


def _grid(text: str, tile_size: int) -> tuple[str, int]:
    if text in (MGRS, MAJOR_TOM):
        return text, 0
    found = _UTM.fullmatch(text)
    if found is None:
        raise UsageError(f"--grid takes {MGRS}, {MAJOR_TOM} or utm:PIXELS such as utm:1068, "
                         f"not {text!r}")  # fmt: skip
    pixels = int(found.group(1))
    if pixels % _STEP or not tile_size <= pixels <= _LARGEST:
        raise UsageError(
            f"--grid {text}: cells must have a multiple of {_STEP} pixels (60 m bands), from "
            f"--tile-size {tile_size} to {_LARGEST}"
        )
    return "utm", pixels


def _box(text: str) -> BaseGeometry:
    try:
        west, south, east, north = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--bbox takes WEST,SOUTH,EAST,NORTH in degrees, not {text!r}") from None
    if not (-180 <= west <= 180 and -180 <= east <= 180 and -90 <= south < north <= 90):
        raise UsageError(
            f"--bbox {text} is no place: WEST,SOUTH,EAST,NORTH in degrees, south below north"
        )
    if west < east:
        return box(west, south, east, north)
    return unary_union([box(west, south, 180, north), box(-180, south, east, north)])


def _polygons(uri: str) -> BaseGeometry:
    try:
        content = parse_json(read_bytes(uri))
        members = content.get("features", [content]) if isinstance(content, dict) else []
        shapes = [from_geojson(json.dumps(m.get("geometry", m))) for m in members]
    except FileNotFoundError:
        raise UsageError(f"geometry {uri} does not exist") from None
    except (OSError, ValueError, AttributeError, ShapelyError) as error:
        raise UsageError(f"geometry {uri} is not GeoJSON: {error}") from None
    if not shapes or any(s is None or not s.area for s in shapes):
        raise UsageError(f"geometry {uri} holds no polygon, or something that is none")
    west, south, east, north = (area := unary_union(shapes)).bounds
    if not (west >= -180 and east <= 180 and south >= -90 and north <= 90 and area.is_valid):
        raise UsageError(f"geometry {uri} is no valid polygon in degrees of WGS 84")
    return area


def _interval(text: str) -> tuple[datetime | None, datetime | None]:
    first, slash, last = text.partition("/")
    if not slash:
        first = last = text
    start, end = _time(first, text, is_end=False), _time(last, text, is_end=True)
    if start is not None and end is not None and end <= start:
        raise UsageError(f"--time {text} ends before it begins")
    return start, end


def _time(word: str, text: str, *, is_end: bool) -> datetime | None:
    if word in ("", ".."):
        return None
    try:
        time = datetime.fromisoformat(word)
    except ValueError:
        raise UsageError(f"--time takes START/END such as 2021-05-01/2021-09-30, not {text!r}"
                         ) from None  # fmt: skip
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    # A day is included.
    return time + timedelta(days=1) if is_end and len(word) <= len("2021-05-01") else time
