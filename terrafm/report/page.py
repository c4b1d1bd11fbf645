"""Writes blocks as one HTML file that needs no network, no server and no file beside it."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from itertools import groupby
from typing import Any

import jinja2
from markupsafe import Markup, escape

import terrafm
from terrafm.report.blocks import Block, Cell, Chart, Points, Section, Table
from terrafm.storage import write_bytes
from terrafm.units import shown_number

MOST_BYTES = 5_000_000
"""Of a page; what is drawn into it is bounded so that it stays below."""
# In the table beside a chart.
_TABLE_ROWS = 12
# Of a text, of a chart's name, and of a file that is shown as it is.
_LONGEST, _LONGEST_LABEL, _LONGEST_SOURCE = 600, 120, 50_000
_SIDE_BY_SIDE = {"chart", "verdict", "picture", "shares"}


@dataclass(frozen=True)
class Page:
    """A page.

    Attributes:
        title: of it.
        subtitle: one line below.
        sections: in order.
        refresh: seconds after which a browser loads it again; None for a page that stays.
        written: when it was made.
    """

    title: str
    subtitle: str
    sections: Sequence[Section]
    refresh: int | None = None
    written: str = ""

    @property
    def charts(self) -> bool:
        """Whether any is on it."""
        return any(isinstance(b, Chart) for s in self.sections for b in s.blocks)

    @property
    def maps(self) -> bool:
        """Whether any is on it."""
        return any(isinstance(b, Points) and b.coast for s in self.sections for b in s.blocks)


def write_page(uri: str, page: Page) -> int:
    """Writes a page, whole or not at all.

    Returns:
        Its size in bytes.
    """
    content = render(page).encode("utf-8", "replace")
    write_bytes(uri, content)
    return len(content)


def render(page: Page) -> str:
    """A page as HTML."""
    written = page.written or datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    shown = Page(page.title, page.subtitle, page.sections, page.refresh, written)
    return _template().render(page=shown, version=terrafm.__version__).lstrip()


@cache
def _template() -> jinja2.Template:
    scripts = [_asset("uPlot.iife.min.js"), _asset("page.js")]
    follows = _asset("follow.js")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, finalize=_bounded
    )
    environment.globals |= {
        "as_table": as_table,
        # Markup: these files are part of the package.
        "css": Markup(_asset("uPlot.min.css") + _asset("page.css")),  # nosec B704
        "scripts": [Markup(script) for script in scripts],  # nosec B704
        "follows": Markup(follows),  # nosec B704
        "script_sources": " ".join(map(_script_source, [*scripts, follows])),
        "data_uri": _data_uri,
        "land": Markup(_asset("land.path").strip()),  # nosec B704
        "long": lambda text: escape(text[:_LONGEST_SOURCE]),
        "marker": _marker,
        "numeric": _numeric_columns,
        "percent": lambda value, largest: f"{100 * value / largest if largest else 0:.1f}",
        "rounded_percent": lambda share: "< 1 %" if 0 < share < 0.01 else f"{100 * share:.0f} %",
        "rows": _rows,
        "shown": _shown,
        "spec": _spec,
        "summary": summary,
    }
    source = (resources.files("terrafm.report") / "page.html.j2").read_text("utf-8")
    return environment.from_string(source)


def _asset(name: str) -> str:
    return (resources.files("terrafm.report") / "assets" / name).read_text("utf-8")


def _bounded(value: Any) -> Any:
    """A stranger's text as long as a reader takes it in."""
    if type(value) is str and len(value) > _LONGEST:
        return f"{value[:_LONGEST]}..."
    return value


