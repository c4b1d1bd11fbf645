"""Opens labelled sets, recognised by their content."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from terrafm.errors import UsageError
from terrafm.eval.datasets.class_folder import ClassFolder
from terrafm.eval.datasets.copernicus import PREFIX, open_copernicus
from terrafm.eval.datasets.geobench_v1 import TASK_FILE, open_geobench
from terrafm.eval.datasets.geobench_v2 import open_geobench_v2, tortillas_of
from terrafm.eval.datasets.labelled import LabelledSet
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.storage import absolute, check_exists, exists, join


@dataclass(frozen=True)
class OpenOptions:
    """What a set does not say of itself.

    Attributes:
        modality: of a class folder's images.
        bands: names of a class folder's bands, in the files' order.
        trust_pickles: the user's word that a GEO-Bench set may be unpickled.
        partition: of a GEO-Bench set.
        check_units: refuse values that cannot be in the unit they should be in.
    """

    modality: str | None = None
    bands: Sequence[str] | None = None
    trust_pickles: bool = False
    partition: str = "default"
    check_units: bool = True


def open_labelled(uri: str | os.PathLike[str], options: OpenOptions | None = None) -> LabelledSet:
    """Opens a labelled set: of GEO-Bench, a dataset of ingest, else a folder of classes.

    Raises:
        UsageError: it does not exist, holds no images, fewer than two classes, or masks.
    """
    return check_labelled(open_set(uri, options))


def absolute_uri(uri: str) -> str:
    """A set's URI that means the same in every process."""
    if not uri.startswith(PREFIX):
        return absolute(uri)
    name, at, folder = uri.partition("@")
    return f"{name}{at}{absolute(folder)}" if folder else uri


def check_labelled(opened: Any) -> LabelledSet:
    """An open set as one with classes.

    Raises:
        UsageError: it has masks, fewer than two classes, or no label at all.
    """
    if hasattr(opened, "mask"):
        raise UsageError(
            f"{opened.uri} has masks, not classes: terrafm evaluate compare scores them"
        )
    labelled: LabelledSet = opened
    if labelled.labels.ndim == 2 and not labelled.labels.any():
        raise UsageError(f"no image of the labelled set {labelled.uri} has a label")
    present = len(np.unique(labelled.labels))
    if present < 2:
        raise UsageError(
            f"labelled set {labelled.uri} has {present} class: nearest neighbours need two or more"
        )
    return labelled


def open_set(uri: str | os.PathLike[str], options: OpenOptions | None = None) -> Any:
    """Opens a `LabelledSet` or a `SegmentationSet`, by what lies there.

    Raises:
        UsageError: it does not exist or holds no images.
    """
    uri = os.fspath(uri).rstrip("/")
    options = options or OpenOptions()
    if uri.startswith(PREFIX):
        return open_copernicus(uri, check_units=options.check_units)
    check_exists("labelled set", uri)
    if tortillas := tortillas_of(uri):
        return open_geobench_v2(uri, tortillas, check_units=options.check_units)
    if exists(join(uri, TASK_FILE)):
        return open_geobench(
            uri,
            trust_pickles=options.trust_pickles,
            partition=options.partition,
            modality=options.modality,
            check_units=options.check_units,
        )
    # An unfinished ingest has shards but no manifest: opening it says so.
    if exists(join(uri, "manifest.json")) or exists(join(uri, "shards")):
        return ShardTiles(uri)
    return ClassFolder(
        uri, modality=options.modality, bands=options.bands, check_units=options.check_units
    )
