"""One table over several labelled sets: a line for each set and protocol, a column per encoder.

Each set is scored as `terrafm.eval.tables.compare` scores it alone; this lays the results beside
each other as Markdown, with all that a reader has to know of them below.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from terrafm.errors import UsageError
from terrafm.eval.datasets.compatibility import one_choice
from terrafm.eval.datasets.registry import open_set
from terrafm.eval.features.encoders import TIMM, TORCHGEO
from terrafm.eval.features.readouts import Readout
from terrafm.eval.finetune.training import Tell, prefixed
from terrafm.eval.probes.protocols import CLASS_PROTOCOLS, MASK_PROTOCOLS
from terrafm.eval.tables.common import (
    NAMES,
    CompareOptions,
    check_baselines,
    check_protocols,
)
from terrafm.eval.tables.compare import compare_opened
from terrafm.models.weights import load_encoder

# One number a line: of what is counted for each kind of set.
_METRICS = {"one label": "accuracy", "several labels": "map_macro", "segmentation": "miou"}
_NO_PEER = (
    "No pretrained model of another project is among these: the packages of timm and torchgeo "
    f"hold no weights. `--baseline {TORCHGEO}ResNet50_Weights.SENTINEL2_ALL_MOCO@FILE` adds one."
)
# Sets with masks have one untrained encoder, others several: one column.
_SEEDS = re.compile(r"(, \d+ seeds| \(seed \d+\))$")


def table_over(
    sets: Sequence[str | os.PathLike[str]],
    weights: Sequence[str | os.PathLike[str]],
    baselines: Sequence[str] = (),
    options: CompareOptions | None = None,
    tell: Tell = lambda _: None,
) -> dict[str, Any]:
    """Scores encoders on several sets.

    Args:
        sets: URIs of labelled sets, with classes or masks.
        weights: URIs of exported or released TerraFM weights.
        baselines: other encoders, as `compare` takes them; sets with masks are scored without.
        options: how. A protocol is run on the sets that it is for; the readout is that of sets
            with classes.
        tell: receives, in a few words, what is being done.

    Returns:
        JSON-able: "sets", each as `compare` gives it, and "markdown", the table.

    Raises:
        UsageError: an unreadable set, one whose sensors the weights do not know, one that none of
            the protocols is for, or as `compare`. All sets are looked at before one is scored.
    """
    options = options or CompareOptions()
    check_protocols(options)
    check_baselines(baselines)
    if not sets:
        raise UsageError("no labelled set: give --data, once for each")
    opened = [open_set(uri, options.open) for uri in sets]
    encoders = [load_encoder(os.fspath(uri)) for uri in weights]
    chosen = []
    for one in opened:
        for encoder in encoders:
            one_choice(encoder, one, options.inputs(one).modalities)
        chosen.append(_options_for(one, options))
    results = []
    for one, mine in zip(opened, chosen, strict=True):
        others = () if hasattr(one, "mask") else baselines
        found = compare_opened(one, weights, others, mine, prefixed(tell, f"{_name(one.uri)}: "))
        results.append(found)
    result = {"sets": results}
    return {**result, "markdown": markdown(result)}


def _options_for(opened: Any, options: CompareOptions) -> CompareOptions:
    """What of the options is for a set.

    Raises:
        UsageError: protocols were named, none of which is for it.
    """
    has_masks = hasattr(opened, "mask")
    fit = MASK_PROTOCOLS if has_masks else CLASS_PROTOCOLS
    protocols = [name for name in options.protocols or () if name in fit]
    if options.protocols and not protocols:
        what = "masks" if has_masks else "classes"
        raise UsageError(f"{opened.uri} has {what}: its protocols are {', '.join(fit)}")
    options = replace(options, protocols=protocols or None)
    return replace(options, readout=Readout.CLS) if has_masks else options


def markdown(result: dict[str, Any]) -> str:
    """The table of a result as Markdown, with its notes below.

    Args:
        result: as `table_over` gives it; "markdown" is not read.
    """
    sets = result["sets"]
    names = _names([one["data"] for one in sets])
    # Sets with masks lack some: the longest first keeps the weights last.
    longest = sorted(sets, key=lambda one: -len(one["rows"]))
    columns = list(dict.fromkeys(_column(row) for one in longest for row in one["rows"]))
    members = _members(sets)
    headings = [
        f"{_shown(title)}, {members[title]} seeds" if title in members else _shown(title)
        for title in columns
    ]
    lines = [
        f"| set | score, % | {' | '.join(headings)} |",
        f"|---|---|{'---|' * len(columns)}",
    ]
    for name, one in zip(names, sets, strict=True):
        metric = _METRICS[one["task"]]
        scored = {_column(row): row["protocols"] for row in one["rows"]}
        protocols = dict.fromkeys(p for found in scored.values() for p in found)
        for protocol in protocols:
            cells = [_cell(scored.get(title, {}).get(protocol), metric) for title in columns]
            label = f"{NAMES.get(protocol, protocol)}, {NAMES[metric]}"
            lines.append(f"| {name} | {label} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in _notes(names, sets))]) + "\n"


def _notes(names: Sequence[str], sets: Sequence[dict[str, Any]]) -> list[str]:
    first = sets[0]
    notes = [
        f"In brackets the 95 % bootstrap interval over images or places, {first['resamples']} "
        f"draws, seed {first['seed']}; readout {first['readout']}."
    ]
    for name, one in zip(names, sets, strict=True):
        sizes = one["image_size"]
        side = " or ".join(map(str, [sizes] if isinstance(sizes, int) else sizes))
        bands = "; ".join(f"{sensor} {text}" for sensor, text in one["bands"].items())
        notes.append(
            f"{name}: {one['n']} images scored, {len(one['classes'])} classes, {one['split']}; "
            f"resized to {side} pixels; {bands}."
        )
        notes += [f"{name}: {note}." for note in one["notes"]]
    notes += _seen(names, sets)
    if _members(sets):
        notes.append("Of several seeds: means of their scores and of their intervals.")
    if any(one["task"] == "segmentation" for one in sets):
        notes.append("Sets with masks: one untrained encoder, and no models of other projects.")
    if not any(row["title"].startswith((TIMM, TORCHGEO)) for one in sets for row in one["rows"]):
        notes.append(_NO_PEER)
    return notes


def _members(sets: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Columns that are the mean of several encoders, and of how many."""
    return {
        _column(row): scored["members"]
        for one in sets
        for row in one["rows"]
        for scored in row["protocols"].values()
        if "members" in scored
    }


