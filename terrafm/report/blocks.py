"""What a page is made of: sections of texts, tables, charts and pictures.

Whoever describes something builds these; only `terrafm.report.page` knows HTML. Texts are plain:
they are escaped where the page is written.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

# Below the first, coastlines of 1:110 million have no detail; above the second it is the world.
_LEAST_DEGREES, _MOST_DEGREES = 24.0, 150.0

Level = Literal["good", "note", "bad"]
Cell = str | int | float | None


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Attributes:
        text: of it.
        quiet: it explains, and may be passed over.
    """

    kind: ClassVar[str] = "text"
    text: str
    quiet: bool = False


@dataclass(frozen=True)
class Verdict:
    """What a reader should know first.

    Attributes:
        name: of what is judged; empty on a page about one thing.
        level: "good", "note" (to be looked at) or "bad".
        headline: a few words.
        details: sentences below it.
        done: share of the work that is done, 0..1; None where nothing is under way.
    """

    kind: ClassVar[str] = "verdict"
    name: str
    level: Level
    headline: str
    details: Sequence[str] = ()
    done: float | None = None


@dataclass(frozen=True)
class Facts:
    """Names and values."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        title: what it shows.
        columns: titles; a column whose cells are numbers is set to the right.
        rows: cells; None is an empty one.
        marked: numbers of rows that stand out.
        folded: shown only when it is asked for.
        bars: column number -> largest value: its cells are drawn as bars too.
    """

    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    marked: Collection[int] = ()
    folded: bool = False
    bars: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Heat:
    """A small matrix of shares, darker where they are larger.

    Attributes:
        title: what it shows.
        corner: what rows and columns are.
        rows, columns: their names.
        values: (rows, columns), 0..1; None where there is none.
        notes: (rows, columns) small print below each value.
    """

    kind: ClassVar[str] = "heat"
    title: str
    corner: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]
    notes: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: its name.
        values: one for each x of the chart; None where there is none.
        colour: number of its colour.
        dash: number of its dash pattern, 0 is a solid line.
        faint: raw values behind a smoothed curve, which has the label.
        low, high: of intervals around the values.
        points: marks at the values, for few of them.
        stepped: it keeps each value until the next.
    """

    label: str
    values: Sequence[float | None]
    colour: int = 0
    dash: int = 0
    faint: bool = False
    low: Sequence[float | None] | None = None
    high: Sequence[float | None] | None = None
    points: bool = False
    stepped: bool = False


@dataclass(frozen=True)
class Mark:
    """Something that happened at one x of a chart, or from `x` to `until`."""

    x: float
    label: str
    level: Level = "note"
    until: float | None = None


@dataclass(frozen=True)
class Chart:
    """Curves over a common x.

    Attributes:
        title: what it shows.
        x: rising values.
        curves: over them.
        x_title: of the axis; "time" has seconds since 1970, shown in UTC.
        note: one sentence that helps to read it.
        marks: events.
        limits: of the vertical axis; None fits it to the values.
        level: a horizontal line, with its name.
    """

    kind: ClassVar[str] = "chart"
    title: str
    x: Sequence[float]
    curves: Sequence[Curve]
    x_title: str = "step"
    note: str = ""
    marks: Sequence[Mark] = ()
    limits: tuple[float | None, float | None] = (None, None)
    level: tuple[float, str] | None = None


@dataclass(frozen=True)
class Shares:
    """Parts of a whole as one bar: names and shares that add up to 1 at most."""

    kind: ClassVar[str] = "shares"
    title: str
    parts: Sequence[tuple[str, float]]
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """Pixels.

    Attributes:
        title: of the picture.
        content: of a PNG or JPEG file.
        alt: what a person sees on it, in words.
        note: below it.
    """

    kind: ClassVar[str] = "picture"
    title: str
    content: bytes
    alt: str
    note: str = ""


@dataclass(frozen=True)
class Points:
    """Points in a plane: on the coastlines of the world, or on nothing.

    Attributes:
        title: of the map.
        points: x, y (to the north), how many are there, number of the group.
        groups: their names.
        alt: what is to be seen, in words.
        note: below it.
        coast: x and y are longitude and latitude; otherwise any numbers, fitted to the frame.
    """

    kind: ClassVar[str] = "map"
    title: str
    points: Sequence[tuple[float, float, int, int]]
    groups: Sequence[str]
    alt: str
    note: str = ""
    coast: bool = True

    @property
    def box(self) -> tuple[float, float, float, float]:
        """West, north, width and height of what is shown, degrees, y downwards.

        The world, or of points close together their surroundings.
        """
        whole = (-180.0, -84.0, 360.0, 150.0)
        if not self.points:
            return whole
        xs, ys = [p[0] for p in self.points], [-p[1] for p in self.points]
        least = _LEAST_DEGREES if self.coast else 1e-9
        width = max(least, 1.1 * (max(xs) - min(xs)), 2.6 * (max(ys) - min(ys)))
        if not self.coast:
            left, top = (min(xs) + max(xs) - width) / 2, (min(ys) + max(ys) - width / 2.4) / 2
            return left, top, width, width / 2.4
        if width > _MOST_DEGREES:
            return whole
        height = width / 2.4
        west = min(max((min(xs) + max(xs) - width) / 2, -180.0), 180.0 - width)
        return west, (min(ys) + max(ys) - height) / 2, width, height


@dataclass(frozen=True)
class Source:
    """A file's text, shown when it is asked for."""

    kind: ClassVar[str] = "source"
    title: str
    text: str


Block = Text | Verdict | Facts | Table | Heat | Chart | Shares | Picture | Points | Source


@dataclass(frozen=True)
class Section:
    """A headline and what stands below it.

    Attributes:
        title: of the section.
        blocks: in order; charts and pictures next to each other share rows.
        note: one sentence below the headline.
    """

    title: str
    blocks: Sequence[Block]
    note: str = ""
