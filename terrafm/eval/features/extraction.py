"""One vector per image: a readout of the frozen encoder, or the mean spectrum as a baseline."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import Image, ImageSet, read_images
from terrafm.eval.features.readouts import Readout
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import Encoder, build_encoder
from terrafm.models.patch_embed import IMAGE_SIZE, PATCH_SIZE

Normalisation = Mapping[str, Mapping[str, Any]]  # modality -> {"mean", "std"}, physical units
# Scores of one untrained network differ from the next one's by some points: baselines are means.
UNTRAINED_SEEDS = (0, 1, 2, 3, 4)


def untrained_like(
    name: str, seed: int = UNTRAINED_SEEDS[0], modalities: Iterable[str] = ()
) -> Encoder:
    """An encoder of the same architecture with fresh weights from a fixed seed, in eval mode.

    Args:
        name: of the architecture.
        seed: of the weights.
        modalities: that it is to see, as `build_encoder` takes them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_encoder(name, modalities=modalities).eval()


def input_side(encoder: Encoder, asked: int | None) -> int:
    """Side of the images that an encoder gets, pixels.

    Args:
        encoder: loaded.
        asked: what was asked for; None for the side of the crops that its weights were trained
            on, or that of the released ones where they state none.

    Raises:
        UsageError: no multiple of the patch.
    """
    trained = encoder.contract.image_size if encoder.contract else IMAGE_SIZE
    side = trained if asked is None else asked
    if side < PATCH_SIZE or side % PATCH_SIZE:
        raise UsageError(f"--size {side} must be a multiple of the patch, {PATCH_SIZE} pixels")
    return side


def model_input(image: Image, normalisation: Normalisation, size: int) -> dict[str, Tensor]:
    """Normalises and resizes one image.

    (x - mean) / std per band, 0 where that is NaN or infinite, then bicubic resampling of every
    native grid straight to the model's size, with antialiasing where it shrinks.

    Args:
        image: grids per modality, physical units.
        normalisation: mean and std per modality, in model band order.
        size: side of the result, pixels.

    Returns:
        modality -> (C, size, size) float32.
    """
    result = {}
    for modality, grids in image.items():
        mean = np.asarray(normalisation[modality]["mean"], np.float32)[:, None, None]
        std = np.asarray(normalisation[modality]["std"], np.float32)[:, None, None]
        channels = torch.zeros(MODALITIES[modality].channels, size, size)
        for grid in grids:
            at = list(grid.channels)
            normed = (grid.pixels - mean[at]) / std[at]
            normed = np.where(np.isfinite(normed), normed, 0)
            channels[at] = functional.interpolate(
                torch.from_numpy(normed)[None],
                size=(size, size),
                mode="bicubic",
                antialias=True,
                align_corners=False,
            )[0]
        result[modality] = channels
    return result


def encoder_features(
    encoders: Sequence[Encoder],
    images: ImageSet,
    choices: Sequence[tuple[str, ...]],
    normalisation: Normalisation,
    *,
    size: int,
    batch: int,
    device: torch.device,
    rows: Sequence[int] | None = None,
    readout: Readout = Readout.CLS,
) -> list[list[NDArray[np.float32]]]:
    """Readouts of images, in one pass over the pixels; `Readout.finished` makes them comparable.

    Args:
        encoders: in eval mode; all see the same input.
        images: the set.
        choices: sets of modalities; one of several modalities is fused.
        normalisation: mean and std per modality.
        size: side to which images are resized, pixels.
        batch: most images at once.
        device: where to compute.
        rows: which images; all by default.
        readout: which numbers of the encoders.

    Returns:
        Per choice and encoder (N, `readout.width`) float32, in the order of the images; zero rows
        for images that have none of the chosen modalities.
    """
    encoders = [encoder.to(device) for encoder in encoders]
    rows = range(len(images.names)) if rows is None else rows
    widths = [readout.width(encoder) for encoder in encoders]
    features = [[np.zeros((len(rows), w), np.float32) for w in widths] for _ in choices]
    wanted = tuple(m for m in images.modalities if any(m in choice for choice in choices))
    with torch.inference_mode():
        for at, pixels in batches(images, wanted, normalisation, size, batch, rows):
            moved = {name: tensor.to(device) for name, tensor in pixels.items()}
            for choice, held in zip(choices, features, strict=True):
                chosen = {name: moved[name] for name in choice if name in moved}
                if not chosen:
                    continue
                for encoder, rows_of in zip(encoders, held, strict=True):
                    rows_of[at] = readout.of(encoder, chosen).cpu().numpy()
    return features


def batches(
    images: ImageSet,
    modalities: Sequence[str],
    normalisation: Normalisation,
    size: int,
    batch: int,
    rows: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Batches of normalised images.

    Args:
        images: the set.
        modalities: those to read.
        normalisation: mean and std per modality.
        size: side of the result, pixels.
        batch: most images at once.
        rows: which images; all by default.

    Yields:
        Positions in `rows`, and modality -> (B, C, size, size).
    """
    rows = range(len(images.names)) if rows is None else rows
    # Images of a batch have the same modalities: those with others wait for their own batch.
    waiting: dict[tuple[str, ...], list[tuple[int, dict[str, Tensor]]]] = {}
    for at, image in enumerate(read_images(images, rows, modalities)):
        pixels = model_input(image, normalisation, size)
        same = waiting.setdefault(tuple(pixels), [])
        same.append((at, pixels))
        if len(same) == batch:
            yield _stack(waiting.pop(tuple(pixels)))
    for same in waiting.values():
        yield _stack(same)


def _stack(same: list[tuple[int, dict[str, Tensor]]]) -> tuple[list[int], dict[str, Tensor]]:
    names = same[0][1]
    rows = [row for row, _ in same]
    return rows, {name: torch.stack([pixels[name] for _, pixels in same]) for name in names}


def mean_spectra(images: ImageSet, choices: Sequence[tuple[str, ...]]) -> list[NDArray[np.float32]]:
    """Baseline without a model: every band's mean, standardised over the set, L2-normalised.

    Args:
        images: the set.
        choices: sets of modalities, whose bands stand side by side. A missing modality counts
            as the set's mean.

    Returns:
        Per choice (N, bands) float32, rows of unit length.
    """
    wanted = tuple(m for m in images.modalities if any(m in choice for choice in choices))
    spectra = {m: np.full((len(images.names), MODALITIES[m].channels), np.nan) for m in wanted}
    for row in range(len(images.names)):
        for name, grids in images.read(row, wanted).items():
            for grid in grids:
                for channel, pixels in zip(grid.channels, grid.pixels, strict=True):
                    valid = pixels[np.isfinite(pixels)]
                    if valid.size:
                        spectra[name][row, channel] = valid.mean(dtype=np.float64)
    return [_standardise(np.hstack([spectra[name] for name in choice])) for choice in choices]


def _standardise(spectra: NDArray[np.float64]) -> NDArray[np.float32]:
    seen = np.maximum(np.isfinite(spectra).sum(0), 1)
    centred = np.nan_to_num(spectra - np.nansum(spectra, 0) / seen, nan=0.0)
    spread = np.sqrt((centred**2).sum(0) / seen)
    standard = centred / np.where(spread > 0, spread, 1.0)
    length = np.linalg.norm(standard, axis=1, keepdims=True)
    return np.asarray(standard / np.maximum(length, 1e-12), np.float32)
