"""Opens labelled sets, recognised by their content."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from terrafm.errors import UsageError
from terrafm.eval.labelled import LabelledSet
from terrafm.eval.sets.class_folder import ClassFolder
from terrafm.eval.sets.shard_tiles import ShardTiles
from terrafm.storage import exists, join


@dataclass(frozen=True)
class OpenOptions:
    """What a set does not say of itself.

    Attributes:
        modality: of a class folder's images.
        bands: names of a class folder's bands, in the files' order.
    """

    modality: str | None = None
    bands: Sequence[str] | None = None


def open_labelled(uri: str | os.PathLike[str], options: OpenOptions | None = None) -> LabelledSet:
    """Opens a labelled set: a dataset of ingest if it has a manifest, else a folder of classes.

    Raises:
        UsageError: it does not exist, holds no images, or fewer than two classes.
    """
    uri = os.fspath(uri).rstrip("/")
    options = options or OpenOptions()
    if not exists(uri):
        raise UsageError(f"labelled set {uri} does not exist")
    # An unfinished ingest has shards but no manifest: opening it says so.
    ours = exists(join(uri, "manifest.json")) or exists(join(uri, "shards"))
    opened: LabelledSet = (
        ShardTiles(uri)
        if ours
        else ClassFolder(uri, modality=options.modality, bands=options.bands)
    )
    present = len(np.unique(opened.labels))
    if present < 2:
        raise UsageError(
            f"labelled set {uri} has {present} class: nearest neighbours need two or more"
        )
    return opened
