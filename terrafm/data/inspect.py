"""What a dataset holds, how it was made, and how it will be resampled."""

from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from terrafm.config import Config
from terrafm.data.land.climate import UNKNOWN
from terrafm.data.land.regions import region_codes, region_name
from terrafm.data.samples.plan import high_frequency_classes, make_plan
from terrafm.data.shards.dataset import Dataset
from terrafm.modalities import MODALITIES, OPTICAL
from terrafm.units import counted, human_bytes

_RULES = {"gap": "too far in time from the anchor", "clouds": "too cloudy"}
_SHOWN = 8


def inspect(uri: str, config: Config) -> dict[str, Any]:
    """Describes a dataset from its manifest and index, without reading a shard.

    Args:
        uri: the dataset's folder.
        config: settings of the resampling.

    Returns:
        JSON-able: uri, tiles, modalities, tiles_with (per modality), tile_size, gsd, groups,
        class_counts, class_counts_before_selection, resampled_class_counts,
        high_frequency_classes, legend, statistics (physical units), selection, decisions (offset
        and unit per product), archive (pairing, repeated cells), products_left_out (by limits),
        missing_bands (products without one), max_tiles (what it dropped), climate_counts,
        region_counts (by block, named), quarantine, worldcover_lacking (tile -> cells), settings,
        fingerprint, version, bytes.

    Raises:
        UsageError: there is no readable dataset, or the resampling settings cannot be met.
    """
    dataset = Dataset.open(uri)
    report = dataset.report
    before = report.get("class_counts_before_selection", {})
    with_modality = dataset.available.sum(axis=0)
    plan = make_plan(dataset, config)
    return {
        "uri": dataset.uri,
        "tiles": len(dataset),
        "modalities": list(dataset.modalities),
        "tiles_with": {
            name: int(count) for name, count in zip(dataset.modalities, with_modality, strict=True)
        },
        "tile_size": dataset.tile_size,
        "gsd": dataset.gsd,
        "groups": {group.name: list(group.bands) for group in dataset.groups},
        "class_counts": dataset.class_counts(),
        "class_counts_before_selection": {int(code): count for code, count in before.items()},
        "resampled_class_counts": plan.counts,
        "high_frequency_classes": list(
            high_frequency_classes(plan.sampled, config.loss.high_frequency_classes)
        ),
        "legend": dataset.legend,
        "statistics": dataset.statistics,
        "selection": report.get("selection", {}),
        "products_left_out": report.get("products_left_out", {}),
        "missing_bands": report.get("missing_bands", {}),
        "max_tiles": report.get("max_tiles", {}),
        "climate_counts": _counts(dataset.climate),
        "region_counts": {
            region_name(code): count
            for code, count in _counts(region_codes(dataset.latitude, dataset.longitude)).items()
        },
        "decisions": report.get("decisions", {}),
        "archive": report.get("archive", {}),
        "appended": report.get("appended", []),
        "quarantine": report.get("quarantine", {}),
        "worldcover_lacking": report.get("worldcover_lacking", {}),
        "settings": report.get("settings", {}),
        "fingerprint": dataset.fingerprint,
        "version": dataset.manifest.version,
        "bytes": dataset.bytes,
    }


def render(description: dict[str, Any]) -> RenderableType:
    """The result of `inspect` for the terminal."""
    parts: list[RenderableType] = [
        _overview(description),
        _classes(description),
        _sensors(description),
    ]
    if description["selection"]:
        parts.append(_origin(description))
    return Group(*parts)


def _counts(codes: NDArray[np.int32]) -> dict[int, int]:
    values, counts = np.unique(codes, return_counts=True)
    return {int(code): int(count) for code, count in zip(values, counts, strict=True)}


def _overview(d: dict[str, Any]) -> Text:
    side = d["tile_size"]
    return Text.assemble(
        (f"{d['uri']}\n", "bold"),
        f"{counted(d['tiles'], 'tile')} of {side} x {side} px at {d['gsd']} m "
        f"({side * d['gsd'] / 1000:g} km), {human_bytes(d['bytes'])}, version {d['version']}\n",
        (f"fingerprint {d['fingerprint']}\n", "dim"),
    )


def _classes(d: dict[str, Any]) -> Table:
    table = Table(title="Land cover (majority class of a tile)", title_justify="left")
    table.add_column("code", justify="right")
    table.add_column("class")
    selected = {int(code): n for code, n in d["max_tiles"].get("class_counts_before", {}).items()}
    names = ["archive", "before max_tiles", "tiles", "share", "one epoch"]
    for name in names if selected else [n for n in names if n != "before max_tiles"]:
        table.add_column(name, justify="right")
    before, after = d["class_counts_before_selection"], d["class_counts"]
    for code in sorted(set(before) | set(after)):
        count = after.get(code, 0)
        frequent = code in d["high_frequency_classes"]
        table.add_row(
            str(code),
            d["legend"].get(code, f"class {code}") + (" *" if frequent else ""),
            f"{before[code]:,}" if code in before else "",
            *([f"{selected.get(code, 0):,}"] if selected else []),
            f"{count:,}",
            f"{count / d['tiles']:.1%}",
            f"{d['resampled_class_counts'].get(code, 0):,}",
        )
    if d["high_frequency_classes"]:
        table.caption = "* high-frequency class of dual centering"
        table.caption_justify = "left"
    return table


