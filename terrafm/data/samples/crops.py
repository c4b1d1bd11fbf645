"""Multi-crop with modality as augmentation: what each view of a sample sees, and its pixels.

Everything random about a sample comes from a counter-based generator keyed by (seed, epoch,
position); a view owns a fixed stretch of its counter. So a crop does not depend on the worker
that makes it, on its neighbours in the batch, or on how many other views there are.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from terrafm.config import DataConfig
from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.manifest import CellGroup
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES, SENTINEL

# Parallelism is by process: a thread pool in each of them would only fight for the same cores.
cv2.setNumThreads(1)

LOCAL_SCALE = (0.05, 0.25)
"""Share of the tile's area that a local crop covers, as in DINO."""

# A view's random words. The order is part of what a seed means: append, never reorder.
# Width over height of a crop, as in DINO.
_ASPECT_RATIO = (3 / 4, 4 / 3)
_AREA, _RATIO, _TOP, _LEFT, _FLIP, _TURNS, _DROP_PATH, _TEACHER_ONE, _STUDENT_ONE = range(9)
_TEACHER_KEEP = 9
_STUDENT_KEEP = _TEACHER_KEEP + len(SENTINEL)
_OTHER_DATE = _STUDENT_KEEP + len(SENTINEL)
_WORDS = 16  # a multiple of 4, what Philox makes per counter value
_OTHERS_WORDS = 4  # of a sensor of another package: for the teacher, for the student, two unused
_MAX_CHANNELS = 4  # of an image that cv2.resize takes


@dataclass(frozen=True)
class Views:
    """The views of n samples; the global crops come first.

    Attributes:
        modalities: names along the modality axis (M).
        sizes: (V,) side of each crop, pixels.
        box: (n, V, 4) top, left, height, width in units of the coarsest grid.
        flip: (n, V) mirrored left to right, before the turns.
        turns: (n, V) quarter turns clockwise.
        teacher: (n, G, M) modalities of the teacher's view of each global crop.
        student: (n, V, M) modalities of the student's view of each crop, drawn independently.
        drop_path_key: (n, V) int64 key of the student's drop-path masks.
        other_date: (n, V) whether the crop is cut from the tile of another date.
    """

    modalities: tuple[str, ...]
    sizes: NDArray[np.int64]
    box: NDArray[np.int64]
    flip: NDArray[np.bool_]
    turns: NDArray[np.int64]
    teacher: NDArray[np.bool_]
    student: NDArray[np.bool_]
    drop_path_key: NDArray[np.int64]
    other_date: NDArray[np.bool_]

    @cached_property
    def drawn(self) -> NDArray[np.bool_]:
        """(n, V, M) modalities whose pixels a crop needs, for the teacher or the student."""
        drawn = self.student.copy()
        drawn[:, : self.teacher.shape[1]] |= self.teacher
        return drawn

    @cached_property
    def ends(self) -> NDArray[np.int64]:
        """(n, V, M) end of each crop in the buffer of all n samples, in pixels.

        The order is that of a batch: global crops, then local ones; in each the modalities one
        after the other, and of each modality all first crops, all second ones, and so on. So a
        batch of these samples is pieces of the buffer.
        """
        n_global = self.teacher.shape[1]
        orders = []
        places = np.arange(self.drawn.size).reshape(self.drawn.shape)
        for crops in (places[:, :n_global], places[:, n_global:]):
            orders.append(crops.transpose(2, 1, 0).ravel())
        order = np.concatenate(orders)
        channels = np.array([MODALITIES[name].channels for name in self.modalities])
        lengths = (self.drawn * channels * self.sizes[:, None] ** 2).ravel()
        ends: NDArray[np.int64] = np.empty_like(lengths)
        ends[order] = np.cumsum(lengths[order])
        placed: NDArray[np.int64] = ends.reshape(self.drawn.shape)
        return placed

    @property
    def pixels(self) -> int:
        """Length of that buffer."""
        return int(self.ends.max(initial=0))

    def rows(self, start: int, stop: int) -> "Views":
        """The views of some of the samples."""
        own = np.s_[start:stop]
        return replace(
            self,
            box=self.box[own],
            flip=self.flip[own],
            turns=self.turns[own],
            teacher=self.teacher[own],
            student=self.student[own],
            drop_path_key=self.drop_path_key[own],
            other_date=self.other_date[own],
        )