def _seen(names: Sequence[str], sets: Sequence[dict[str, Any]]) -> list[str]:
    """What each encoder sees; where it differs between sets, of each."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, one in zip(names, sets, strict=True):
        for row in one["rows"]:
            found.setdefault(_column(row), {}).setdefault(row["seen"], []).append(name)
    return [
        f"{_shown(title)}{f' on {where}' if len(by) > 1 else ''}: {seen}."
        for title, by in found.items()
        for seen, where in ((seen, ", ".join(on)) for seen, on in by.items())
    ]


def _column(row: dict[str, Any]) -> str:
    return _SEEDS.sub("", row["title"])


def _shown(title: str) -> str:
    """A column's title: of weights and checkpoints the file's name alone."""
    head, at, uri = title.partition("@")
    if at:
        return f"{head}@{os.path.basename(uri)}"
    return os.path.basename(title.rstrip("/")) or title


def _cell(scored: dict[str, Any] | None, metric: str) -> str:
    if scored is None:
        return ""
    value, low, high = (100 * scored["scores"][metric][key] for key in ("value", "low", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _name(uri: str) -> str:
    """The last part of a set's URI; of `copernicus:NAME@FOLDER` its name."""
    return os.path.basename(uri.partition("@")[0].rstrip("/"))


def _names(uris: Sequence[str]) -> list[str]:
    """Of all sets: the whole URI where two would have one name."""
    short = [_name(uri) for uri in uris]
    return [uri if short.count(name) > 1 else name for uri, name in zip(uris, short, strict=True)]