def _sensors(d: dict[str, Any]) -> Table:
    table = Table(title="Sensors", title_justify="left")
    for name in ("modality", "tiles", "band", "mean", "std", "unit"):
        table.add_column(name, justify="right" if name in ("tiles", "mean", "std") else "left")
    for name in d["modalities"]:
        statistics = d["statistics"][name]
        for i, band in enumerate(statistics["bands"]):
            digits = 4 if MODALITIES[name].unit == "reflectance" else 2
            table.add_row(
                name if i == 0 else "",
                f"{d['tiles_with'][name]:,}" if i == 0 else "",
                band,
                f"{statistics['mean'][i]:.{digits}f}",
                f"{statistics['std'][i]:.{digits}f}",
                MODALITIES[name].unit,
                end_section=i == len(statistics["bands"]) - 1,
            )
    return table


def _origin(d: dict[str, Any]) -> Table:
    table = Table(title="How it was made", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column()
    # Whoever wrote the dataset may have left any of it out.
    counts = defaultdict[str, int](int, d["selection"])
    table.add_row("archive", _named(d["settings"]))
    table.add_row("cells", f"{counts['cells']:,}, {counted(counts['tiles_seen'], 'tile')}")
    table.add_row(
        "open sea",
        f"{counted(counts['water_only'], 'tile')}, {counts['water_only_dropped']:,} dropped",
    )
    for modality, rules in d["products_left_out"].items():
        lines = [f"{count:,} {_RULES.get(rule, rule)}" for rule, count in rules.items()]
        table.add_row(f"{modality} left out", "\n".join(lines))
    for modality, bands in d["missing_bands"].items():
        lines = [f"{band} in {count:,} products" for band, count in bands.items()]
        table.add_row(f"{modality} lacks", "\n".join(lines))
    if counts["tiles_over_limits"]:
        table.add_row("over limits", f"{counts['tiles_over_limits']:,} tiles dropped")
    if most := d["max_tiles"]:
        spread = ", ".join(most.get("spread", [])) or "nothing"
        dropped, before = most.get("tiles_dropped", 0), most.get("tiles_before", 0)
        table.add_row("max_tiles", f"{dropped:,} of {before:,} tiles dropped, spread over {spread}")
    table.add_row("edges", f"{counts['edge_pixels_dropped']:,} pixels that fill no tile, dropped")
    faults = {"tiles": 0, "faults": 0, **d["quarantine"]}
    table.add_row(
        "quarantine", f"{counted(faults['tiles'], 'tile')}, {counted(faults['faults'], 'fault')}"
    )
    if lacking := d["worldcover_lacking"]:
        table.add_row("cells without WorldCover tile", _listed(lacking))
    for modality, decisions in d["decisions"].items():
        lines = [
            f"{x['products']:,} x {x['unit']}"
            + (f", offset {x['offset']} by {x['reason']}" if modality in OPTICAL else "")
            + (f" (by {x['margin']:,} DN or more)" if "margin" in x else "")
            for x in decisions
        ]
        table.add_row(f"{modality} products", "\n".join(lines))
    _add_pairing(table, d["archive"])
    for more in d["appended"]:
        there = more["tiles_already_there"]
        table.add_row(
            f"version {more['version']}",
            f"{counted(more['tiles'], 'tile')} of {_named(more['settings'])}"
            + (f", {there:,} were there already" if there else ""),
        )
        _add_pairing(table, more["archive"])
    if set(d["climate_counts"]) != {UNKNOWN}:
        table.add_row("climate zones", _listed(d["climate_counts"]))
    table.add_row("regions", _listed(d["region_counts"]))
    return table


def _add_pairing(table: Table, archive: dict[str, Any]) -> None:
    for modality, pairs in archive.get("pairing", {}).items():
        cells = pairs.get("cells", 0)
        shares = [
            f"{pairs[key] / max(cells, 1):.0%} within {key.split('_')[1]} d"
            for key in pairs
            if key.startswith("within_")
        ]
        table.add_row(f"{modality} pairs", f"{cells:,}: " + ", ".join(shares))
    if scenes := archive.get("scenes", {}):
        table.add_row(
            "scenes", ", ".join(f"{n:,} {k.replace('_', ' ')}" for k, n in scenes.items())
        )
    repeated = archive.get("repeated_cells", {})
    if any(repeated.values()):
        table.add_row("repeated cells", ", ".join(f"{m} {n:,}" for m, n in repeated.items()))


def _named(settings: dict[str, Any]) -> str:
    return f"{settings.get('source', 'unknown')} {settings.get('input', '')}"


def _listed(counts: dict[Any, int]) -> str:
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    lines = [f"{name}: {count:,}" for name, count in ordered[:_SHOWN]]
    if len(ordered) > _SHOWN:
        rest = sum(count for _, count in ordered[_SHOWN:])
        lines.append(f"{len(ordered) - _SHOWN} others: {rest:,}")
    return "\n".join(lines)