def draw_views(
    config: DataConfig,
    modalities: tuple[str, ...],
    *,
    seed: int,
    epochs: NDArray[np.int64],
    positions: NDArray[np.int64],
    available: NDArray[np.bool_],
    units: int,
    elsewhen: NDArray[np.bool_] | None = None,
) -> Views:
    """Draws the views of n samples.

    Area share uniform in the configured scale, log aspect ratio uniform, position uniform; sides
    are rounded to whole units and clipped to the tile. Each view shows the tile of another date
    with `config.other_date`, where there is one. Each modality that the tile has is kept
    with `config.keep_probability`, independently; if none is, one is drawn uniformly. Without
    fusion each view draws exactly one, uniformly. One flip and one quarter turn per view.

    Args:
        config: crops and modality augmentation.
        modalities: names along the last axis of `available`.
        seed: of the run.
        epochs: (n,) epoch of each sample.
        positions: (n,) position in the epoch.
        available: (n, M) modalities that the tile has; at least one each.
        units: side of a tile in units of the coarsest grid.
        elsewhen: (n, M) modalities that the tile of another date has; none where there is no
            such tile. By default no sample has one.
    """
    n_views = config.global_crops + config.local_crops
    n_global = config.global_crops
    words = np.empty((len(epochs), n_views, _WORDS), dtype=np.uint64)
    for i, (epoch, position) in enumerate(zip(epochs.tolist(), positions.tolist(), strict=True)):
        bits = np.random.Philox(key=[seed, 1], counter=[0, 0, position, epoch])
        words[i] = bits.random_raw(n_views * _WORDS).reshape(n_views, _WORDS)
    uniform = _uniform(words)

    is_global = np.arange(n_views) < n_global
    low, high = np.where(is_global[:, None], config.global_scale, LOCAL_SCALE).T
    area = low + (high - low) * uniform[..., _AREA]
    log_low, log_high = np.log(_ASPECT_RATIO)
    ratio = np.exp(log_low + (log_high - log_low) * uniform[..., _RATIO])
    sides = units * np.sqrt(np.stack([area / ratio, area * ratio], axis=-1))
    sides = np.clip(np.rint(sides), 1, units).astype(np.int64)
    corners = np.floor(uniform[..., [_TOP, _LEFT]] * (units - sides + 1)).astype(np.int64)

    chances = _keep_chances(uniform, modalities, seed, epochs, positions)
    shape = (len(epochs), n_views, len(modalities))
    present = np.broadcast_to(available[:, None, :], shape)
    other_date = np.zeros(shape[:2], dtype=bool)
    if elsewhen is not None:
        has_other: NDArray[np.bool_] = np.any(elsewhen, axis=1, keepdims=True)
        other_date |= (uniform[..., _OTHER_DATE] < config.other_date) & has_other
        present = np.where(other_date[..., None], elsewhen[:, None, :], present)

    def keep(who: int, one: int) -> NDArray[np.bool_]:
        number = np.cumsum(present, axis=-1) - 1
        chosen = np.floor(uniform[..., one, None] * present.sum(axis=-1, keepdims=True))
        single: NDArray[np.bool_] = present & (number == chosen)
        if not config.fusion:
            return single
        kept = present & (chances[who] < config.keep_probability)
        kept_or_one: NDArray[np.bool_] = np.where(kept.any(axis=-1, keepdims=True), kept, single)
        return kept_or_one

    return Views(
        modalities=modalities,
        sizes=np.where(is_global, config.global_size, config.local_size),
        box=np.concatenate([corners, sides], axis=-1),
        flip=uniform[..., _FLIP] < 0.5,
        turns=(uniform[..., _TURNS] * 4).astype(np.int64),
        teacher=keep(0, _TEACHER_ONE)[:, :n_global],
        student=keep(1, _STUDENT_ONE),
        drop_path_key=words[..., _DROP_PATH].view(np.int64),
        other_date=other_date,
    )


