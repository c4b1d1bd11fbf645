"""Which scenes show a cell: filters, the newest processing of an acquisition, dates and pairs."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import shapely
from shapely.geometry.base import BaseGeometry

from terrafm.data.land.selection import ANCHORS
from terrafm.data.sources.scenes.grid import GridCell, unwrapped
from terrafm.data.sources.scenes.request import SceneRequest
from terrafm.data.sources.scenes.scene import Scene

_SAME_PASS_SECONDS = 600
# Of radar, whose rasters are wider than what was measured, so many stand by for a cell.
_RESERVES = 3
_FAR = float("inf")


@dataclass(frozen=True)
class Seen:
    """A scene over a cell.

    Attributes:
        scene: the scene.
        share: of the cell's ground that lies in its footprint.
    """

    scene: Scene
    share: float


@dataclass(frozen=True)
class CellScenes:
    """What is read of a cell: the picklable place of a `CellRef`.

    Attributes:
        cell: its ground.
        scenes: modality -> scenes, the first that measured enough of the cell is taken.
    """

    cell: GridCell
    scenes: dict[str, tuple[Scene, ...]]


def filtered(scenes: Iterable[Scene], request: SceneRequest, counts: Counter[str]) -> list[Scene]:
    """Scenes of the time and area that are asked for; the others are counted."""
    kept = []
    for scene in scenes:
        if not request.includes_time(scene.moment):
            counts["outside_time"] += 1
        elif not _meets(scene, request.area):
            counts["outside_area"] += 1
        else:
            kept.append(scene)
    return kept


def newest(scenes: Sequence[Scene], counts: Counter[str]) -> list[Scene]:
    """One scene of each acquisition and tile: that of the newest processing; others are counted."""
    best: dict[Any, Scene] = {}
    for scene in scenes:
        if scene.modality == "s1":
            best[scene.source] = scene
            continue
        key = scene.modality, scene.tile, scene.product_id[:3], scene.time
        other = best.get(key)
        if other is not None:
            counts["superseded"] += 1
        if other is None or (scene.age, scene.product_id, scene.source) > (
            other.age, other.product_id, other.source,
        ):  # fmt: skip
            best[key] = scene
    return sorted(best.values(), key=lambda s: (s.modality, s.time, s.product_id, s.source))


def choose(
    cell: GridCell, seen: Mapping[str, Sequence[Seen]], request: SceneRequest
) -> list[CellScenes]:
    """The dates of a cell, the best first: one anchor each, with the nearest of other sensors.

    An anchor is a Level-2A scene, or a Level-1C one of another pass; radar where there is neither.
    Preferred are anchors within the cloud limit, with a partner of every other sensor within the
    limit of days, with Level-1C of the same pass, that cover the cell, with less cloud, with nearer
    partners, and later ones.
    """
    wanted = [m for m in ANCHORS if m in seen]
    ranked = []
    for anchor in _anchors(seen):
        partners = {
            modality: some
            for modality in wanted
            if modality != anchor.scene.modality
            and not (modality == "s2_l2a" and anchor.scene.modality == "s2_l1c")
            and (some := _nearest(anchor.scene, seen[modality]))
        }
        ranked.append((_rank(anchor, partners, wanted, request), anchor, partners))
    chosen: list[tuple[Seen, dict[str, list[Seen]]]] = []
    for _, anchor, partners in sorted(ranked, key=lambda entry: entry[0]):
        # Two tiles of one pass are one date.
        if all(not _same_pass(anchor.scene, other.scene) for other, _ in chosen):
            chosen.append((anchor, partners))
        if len(chosen) == request.dates_per_place:
            break
    return [
        CellScenes(
            cell,
            {
                modality: tuple(one.scene for one in ([anchor] if modality == anchor.scene.modality
                                                      else partners[modality]))
                for modality in wanted
                if modality == anchor.scene.modality or modality in partners
            },
        )
        for anchor, partners in chosen
    ]  # fmt: skip


def _rank(
    anchor: Seen,
    partners: Mapping[str, Sequence[Seen]],
    wanted: Sequence[str],
    request: SceneRequest,
) -> tuple[Any, ...]:
    """The smaller, the better; see `choose`."""
    scene = anchor.scene
    gaps = {m: _days(scene.moment, some[0].scene.moment) for m, some in partners.items()}
    limit = _FAR if request.max_gap_days is None else request.max_gap_days
    near = [gap for gap in gaps.values() if gap <= limit]
    level_1c = partners.get("s2_l1c")
    cloud = scene.cloud_cover
    return (
        request.max_cloud_cover is not None and (cloud or 0) > request.max_cloud_cover,
        len(wanted) - 1 - len(near),
        level_1c is not None and not _same_pass(scene, level_1c[0].scene),
        -round(anchor.share, 2),
        _FAR if cloud is None else cloud,
        round(max(gaps.values(), default=0.0), 3),
        -(scene.moment.timestamp() if scene.moment else 0.0),
        scene.product_id,
    )


def _meets(scene: Scene, area: BaseGeometry | None) -> bool:
    if area is None:
        return True
    return bool(shapely.intersects(area, unwrapped(shapely.get_coordinates(
        shapely.linestrings(scene.footprint)))))  # fmt: skip


def _anchors(seen: Mapping[str, Sequence[Seen]]) -> list[Seen]:
    level_2a = list(seen.get("s2_l2a", ()))
    alone = [
        one
        for one in seen.get("s2_l1c", ())
        if not any(_same_pass(one.scene, other.scene) for other in level_2a)
    ]
    return level_2a + alone or list(seen.get("s1", ()))


def _nearest(anchor: Scene, candidates: Sequence[Seen]) -> list[Seen]:
    """The scene nearest in time, and of radar the next ones."""

    def rank(one: Seen) -> tuple[Any, ...]:
        days = _days(anchor.moment, one.scene.moment)
        return (
            round(days, 3), one.scene.tile != anchor.tile, -round(one.share, 2),
            one.scene.product_id, one.scene.source,
        )  # fmt: skip

    ranked = sorted(candidates, key=rank)
    return ranked[: _RESERVES if ranked and ranked[0].scene.modality == "s1" else 1]


def _same_pass(one: Scene, other: Scene) -> bool:
    days = _days(one.moment, other.moment)
    return one is other or days * 86400 < _SAME_PASS_SECONDS


def _days(one: datetime | None, other: datetime | None) -> float:
    if one is None or other is None:
        return _FAR
    return abs((one - other).total_seconds()) / 86400
