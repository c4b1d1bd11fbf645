"""Normalised images of a set, batch by batch, turned and mirrored for training."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.features.encoders import InputOptions
from terrafm.eval.features.extraction import model_input

# The eight symmetries of a square: four quarter turns, each also mirrored.
SYMMETRIES = 8
# Images that are held so that epochs do not read them again; beyond that they are read anew.
_HELD_BYTES = 4 << 30


def turned(image: Tensor, symmetry: int) -> Tensor:
    """A quarter turn and a mirroring of the last two axes.

    Args:
        image: (..., H, W); H = W, or an even number of turns.
        symmetry: 0 to 7: turns, plus 4 where it is mirrored left to right before.
    """
    mirrored = image.flip(-1) if symmetry >= SYMMETRIES // 2 else image
    return torch.rot90(mirrored, symmetry % 4, (-2, -1))


class Pixels:
    """Batches of a set's images as the encoder takes them."""

    def __init__(
        self, images: ImageSet, inputs: InputOptions, normalisation: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Reads nothing yet.

        Args:
            images: the set.
            inputs: how images are given to the encoder.
            normalisation: mean and std per modality.
        """
        self._images = images
        self._inputs = inputs
        self._normalisation = normalisation
        self._held: dict[int, dict[str, Tensor]] = {}
        self._bytes = 0

    def batch(
        self, rows: NDArray[np.int64], symmetries: Sequence[int] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Some images, on the device.

        Args:
            rows: (B,) of the set.
            symmetries: how each is turned, see `turned`; None leaves them as they are.

        Returns:
            Modality -> (n_m, C_m, S, S), and modality -> (n_m,) the place in the batch of each.
        """
        pixels: dict[str, list[Tensor]] = {}
        places: dict[str, list[int]] = {}
        for place, row in enumerate(rows.tolist()):
            for modality, image in self._image(row).items():
                shown = image if symmetries is None else turned(image, int(symmetries[place]))
                pixels.setdefault(modality, []).append(shown)
                places.setdefault(modality, []).append(place)
        device = self._inputs.device
        return (
            {name: torch.stack(found).to(device) for name, found in pixels.items()},
            {name: torch.tensor(found, device=device) for name, found in places.items()},
        )

    def _image(self, row: int) -> dict[str, Tensor]:
        if row in self._held:
            return self._held[row]
        read = self._images.read(row, self._inputs.modalities)
        image = model_input(read, self._normalisation, self._inputs.size)
        size = sum(tensor.numel() * tensor.element_size() for tensor in image.values())
        if self._bytes + size <= _HELD_BYTES:
            self._held[row] = image
            self._bytes += size
        return image
