"""Features of a set by many workers: the same numbers as in one process, part by part."""

import io
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.datasets.registry import OpenOptions, absolute_uri, open_set
from terrafm.eval.features.extraction import Normalisation, encoder_features, untrained_like
from terrafm.eval.features.readouts import Readout
from terrafm.modalities import SENTINEL
from terrafm.models.encoder import Encoder
from terrafm.models.weights import load_encoder, state_fingerprint
from terrafm.ray.parts import Part, Work, divide, rows_per_part, run_parts
from terrafm.storage import join, list_names, read_bytes, remove_empty, remove_files, write_bytes
from terrafm.storage.limits import WHOLE_FILE_BYTES

_THREADS = 16
_UNTRAINED = "untrained:"
_PART_FILE = re.compile(r"\d{9}-\d{9}\.npy")

Features = NDArray[np.float32]
MakeFeatures = Callable[[ImageSet, Sequence[int]], Features]
Progress = Callable[[int, int], None]


class FeatureExtractor(Protocol):
    """What makes features, pickled into every worker; holds no model but where to get one."""

    def open(self, device: torch.device) -> MakeFeatures:
        """Loads the model: a function of a set and some of its rows to (n, D)."""
        ...


@dataclass(frozen=True)
class EncoderFeatures:
    """Readouts of encoders, side by side: for each choice of modalities those of each encoder.

    Attributes:
        encoders: URIs of weights, or `untrained_spec` of an untrained encoder.
        choices: sets of modalities, each fused.
        normalisation: modality -> {"mean", "std"}.
        size: side to which images are resized, pixels.
        batch: images at once.
        fingerprints: of the encoders, as `state_fingerprint`: weights that change are refused.
        readout: which numbers of the encoders; they are not finished.
    """

    encoders: tuple[str, ...]
    choices: tuple[tuple[str, ...], ...]
    normalisation: Normalisation
    size: int
    batch: int
    fingerprints: tuple[str, ...] = ()
    readout: Readout = Readout.CLS

    def open(self, device: torch.device) -> MakeFeatures:
        """Loads the encoders.

        Raises:
            UsageError: unreadable weights, or others than before.
        """
        encoders = [_load(name) for name in self.encoders]
        for name, encoder, known in zip(self.encoders, encoders, self.fingerprints, strict=False):
            if state_fingerprint(encoder) != known:
                raise UsageError(f"weights {name} changed while they were used")
        # Tensor cores would round float32 to ten bits in the patch embedding.
        torch.backends.cudnn.allow_tf32 = False

        def make(images: ImageSet, rows: Sequence[int]) -> Features:
            found = encoder_features(
                encoders, images, self.choices, self.normalisation, size=self.size,
                batch=self.batch, device=device, rows=rows, readout=self.readout,
            )  # fmt: skip
            return np.hstack([features for choice in found for features in choice])

        return make


@dataclass(frozen=True)
class FeatureWorkers:
    """Ray workers that make features.

    Attributes:
        count: actors; 0 works in this process, in parts all the same.
        open: what the set does not say of itself.
        device: "cpu" or "cuda", one for each; by default a GPU where the cluster has any.
        progress: called with (images done, images in all).
    """

    count: int
    open: OpenOptions = field(default_factory=OpenOptions)
    device: str | None = None
    progress: Progress | None = None


def extract_features(
    extractor: FeatureExtractor,
    images: ImageSet,
    device: torch.device,
    workers: FeatureWorkers | None = None,
    parts_uri: str | None = None,
) -> Features:
    """Features of all images of a set.

    Args:
        extractor: makes them.
        images: the set.
        device: where to compute without workers.
        workers: who makes them; None for this process, in one go.
        parts_uri: folder that keeps finished parts until all are done: with workers, the same
            call goes on there. None keeps none.

    Returns:
        (N, D) float32, in the order of the images.

    Raises:
        UsageError, TerraFMError: an image cannot be read, or the set changed meanwhile.
    """
    total = len(images.names)
    if workers is None:
        return extractor.open(device)(images, range(total))
    parts = divide(total, rows_per_part(total))
    found = {} if parts_uri is None else _read_parts(parts_uri, parts)
    work = OpenFeatureWork(
        extractor, absolute_uri(images.uri), workers.open, images.fingerprint, parts_uri
    )
    missing = [part for part in parts if part.number not in found]
    done = total - sum(part.rows for part in missing)
    for part, features in run_parts(work, missing, workers=workers.count, device=workers.device):
        found[part.number] = features
        done += part.rows
        if workers.progress is not None:
            workers.progress(done, total)
    return np.concatenate([found[part.number] for part in parts])


@dataclass(frozen=True)
class OpenFeatureWork:
    """Opens set and model in a worker.

    Attributes:
        extractor: makes the features.
        uri: of the set.
        options: what it does not say of itself.
        fingerprint: that it has to have.
        parts_uri: folder for finished parts, or None.
    """

    extractor: FeatureExtractor
    uri: str
    options: OpenOptions
    fingerprint: str
    parts_uri: str | None

    def __call__(self, device: str) -> Work:
        """Opens both.

        Raises:
            UsageError: the set is another one than before.
        """
        images = open_set(self.uri, self.options)
        if images.fingerprint != self.fingerprint:
            raise UsageError(f"{self.uri} changed while it was used: repeat the command")
        make = self.extractor.open(torch.device(device))

        def work(part: Part) -> Features:
            features = make(images, range(part.first, part.stop))
            if self.parts_uri is not None:
                buffer = io.BytesIO()
                np.save(buffer, features, allow_pickle=False)
                write_bytes(join(self.parts_uri, _part_file(part)), buffer.getvalue())
            return features

        return work


def forget_parts(parts_uri: str) -> None:
    """Removes what was kept of an unfinished call; what others put there stays."""
    own = [name for name in list_names(parts_uri) if _PART_FILE.fullmatch(name)]
    remove_files(parts_uri, own)
    remove_empty(parts_uri)


def _read_parts(uri: str, parts: Sequence[Part]) -> dict[int, Features]:
    there = set(list_names(uri))
    known = [part for part in parts if _part_file(part) in there]

    def read(part: Part) -> Features | None:
        try:
            content = read_bytes(join(uri, _part_file(part)), WHOLE_FILE_BYTES)
        except FileNotFoundError:
            return None
        try:
            features = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception:  # noqa: BLE001 - a damaged head fails anywhere: made again
            return None
        sound = isinstance(features, np.ndarray) and features.ndim == 2
        return features if sound and len(features) == part.rows else None

    with ThreadPoolExecutor(_THREADS) as threads:
        found = zip(known, threads.map(read, known), strict=True)
        return {part.number: features for part, features in found if features is not None}


def _part_file(part: Part) -> str:
    return f"{part.first:09d}-{part.stop:09d}.npy"


def untrained_spec(name: str, seed: int, modalities: Iterable[str] = ()) -> str:
    """How `EncoderFeatures` names an untrained encoder, instead of a URI."""
    others = [modality for modality in modalities if modality not in SENTINEL]
    return ":".join([f"{_UNTRAINED}{name}", str(seed), *others])


def _load(name: str) -> Encoder:
    if not name.startswith(_UNTRAINED):
        return load_encoder(name)
    architecture, seed, *others = name.removeprefix(_UNTRAINED).split(":")
    return untrained_like(architecture, int(seed), others)
