"""The page about embeddings: what they are, how they spread, what their neighbours look like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import TerraFMError
from terrafm.modalities import SENSOR_TITLES
from terrafm.pictures.colours import stretch, stretch_limits
from terrafm.pictures.strips import Pixels, beside, jpeg, resized
from terrafm.report.blocks import (
    Block,
    Chart,
    Curve,
    Facts,
    Level,
    Picture,
    Points,
    Section,
    Text,
    Verdict,
)
from terrafm.report.kinds import Target, Wanted
from terrafm.search.embeddings import Embeddings
from terrafm.search.nearest import Nearest, Neighbour
from terrafm.search.preview import Previews
from terrafm.search.previews import open_previews
from terrafm.search.spread import Spread

_SAMPLED, _CLASSES, _QUERIES, _NEIGHBOURS, _SIDE = 1500, 7, 6, 5, 128
# Of the dimensions: fewer directions carry nearly all there is.
_FLAT, _LEAST_RANK = 0.02, 3.0
_WITHOUT = "no class"


def embedding_sections(targets: Sequence[Target], wanted: Wanted) -> list[Section]:
    """Sections about folders of embeddings, for `terrafm report`."""
    sections = []
    for target in targets:
        prefix = f"{target.name}: " if len(targets) > 1 else ""
        sections += [
            replace(section, title=prefix + section.title)
            for section in _sections(Embeddings(target.uri), wanted.data)
        ]
    return sections


class _Sample:
    """Rows spread evenly over a folder, and the moments of all.

    Attributes:
        vectors: (n, D), comparable: standardised where the readout wants it.
        notes: of each, as `Embeddings.notes`.
        without_direction: rows of the folder that are zero or not finite.
    """

    def __init__(self, folder: Embeddings) -> None:
        every = max(1, len(folder) // _SAMPLED)
        spread = Spread(folder.manifest.dim)
        kept: list[NDArray[np.float32]] = []
        names: list[str] = []
        seen = self.without_direction = 0
        for ids, vectors in folder.vectors():
            norms = np.linalg.norm(vectors, axis=1)
            self.without_direction += int((~np.isfinite(norms) | (norms == 0)).sum())
            spread.add(vectors)
            rows = np.arange((-seen) % every, len(vectors), every)
            rows = rows[np.isfinite(norms[rows]) & (norms[rows] > 0)]
            kept.append(vectors[rows])
            names += [str(ids[row]) for row in rows.tolist()]
            seen += len(vectors)
        standardises = folder.manifest.needs_standardising
        self._make = spread.standardise if standardises else (lambda vectors: vectors)
        self.vectors = np.asarray(self._make(np.concatenate(kept)), np.float64)
        self.notes = folder.notes(names) if names else []

    def comparable(self, vectors: NDArray[np.floating]) -> NDArray[np.floating]:
        """Vectors such that their cosines mean something."""
        return self._make(vectors)


def _sections(folder: Embeddings, data: str | None) -> list[Section]:
    sample = _Sample(folder)
    facts = Section("Embeddings", [Facts(_facts(folder))])
    if len(sample.notes) < 3:
        return [replace(facts, blocks=[*facts.blocks, Text("Too few rows to say more.")])]
    unit = sample.vectors / np.linalg.norm(sample.vectors, axis=1, keepdims=True)
    centred = unit - unit.mean(0)
    scores, values, _ = np.linalg.svd(centred, full_matrices=False)
    share = values**2 / max(float((values**2).sum()), 1e-30)
    rank = float(np.exp(-(share * np.log(np.maximum(share, 1e-30))).sum()))
    groups, names = _groups(sample.notes)
    verdict = _verdict(folder, sample, rank)
    return [
        replace(facts, blocks=[verdict, *facts.blocks]),
        Section("Where", [_map(folder, sample, groups, names)]),
        Section("How they spread", [_plane(scores * values, groups, names), _directions(share)]),
        Section("Nearest neighbours of tiles of rare classes", _neighbours(folder, sample, data)),
    ]


def _verdict(folder: Embeddings, sample: _Sample, rank: float) -> Verdict:
    manifest = folder.manifest
    headline = f"{len(folder):,} vectors of {manifest.dim:,} numbers, effective rank {rank:.3g}"
    details = []
    flat = rank < max(_LEAST_RANK, _FLAT * manifest.dim)
    if flat:
        details.append("They use few directions, so neighbours may look arbitrary.")
    if sample.without_direction:
        details.append(f"{sample.without_direction:,} are zero or not finite and find nothing.")
    if manifest.skipped:
        details.append(f"{manifest.skipped:,} tiles had no pixel of the sensors asked for.")
    level: Level = "note" if flat or sample.without_direction else "good"
    return Verdict("", level, headline, details)


def _facts(folder: Embeddings) -> list[tuple[str, str]]:
    manifest = folder.manifest
    return [
        ("folder", folder.uri),
        ("model", manifest.model),
        ("weights", manifest.weights),
        ("embedded", manifest.data),
        ("sensors", ", ".join(SENSOR_TITLES.get(name, name) for name in manifest.modalities)),
        ("readout", manifest.readout.value),
        ("normalisation from", str(manifest.normalisation.get("source", "unknown"))),
        ("versions", ", ".join(f"{name} {v}" for name, v in manifest.versions.items())),
    ]


def _groups(notes: Sequence[dict[str, Any]]) -> tuple[list[int], list[str]]:
    """Number of the class of each tile, the most common first, and the classes' names."""
    classes = [str(note["land_cover_name"] or _WITHOUT) for note in notes]
    counts = Counter(classes)
    common = sorted(counts, key=lambda name: (-counts[name], name))
    if len(common) > _CLASSES + 1:
        common = [*common[:_CLASSES], "other classes"]
    places = {name: number for number, name in enumerate(common)}
    return [places.get(name, len(common) - 1) for name in classes], common