def _keep_chances(
    uniform: NDArray[np.float64],
    modalities: tuple[str, ...],
    seed: int,
    epochs: NDArray[np.int64],
    positions: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(2, n, V, M) what is held against the chance to keep a modality: teacher's and student's.

    The words of other packages' sensors come from generators of their own, keyed by their names:
    what a seed means does not change with the packages that are installed.
    """
    chances = np.empty((2, *uniform.shape[:2], len(modalities)))
    for m, name in enumerate(modalities):
        if name in SENTINEL:
            at = SENTINEL.index(name)
            chances[0, ..., m] = uniform[..., _TEACHER_KEEP + at]
            chances[1, ..., m] = uniform[..., _STUDENT_KEEP + at]
            continue
        key = [seed, int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")]
        count = uniform.shape[1] * _OTHERS_WORDS
        for i, (epoch, position) in enumerate(zip(epochs, positions, strict=True)):
            bits = np.random.Philox(key=key, counter=[0, 0, int(position), int(epoch)])
            own = _uniform(bits.random_raw(count).reshape(-1, _OTHERS_WORDS))
            chances[:, i, :, m] = own[:, :2].T
    return chances


def _uniform(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Random words as numbers in [0, 1)."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, np.float64)


@dataclass(frozen=True)
class Cropper:
    """Makes the crops of a dataset's tiles; small and picklable.

    Boxes lie on the coarsest grid of the dataset (60 m: every 6 pixels at 10 m), so that the
    crop of every band is a whole slice of its array and all bands and modalities show the same
    ground. Each slice is resized once, from its native GSD to the crop's side: with area
    averaging along an axis that shrinks, which is antialiasing (each output pixel is the mean of
    the ground it covers), and bilinearly along one that grows. Values are averaged as stored:
    reflectance, and dB for radar.

    Missing pixels are replaced by the band's mean before resizing; an output pixel that is
    mostly missing becomes nodata again.

    Attributes:
        groups: cell groups of the trained modalities.
        units: side of a tile in units of the coarsest grid.
        unit: ground size of a unit, metres.
        fill: modality -> storage value per band that replaces nodata.
        config: crops and modality augmentation.
        seed: of the run.
    """

    groups: tuple[CellGroup, ...]
    units: int
    unit: int
    fill: dict[str, tuple[int, ...]]
    config: DataConfig
    seed: int

    @classmethod
    def for_dataset(cls, dataset: Dataset, config: DataConfig, seed: int) -> "Cropper":
        """A cropper for the modalities that both the dataset has and the configuration names.

        Raises:
            UsageError: there is none, a modality lacks bands, or the grids do not nest.
        """
        kept = [name for name in dataset.modalities if name in config.modalities]
        if not kept:
            raise UsageError(
                f"data.modalities {list(config.modalities)}: dataset {dataset.uri} "
                f"only has {', '.join(dataset.modalities)}"
            )
        groups = tuple(g for g in dataset.groups if g.modality in kept)
        fill = {}
        for name in kept:
            modality = MODALITIES[name]
            bands = [band for g in groups if g.modality == name for band in g.bands]
            if sorted(bands) != sorted(modality.bands):
                raise UsageError(
                    f"dataset {dataset.uri}: {name} has bands {bands}, "
                    f"training needs {', '.join(modality.bands)}"
                )
            means = np.rint(np.divide(dataset.statistics[name]["mean"], modality.scale))
            limits = np.iinfo(modality.dtype)
            fill[name] = tuple(np.clip(means, limits.min + 1, limits.max).astype(int).tolist())
        unit = math.lcm(*(g.gsd for g in dataset.groups))
        units, rest = divmod(dataset.tile_size * dataset.gsd, unit)
        if rest:
            raise UsageError(
                f"dataset {dataset.uri}: tiles of {dataset.tile_size * dataset.gsd} m are not "
                f"whole multiples of {unit} m, where its grids meet"
            )
        return cls(groups, units, unit, fill, config, seed)

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Trained modalities, in the order of `MODALITIES`."""
        return tuple(self.fill)

    def draw(
        self,
        epochs: NDArray[np.int64],
        positions: NDArray[np.int64],
        available: NDArray[np.bool_],
        elsewhen: NDArray[np.bool_] | None = None,
    ) -> Views:
        """See `draw_views`; modalities (n, M) are in the order of `modalities`."""
        return draw_views(
            self.config,
            self.modalities,
            seed=self.seed,
            epochs=epochs,
            positions=positions,
            available=available,
            units=self.units,
            elsewhen=elsewhen,
        )

    def needed(self, views: Views, *, other_date: bool = False) -> NDArray[np.bool_]:
        """(n, number of groups) whether any crop of a sample shows the group, of this date."""
        index = [self.modalities.index(group.modality) for group in self.groups]
        of_date = views.other_date == other_date
        drawn: NDArray[np.bool_] = np.any(views.drawn & of_date[..., None], axis=1)
        return drawn[:, index]

    def tile_ends(self, views: Views) -> NDArray[np.int64]:
        """(n, number of groups) end of each group in a buffer of whole tiles, in pixels."""
        needed = self.needed(views)
        lengths = needed * np.array([math.prod(group.shape) for group in self.groups])
        return np.cumsum(lengths).reshape(needed.shape)

    def crop(
        self,
        pixels: Mapping[str, NDArray[Any]],
        views: Views,
        row: int,
        out: NDArray[np.uint16],
        *,
        other_date: bool = False,
    ) -> None:
        """Cuts all crops of one sample that show a tile of it.

        Args:
            pixels: cell group name -> (bands, h, w) of the sample's tile; only groups of drawn
                modalities are looked at.
            views: the views of several samples.
            row: the sample among them.
            out: (views.pixels,) receives the sample's crops where `views.ends` says, each
                (C, S, S) in model band order, int16 as its bits.
            other_date: the tile is that of another date.
        """
        images: dict[str, list[_Image]] = {}
        for view, size in enumerate(views.sizes.tolist()):
            for m, name in enumerate(self.modalities):
                if not views.drawn[row, view, m] or views.other_date[row, view] != other_date:
                    continue
                if name not in images:
                    images[name] = self._images(name, pixels)
                modality = MODALITIES[name]
                end = int(views.ends[row, view, m])
                target = out[end - modality.channels * size**2 : end].view(modality.dtype)
                target = target.reshape(modality.channels, size, size)
                for image in images[name]:
                    box = views.box[row, view] * (self.unit // image.gsd)
                    flip, turns = bool(views.flip[row, view]), int(views.turns[row, view])
                    image.crop_into(target, box, flip, turns)

    def _images(self, name: str, pixels: Mapping[str, NDArray[Any]]) -> list["_Image"]:
        modality = MODALITIES[name]
        images = []
        for group in self.groups:
            if group.modality != name:
                continue
            array = pixels[group.name]
            channels = [modality.bands.index(band) for band in group.bands]
            gaps = bool((array == modality.nodata).any())
            for i in range(0, len(channels), _MAX_CHANNELS):
                planes = list(array[i : i + _MAX_CHANNELS])
                chosen = channels[i : i + _MAX_CHANNELS]
                missing = None
                if gaps:
                    masks = [plane == modality.nodata for plane in planes]
                    fills = [np.array(self.fill[name][c], array.dtype) for c in chosen]
                    planes = [
                        np.where(mask, fill, plane)
                        for mask, fill, plane in zip(masks, fills, planes, strict=True)
                    ]
                    missing = _merge([mask.astype(np.uint8) * 255 for mask in masks])
                images.append(_Image(_merge(planes), missing, chosen, group.gsd, modality.nodata))
        return images


@dataclass
class _Image:
    """Up to four bands of one grid, interleaved: cv2 resizes them three times as fast so."""

    values: NDArray[Any]
    missing: NDArray[np.uint8] | None
    channels: list[int]
    gsd: int
    nodata: int

    def crop_into(
        self, target: NDArray[Any], box: NDArray[np.int64], flip: bool, turns: int
    ) -> None:
        top, left, height, width = box.tolist()
        window = np.s_[top : top + height, left : left + width]
        size = target.shape[-1]
        planes = _split(_orient(_resize(self.values[window], size), flip, turns))
        for channel, plane in zip(self.channels, planes, strict=True):
            target[channel] = plane
        if self.missing is not None and self.missing[window].any():
            masks = _split(_orient(_resize(self.missing[window], size), flip, turns))
            for channel, mask in zip(self.channels, masks, strict=True):
                target[channel][mask > 127] = self.nodata


def _resize(image: NDArray[Any], size: int) -> NDArray[Any]:
    height, width = image.shape[:2]
    if (height < size) != (width < size):
        between = (min(width, size), min(height, size))
        image = cv2.resize(image, between, interpolation=cv2.INTER_AREA)
        height, width = image.shape[:2]
    grows = height < size or width < size
    method = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    resized: NDArray[Any] = cv2.resize(image, (size, size), interpolation=method)
    return resized


def _orient(image: NDArray[Any], flip: bool, turns: int) -> NDArray[Any]:
    if flip:
        image = cv2.flip(image, 1)
    if turns:
        codes = (cv2.ROTATE_90_CLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_COUNTERCLOCKWISE)
        image = cv2.rotate(image, codes[turns - 1])
    return image


def _merge(planes: list[NDArray[Any]]) -> NDArray[Any]:
    merged: NDArray[Any] = cv2.merge(planes) if len(planes) > 1 else planes[0]
    return merged


def _split(image: NDArray[Any]) -> list[NDArray[Any]]:
    return list(cv2.split(image)) if image.ndim == 3 else [image]
