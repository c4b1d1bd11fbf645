"""The page about a dataset: where, what, when, how its bands lie, what was decided and left out."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from terrafm.config import Config
from terrafm.data.ingest.report import QUARANTINE
from terrafm.data.inspect import inspect
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError
from terrafm.modalities import MODALITIES, SENSOR_TITLES
from terrafm.report.blocks import (
    Block,
    Cell,
    Chart,
    Curve,
    Facts,
    Heat,
    Points,
    Section,
    Table,
    Text,
    Verdict,
)
from terrafm.report.kinds import Target, Wanted
from terrafm.report.quicklooks import quicklooks
from terrafm.report.reference_statistics import REFERENCE, REFERENCE_NAME
from terrafm.storage import join, list_names, parse_json, read_json_lines
from terrafm.storage.records import validated
from terrafm.units import human_bytes

# Marks of a map, tiles whose products are read, classes with a colour of their own.
_MOST_POINTS, _MOST_READ, _MOST_CLASSES = 4000, 5000, 7
_MOST_ROWS, _EXAMPLES = 60, 3
# Pictures of tiles of all datasets of a page together, which is to stay small.
_MOST_LOOKS = 24
_GAPS = (1.0, 4.0, 7.0, 30.0)
_FAR_STD = 1.0
_QUARANTINE = re.compile(r"quarantine(-\d+)?\.jsonl")


def dataset_sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    """Sections about datasets, for `terrafm report`."""
    sections = []
    for target in targets:
        prefix = f"{target.name}: " if len(targets) > 1 else ""
        sections += [
            replace(section, title=prefix + section.title)
            for section in _sections(target.uri, wanted.config, max(1, _MOST_LOOKS // len(targets)))
        ]
    return sections


def _sections(uri: str, config: Config, looks: int) -> list[Section]:
    dataset, about = Dataset.open(uri), inspect(uri, config)
    faults = _faults(uri)
    products = _products(dataset)
    found = [
        Section("Dataset", [_verdict(about, faults), Facts(_facts(about))]),
        Section("Where", [_map(dataset)]),
        Section("Classes", [_classes(about, config)]),
        Section("When", _dates(products, about)),
        Section("Bands", _bands(about)),
        Section("How products were read", [_decisions(about)]),
        Section("Quarantine", _quarantine(faults)),
        Section("Quick-looks", quicklooks(dataset, min(looks, 8))),
    ]
    return [section for section in found if section.blocks]


def _verdict(about: dict[str, Any], faults: list[dict[str, Any]]) -> Verdict:
    side = about["tile_size"] * about["gsd"] / 1000
    headline = f"{about['tiles']:,} tiles of {side:g} km, {human_bytes(about['bytes'])}"
    details = []
    counts = about["class_counts"]
    rare = [about["legend"].get(c, str(c)) for c, n in counts.items() if n < about["tiles"] / 100]
    if rare:
        details.append(f"Below 1 % of the tiles: {', '.join(rare[:8])}.")
    lost = sum(bool(fault.get("quarantined")) for fault in faults)
    if faults:
        details.append(f"{len(faults):,} faults in the archive, {lost:,} of which cost a tile.")
    far = _far(about)
    if far:
        details.append(
            f"{', '.join(far)}: the mean is more than {_FAR_STD:g} standard deviation from "
            f"{REFERENCE_NAME}'s. Other ground may explain it, and so may a wrong unit or offset."
        )
    return Verdict("", "note" if far or lost else "good", headline, details)


def _facts(about: dict[str, Any]) -> list[tuple[str, str]]:
    settings = about["settings"]
    side, gsd = about["tile_size"], about["gsd"]
    facts = [
        ("folder", about["uri"]),
        ("archive", f"{settings.get('source', 'unknown')} {settings.get('input', '')}"),
        ("version", str(about["version"])),
        ("fingerprint", about["fingerprint"][:16]),
        ("tile", f"{side} x {side} px at {gsd} m"),
    ]
    facts += [
        (SENSOR_TITLES.get(name, name), f"{about['tiles_with'][name]:,} tiles")
        for name in about["modalities"]
    ]
    if cells := about["selection"].get("cells"):
        facts.append(("cells", f"{cells:,}"))
    return facts


def _map(dataset: Dataset) -> Points:
    """Where the tiles lie; near ones of a class are one larger mark."""
    counts = dataset.class_counts()
    common = sorted(counts, key=lambda code: (-counts[code], code))
    groups = common[:_MOST_CLASSES] if len(common) > _MOST_CLASSES + 1 else common
    number = {code: n for n, code in enumerate(groups)}
    longitude, latitude = dataset.longitude, dataset.latitude
    group = np.array([number.get(code, len(groups)) for code in dataset.land_cover.tolist()])
    grid = 0.05
    while True:
        places = np.stack([longitude // grid, latitude // grid, group])
        _, first, count = np.unique(places, axis=1, return_index=True, return_counts=True)
        if len(first) <= _MOST_POINTS:
            break
        grid *= 2
    points = [
        (float(longitude[row]), float(latitude[row]), int(n), int(group[row]))
        for row, n in zip(first.tolist(), count.tolist(), strict=True)
        if math.isfinite(longitude[row]) and math.isfinite(latitude[row])
    ]
    names = [f"{dataset.legend.get(code, code)} ({counts[code]:,})" for code in groups]
    if rest := sum(counts[code] for code in common if code not in number):
        names.append(f"other classes ({rest:,})")
    spans = [f"{lo:.0f} to {hi:.0f}" for lo, hi in (_span(latitude), _span(longitude))]
    alt = (
        f"Map of {len(dataset):,} tiles between latitudes {spans[0]} and longitudes {spans[1]} "
        f"degrees; by class: {', '.join(names)}."
    )
    note = "A mark stands for tiles of one class that lie close together; larger ones for more."
    # Rare classes last, on top.
    return Points(f"{len(dataset):,} tiles by their majority class", points, names, alt, note)


def _span(values: Any) -> tuple[float, float]:
    return float(np.nanmin(values)), float(np.nanmax(values))


def _classes(about: dict[str, Any], config: Config) -> Table:
    before, after = about["class_counts"], about["resampled_class_counts"]
    archive = about["class_counts_before_selection"]
    codes = sorted({*before, *archive}, key=lambda code: (-before.get(code, 0), code))
    epoch = max(1, sum(after.values()))
    rows: list[list[Cell]] = [
        [
            str(about["legend"].get(code, f"class {code}")),
            "frequent" if code in about["high_frequency_classes"] else "",
            archive.get(code),
            before.get(code, 0),
            round(100 * before.get(code, 0) / about["tiles"], 2),
            after.get(code, 0),
            round(100 * after.get(code, 0) / epoch, 2),
        ]
        for code in codes[:_MOST_ROWS]
    ]
    exponent = config.data.resample_exponent
    title = (
        f"Tiles of each class, and samples of one epoch after resampling with exponent {exponent:g}"
    )
    columns = ["class", "group", "in the archive", "tiles", "% of tiles", "samples", "% of samples"]
    shares = [
        100 * n / whole
        for counts, whole in ((before, about["tiles"]), (after, epoch))
        for n in counts.values()
    ]
    largest = max(shares, default=1.0)
    return Table(title, columns, rows, bars={4: largest, 6: largest})


def _products(dataset: Dataset) -> list[dict[str, dict[str, Any]]]:
    """Products of tiles, evenly over the dataset where there are many."""
    rows = np.unique(np.linspace(0, len(dataset) - 1, min(len(dataset), _MOST_READ)).astype(int))
    found = []
    for text in dataset.rows.take(rows, ["products"])["products"].to_pylist():
        try:
            found.append(validated(parse_json(text), dict[str, dict[str, Any]]))
        except ValueError:
            # A tile without them is told by terrafm verify.
            continue
    return found


def _dates(products: list[dict[str, dict[str, Any]]], about: dict[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    months: dict[str, Counter[int]] = {}
    gaps: dict[tuple[str, str], list[float]] = {}
    for tile in products:
        times = {name: t for name in MODALITIES if (t := _time(tile.get(name, {}))) is not None}
        for name, moment in times.items():
            months.setdefault(name, Counter())[moment.year * 12 + moment.month - 1] += 1
        names = list(times)
        for n, one in enumerate(names):
            for other in names[n + 1 :]:
                seconds = abs((times[one] - times[other]).total_seconds())
                gaps.setdefault((one, other), []).append(seconds / 86400)
    if months:
        first, last = min(map(min, months.values())), max(map(max, months.values()))
        x = list(range(first, last + 2))
        curves = [
            Curve(
                SENSOR_TITLES[name],
                [float(counted.get(month, 0)) for month in x],
                n,
                n,
                stepped=True,
            )
            for n, (name, counted) in enumerate(months.items())
        ]
        starts = [datetime(m // 12, m % 12 + 1, 1, tzinfo=UTC).timestamp() for m in x]
        note = f"Of {len(products):,} tiles."
        limits = (0, None)
        blocks.append(Chart("Tiles by month", starts, curves, "time", note, limits=limits))
        calendar = [
            [
                sum(n for month, n in counted.items() if month % 12 == m) / sum(counted.values())
                for m in range(12)
            ]
            for counted in months.values()
        ]
        names = [datetime(2000, m + 1, 1, tzinfo=UTC).strftime("%b") for m in range(12)]
        titles = [SENSOR_TITLES[name] for name in months]
        empty = [[""] * 12 for _ in titles]
        blocks.append(
            Heat("Share of the tiles by season", "sensor", titles, names, calendar, empty)
        )
    rows: list[list[Cell]] = []
    for (one, other), days in gaps.items():
        within = [round(100 * float(np.mean(np.array(days) <= gap)), 1) for gap in _GAPS]
        title = f"{SENSOR_TITLES[one]} and {SENSOR_TITLES[other]}"
        rows.append([title, round(float(np.median(days)), 2), *within, round(max(days), 1)])
    if rows:
        columns = ["pair", "median, days", *(f"% within {gap:g} d" for gap in _GAPS), "longest"]
        blocks.append(Table("Time between the sensors of a tile", columns, rows))
    return blocks


def _time(product: dict[str, Any]) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(product.get("time")))
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _bands(about: dict[str, Any]) -> list[Block]:
    rows: list[list[Cell]] = []
    marked = set()
    for name in about["modalities"]:
        statistics = about["statistics"][name]
        for band, mean, std in zip(
            statistics["bands"], statistics["mean"], statistics["std"], strict=True
        ):
            reference = REFERENCE.get(name, {}).get(band)
            away = None if reference is None else (mean - reference[0]) / reference[1]
            if away is not None and abs(away) > _FAR_STD:
                marked.add(len(rows))
            rows.append(
                [
                    SENSOR_TITLES.get(name, name),
                    band,
                    MODALITIES[name].unit,
                    *(float(f"{value:.4g}") for value in (mean, std)),
                    *(
                        [None, None, None]
                        if reference is None or away is None
                        else [*(float(f"{value:.4g}") for value in reference), f"{away:+.2f}"]
                    ),
                ]
            )
    columns = [
        "sensor",
        "band",
        "unit",
        "mean",
        "std",
        "SSL4EO-S12 mean",
        "SSL4EO-S12 std",
        "difference, in its std",
    ]
    title = f"Bands beside {REFERENCE_NAME}"
    text = (
        f"{REFERENCE_NAME} are of places around cities in all continents, with little cloud. A "
        "band more than one of their standard deviations away is marked."
    )
    return [Table(title, columns, rows, marked=marked), Text(text, quiet=True)]


def _far(about: dict[str, Any]) -> list[str]:
    """Sensors most of whose bands are far from the reference."""
    far = []
    for name in about["modalities"]:
        statistics = about["statistics"][name]
        aways = [
            abs(mean - REFERENCE[name][band][0]) / REFERENCE[name][band][1]
            for band, mean in zip(statistics["bands"], statistics["mean"], strict=True)
            if band in REFERENCE.get(name, {})
        ]
        if aways and float(np.median(aways)) > _FAR_STD:
            far.append(SENSOR_TITLES.get(name, name))
    return far


def _decisions(about: dict[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, decisions in about["decisions"].items():
        for one in decisions:
            margin = one.get("margin")
            rows.append(
                [
                    SENSOR_TITLES.get(name, name),
                    one.get("products", 0),
                    str(one.get("unit", "")),
                    f"{one.get('offset', 0)}",
                    str(one.get("reason", "")),
                    None if margin is None else f"{margin:,} DN or more",
                ]
            )
    columns = ["sensor", "products", "unit", "offset removed, DN", "decided by", "margin"]
    return Table("Unit and offset of the products", columns, rows[:_MOST_ROWS])


def _faults(uri: str) -> list[dict[str, Any]]:
    """Lines of all quarantine lists of a dataset."""
    names = sorted({n for n in list_names(uri) if _QUARANTINE.fullmatch(n)} | {QUARANTINE})
    found: list[dict[str, Any]] = []
    for name in names:
        try:
            found += read_json_lines(join(uri, name))
        except (OSError, TerraFMError):
            continue
    return found


def _quarantine(faults: list[dict[str, Any]]) -> list[Block]:
    """Faults by cause, the most frequent first, with a few of each."""
    if not faults:
        return [Text("Nothing was set aside.")]
    causes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for fault in faults:
        # Two faults that differ in numbers alone have one cause.
        why = re.sub(r"[-+]?\d[\d.,]*", "#", str(fault.get("why", "")))[:120]
        causes.setdefault((str(fault.get("modality", "")), why), []).append(fault)
    ordered = sorted(causes.items(), key=lambda item: -len(item[1]))
    rows: list[list[Cell]] = []
    for (modality, _), group in ordered[:_MOST_ROWS]:
        examples = "; ".join(
            f"{fault.get('what', '')}: {fault.get('why', '')}"[:160] for fault in group[:_EXAMPLES]
        )
        lost = sum(bool(fault.get("quarantined")) for fault in group)
        rows.append([SENSOR_TITLES.get(modality, modality), len(group), lost, examples])
    return [Table("Faults by cause", ["sensor", "faults", "tiles lost", "examples"], rows)]