def _map(
    folder: Embeddings, sample: _Sample, groups: Sequence[int], names: Sequence[str]
) -> Points:
    points = [
        (float(note["longitude"]), float(note["latitude"]), 1, group)
        for note, group in zip(sample.notes, groups, strict=True)
    ]
    title = f"{len(points):,} of {len(folder):,} tiles"
    alt = f"Map of {title}, by class: {', '.join(names)}."
    return Points(title, points, names, alt)


def _plane(scores: NDArray[np.float64], groups: Sequence[int], names: Sequence[str]) -> Points:
    """Tiles in the plane of the two directions along which embeddings differ most."""
    # Both axes in one unit; the larger fills the frame.
    flat = scores[:, :2] / max(float(np.abs(scores[:, :2]).max()), 1e-12) * 100
    points = [
        (float(x), float(y), 1, group) for (x, y), group in zip(flat.tolist(), groups, strict=True)
    ]
    return Points(
        "The two main directions",
        points,
        names,
        f"Scatter of {len(points):,} tiles along the first two principal components, marked by "
        f"class: {', '.join(names)}. Classes that lie apart are told apart.",
        "Across: the first principal component of the unit vectors; upwards: the second. Tiles "
        "that lie close together are alike to the encoder.",
        coast=False,
    )


def _directions(share: NDArray[np.float64]) -> Chart:
    total = np.cumsum(share)
    total = total[: max(10, int(np.searchsorted(total, 0.999)) + 1)][:100]
    curve = Curve("cumulative share", [float(value) for value in total], points=len(total) < 30)
    note = (
        "Cumulative share of the variance in the first principal components; a curve that is soon "
        "at 1 means that few are used."
    )
    numbers = [float(n) for n in range(1, len(total) + 1)]
    return Chart(
        "Directions in use", numbers, [curve], "number of directions", note, limits=(0, 1.02)
    )


def _neighbours(folder: Embeddings, sample: _Sample, data: str | None) -> list[Block]:
    """Pictures of tiles of the rarest classes, each followed by its nearest neighbours."""
    counts = Counter(note["land_cover_name"] for note in sample.notes if note["land_cover_name"])
    rare = sorted(counts, key=lambda name: (counts[name], name))[:_QUERIES]
    first = {note["land_cover_name"]: n for n, note in reversed([*enumerate(sample.notes)])}
    rows = [first[name] for name in rare] or list(range(min(_QUERIES, len(sample.notes))))
    searches = [Nearest(sample.vectors[row], _NEIGHBOURS + 1) for row in rows]
    for ids, vectors in folder.vectors():
        made = sample.comparable(vectors)
        for search in searches:
            search.add(ids, made)
    found = [
        [n for n in search.best() if n.tile_id != sample.notes[row]["tile_id"]][:_NEIGHBOURS]
        for row, search in zip(rows, searches, strict=True)
    ]
    tiles = [
        [sample.notes[row], *folder.notes([n.tile_id for n in neighbours])]
        for row, neighbours in zip(rows, found, strict=True)
    ]
    previews, why = _open(folder, data, [tile for group in tiles for tile in group])
    blocks: list[Block] = [] if why is None else [Text(f"Without pictures: {why}", quiet=True)]
    for group, neighbours in zip(tiles, found, strict=True):
        blocks.append(_neighbour_block(group, neighbours, previews))
    return blocks


def _neighbour_block(
    tiles: Sequence[dict[str, Any]], neighbours: Sequence[Neighbour], previews: Previews | None
) -> Block:
    """A tile and its neighbours, as a picture where their pixels are at hand."""
    query = tiles[0]
    name = str(query["land_cover_name"] or query["tile_id"])
    alike = sum(tile["land_cover"] == query["land_cover"] for tile in tiles[1:])
    told = ", ".join(
        f"{tile['land_cover_name'] or tile['tile_id']} ({n.similarity:.2f})"
        for tile, n in zip(tiles[1:], neighbours, strict=True)
    )
    note = f"{alike} of {len(neighbours)} neighbours are of its class; cosine: {told}."
    if previews is None:
        return Text(f"{name}: {note}")
    try:
        content = jpeg(beside([_look(previews, tile) for tile in tiles]))
    except (OSError, TerraFMError) as error:
        return Text(f"{name}: {note} No picture: {error}")
    alt = f"Tile {query['tile_id']} of class {name}, then its nearest neighbours: {told}."
    return Picture(name, content, alt, note)


def _open(
    folder: Embeddings, data: str | None, tiles: Sequence[dict[str, Any]]
) -> tuple[Previews | None, str | None]:
    """Where pictures come from, or why there are none."""
    try:
        return open_previews(folder.manifest, data, tiles), None
    except (OSError, TerraFMError) as error:
        return None, str(error)


def _look(previews: Previews, tile: dict[str, Any]) -> Pixels:
    found = previews.preview(tile)
    if found is None:
        return np.full((_SIDE, _SIDE, 3), 200, np.uint8)
    shown = stretch(found.image, stretch_limits(found.image, found.modality))
    return resized((255 * shown).round().astype(np.uint8), _SIDE)