def _script_source(script: str) -> str:
    """A script for the page's security policy, which lets no other run: not one in a name."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _rows(section: Section) -> Iterator[list[Block]]:
    """Blocks of a section; charts and the like that follow each other stand side by side."""
    for kind, blocks in groupby(section.blocks, key=lambda block: block.kind):
        if kind in _SIDE_BY_SIDE:
            yield list(blocks)
        else:
            yield from ([block] for block in blocks)


def _numeric_columns(table: Table) -> set[int]:
    """Columns whose cells are numbers, as far as there are any."""
    found = set()
    for number in range(len(table.columns)):
        cells = [row[number] for row in table.rows if row[number] is not None]
        if cells and all(isinstance(cell, int | float) for cell in cells):
            found.add(number)
    return found


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    return cell if isinstance(cell, str) else shown_number(cell)


def _data_uri(content: bytes) -> Markup:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    # The alphabet of base64 has no markup.
    uri = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Markup(uri)  # nosec B704


def _marker(x: float, y: float, count: int, group: int, scale: float = 1.0) -> Markup:
    """A mark of a map, larger where more is; groups differ in shape as well as in colour."""
    r = scale * (1.1 + 0.45 * math.log10(max(count, 1)))
    x, y = round(float(x), 3), round(-float(y), 3)
    shapes = (
        f"M{x - r:.3f} {y:.3f}a{r:.3f} {r:.3f} 0 1 0 {2 * r:.3f} 0a{r:.3f} {r:.3f} 0 1 0 "
        f"{-2 * r:.3f} 0z",
        f"M{x - r:.3f} {y - r:.3f}h{2 * r:.3f}v{2 * r:.3f}h{-2 * r:.3f}z",
        f"M{x:.3f} {y - r:.3f}l{r:.3f} {2 * r:.3f}h{-2 * r:.3f}z",
        f"M{x:.3f} {y - r:.3f}l{r:.3f} {r:.3f}l{-r:.3f} {r:.3f}l{-r:.3f} {-r:.3f}z",
    )
    # Numbers only.
    return Markup(f'<path d="{shapes[group % len(shapes)]}"/>')  # nosec B704


def _spec(chart: Chart) -> dict[str, Any]:
    """A chart for page.js."""
    return {
        "x": list(map(_short, chart.x)),
        "xTitle": chart.x_title,
        "limits": list(chart.limits),
        "level": chart.level,
        "marks": [
            {"x": m.x, "until": m.until, "label": m.label[:_LONGEST], "level": m.level}
            for m in chart.marks
        ],
        "curves": [
            {
                "label": c.label[:_LONGEST_LABEL],
                "values": list(map(_short, c.values)),
                "low": c.low and list(map(_short, c.low)),
                "high": c.high and list(map(_short, c.high)),
                "colour": c.colour % 8,
                "dash": c.dash,
                "faint": c.faint,
                "points": c.points,
                "stepped": c.stepped,
            }
            for c in chart.curves
        ],
    }


def _short(value: float | None) -> float | int | None:
    """Five digits are more than a screen shows; times and steps are kept whole."""
    if value is None or not math.isfinite(value):
        return None
    if float(value).is_integer():
        return int(value)
    return round(value, 1) if abs(value) >= 10_000 else float(f"{value:.5g}")


def summary(chart: Chart) -> str:
    """A chart in a sentence, for those who do not see it."""
    parts = []
    for curve in chart.curves:
        known = [v for v in curve.values if v is not None and math.isfinite(v)]
        if curve.faint or not known:
            continue
        parts.append(
            f"{curve.label} from {shown_number(known[0])} to {shown_number(known[-1])}, "
            f"lowest {shown_number(min(known))}, highest {shown_number(max(known))}"
        )
    return f"{chart.title} over {chart.x_title}: {'; '.join(parts) or 'no values'}."


def as_table(chart: Chart) -> Table:
    """A few rows of a chart as a table."""
    curves = [curve for curve in chart.curves if not curve.faint]
    wanted = [
        i for i in range(len(chart.x)) if any(curve.values[i] is not None for curve in curves)
    ]
    step = max(1, (len(wanted) - 1) // (_TABLE_ROWS - 1))
    picked = sorted({*wanted[::step], *wanted[-1:]})
    rows: list[list[Cell]] = [
        [_shown_x(chart, chart.x[i]), *(_with_interval(curve, i) for curve in curves)]
        for i in picked
    ]
    return Table(chart.title, [chart.x_title, *(curve.label for curve in curves)], rows)


def _shown_x(chart: Chart, x: float) -> Cell:
    if chart.x_title == "time":
        return datetime.fromtimestamp(x, UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{x:,.0f}" if chart.x_title == "step" else x


def _with_interval(curve: Any, i: int) -> Cell:
    value = curve.values[i]
    if value is None or curve.low is None or curve.low[i] is None:
        return None if value is None else float(value)
    return f"{value:.3f} ({curve.low[i]:.3f} to {curve.high[i]:.3f})"
