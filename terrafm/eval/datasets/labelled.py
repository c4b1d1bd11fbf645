"""What evaluation reads: labelled images in physical units, in the model's band order.

NaN stands where there is no data. Bands lie at their native grids; a band that a set does not
have is in none of them, and the model sees 0 after normalisation there, as for a pixel without
data.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import resolve

_LOOKED_AT = 8
# Of images as a whole, reflectance; the brightest clouds and roofs stay below 3.
_DARKEST, _BRIGHTEST = 0.05, 20.0

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Grid:
    """Bands of one modality that share a pixel grid.

    Attributes:
        channels: positions of the bands in the modality's model order.
        pixels: (len(channels), h, w) float32 in physical units, NaN where there is no data.
    """

    channels: tuple[int, ...]
    pixels: NDArray[np.float32]


Image = dict[str, list[Grid]]  # modality -> its grids


class ImageSet(Protocol):
    """Images of one or several modalities.

    Attributes:
        uri: where it lies.
        names: (N,) the images' own names.
        classes: class names.
        groups: (N,) int64, images of one place share a number.
        splits: (N,) "train", "valid" or "test", or None where the set has no splits.
        modalities: those that the set has, in the order of `MODALITIES`.
        bands: modality -> how its bands were mapped, for the reader of a result.
        fingerprint: changes when the images or labels do.
    """

    uri: str
    splits: NDArray[np.str_] | None
    modalities: tuple[str, ...]
    bands: dict[str, str]

    @property
    def names(self) -> Sequence[str]: ...  # noqa: D102 - see the attributes

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def groups(self) -> NDArray[np.int64]: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def read(self, row: int, modalities: Sequence[str]) -> Image:
        """One image; modalities that it does not have are left out.

        Raises:
            TerraFMError: it cannot be read; names it.
        """
        ...

    def statistics(self) -> dict[str, dict[str, Any]]:
        """Modality -> {"mean", "std"} per band in model order, physical units."""
        ...


class LabelledSet(ImageSet, Protocol):
    """Images with a class each, or with several.

    Attributes:
        labels: (N,) int64 positions in `classes`, or (N, C) int64 0 or 1.
    """

    @property
    def labels(self) -> NDArray[np.int64]: ...  # noqa: D102 - see the attributes


class SegmentationSet(ImageSet, Protocol):
    """Images with a class for every pixel.

    Attributes:
        ignore: label of pixels that do not count, or None.
    """

    ignore: int | None

    def mask(self, row: int) -> NDArray[np.int64]:
        """(H, W) positions in `classes`, or `ignore`.

        Raises:
            TerraFMError: it cannot be read; names it.
        """
        ...


def read_images(
    images: ImageSet, rows: Sequence[int], modalities: Sequence[str]
) -> Iterator[Image]:
    """Some images of a set, one after the other; sets that can do so read ahead.

    Raises:
        TerraFMError: one cannot be read; names it.
    """
    ahead = getattr(images, "read_ahead", None)
    if ahead is not None:
        yield from ahead(rows, modalities)
        return
    for row in rows:
        yield images.read(row, modalities)


def measured_statistics(images: ImageSet, rows: Iterable[int]) -> dict[str, dict[str, Any]]:
    """Mean and std of every band over some images, in one pass.

    A band without any data gets mean 0 and std 1.

    Args:
        images: the set.
        rows: which images: a set with splits is measured on its training split.

    Returns:
        Modality -> {"mean", "std"} per band in model order, physical units.
    """
    sums = {m: np.zeros((3, MODALITIES[m].channels)) for m in images.modalities}
    for row in rows:
        for modality, grids in images.read(row, images.modalities).items():
            for grid in grids:
                pixels = grid.pixels.astype(np.float64)
                pixels[~np.isfinite(pixels)] = np.nan
                at = list(grid.channels)
                sums[modality][0, at] += np.isfinite(pixels).sum((1, 2))
                sums[modality][1, at] += np.nansum(pixels, (1, 2))
                sums[modality][2, at] += np.nansum(pixels**2, (1, 2))
    return {modality: _mean_and_std(*found) for modality, found in sums.items()}


def check_physical(images: ImageSet, modalities: Iterable[str]) -> None:
    """Refuses a set whose first images hold values that cannot be reflectance or dB.

    Raises:
        UsageError: names values and unit.
    """
    for name in modalities:
        looked_at = [images.read(row, (name,)) for row in range(min(_LOOKED_AT, len(images.names)))]
        grids = [grid.pixels.ravel() for image in looked_at for grid in image.get(name, ())]
        values = np.concatenate([np.zeros(0, np.float32), *grids])
        values = values[~np.isnan(values)]
        # 0 is neither: images without a single value are refused too.
        low, high = float(values.min(initial=np.inf)), float(values.max(initial=0.0))
        if (low >= 0) if name == "s1" else not _DARKEST <= high <= _BRIGHTEST:
            raise UsageError(
                f"{images.uri}: {name} values from {low:g} to {high:g} are no "
                f"{MODALITIES[name].unit}, so its scale is another: standardise by the set's own "
                "statistics with --normalise set"
            )


def training_rows(images: ImageSet) -> NDArray[np.int64]:
    """Rows of the training split; all where there are no splits."""
    if images.splits is None:
        return np.arange(len(images.names))
    return np.flatnonzero(images.splits == "train")


def files_fingerprint(uri: str, files: Sequence[str]) -> str:
    """Of the names, sizes and times of files: reading them all would cost what features cost."""
    digest = hashlib.sha256()
    filesystem, root = resolve(uri)
    listed: dict[str, dict[str, Any]] = filesystem.find(root, detail=True)
    for file in files:
        path = resolve(file)[1]
        info = listed.get(path, {})
        changed = info.get("ETag") or info.get("mtime") or info.get("LastModified")
        digest.update(f"{path.removeprefix(root)}\t{info.get('size')}\t{changed}\n".encode())
    return digest.hexdigest()


def _mean_and_std(
    count: NDArray[np.float64], total: NDArray[np.float64], square: NDArray[np.float64]
) -> dict[str, Any]:
    mean = total / np.maximum(count, 1)
    spread = np.sqrt(np.maximum(square / np.maximum(count, 1) - mean**2, 0))
    # A band without any spread says nothing; dividing by 1 leaves it at zero.
    std = np.where(spread > 0, spread, 1.0)
    return {"mean": mean.tolist(), "std": std.tolist()}
