"""Windows that cover an image with overlap, and which of them a patch of the mosaic is from.

Both axes are alike and apart: the windows of an image are all pairs of a row and a column start.
"""

from dataclasses import dataclass
from itertools import pairwise

from terrafm.errors import UsageError
from terrafm.models.patch_embed import PATCH_SIZE
from terrafm.storage.limits import WINDOW_SIDE


@dataclass(frozen=True)
class Windows:
    """How images are cut.

    Attributes:
        side: of a window, pixels.
        overlap: least overlap of neighbours, pixels.
        step: starts are multiples of it: 1, or the pixels of a patch where patches of all windows
            have to lie on one grid.
    """

    side: int
    overlap: int
    step: int = 1

    @classmethod
    def choose(cls, side: int, overlap: int | None, size: int, dense: bool) -> "Windows":
        """Windows as asked for.

        Args:
            side: of a window, pixels.
            overlap: pixels; a quarter of the window where None.
            size: side of the model's input, to which a window is resized.
            dense: patches of all windows must lie on one grid.

        Raises:
            UsageError: the window is too large, the overlap is no smaller than the window, or
                patches are no whole pixels.
        """
        if side > WINDOW_SIDE:
            raise UsageError(f"--window {side} is larger than {WINDOW_SIDE} pixels, the largest "
                             "that is read at once: take a smaller one")  # fmt: skip
        step = 1
        if dense:
            step, rest = divmod(side * PATCH_SIZE, size)
            if rest or step < 1:
                raise UsageError(
                    f"--dense: a patch of a window of {side} pixels, resized to {size}, is "
                    f"{side * PATCH_SIZE / size:.4g} pixels, which must be whole: take --window "
                    f"{_whole(side, size)}"
                )
        if overlap is None:
            overlap = side // 4 // step * step
        if overlap >= side:
            raise UsageError(f"--overlap {overlap} must be smaller than the window, {side} pixels")
        if overlap % step:
            raise UsageError(
                f"--dense: --overlap {overlap} must be a multiple of a patch, {step} pixels"
            )
        return cls(side, overlap, step)

    def starts(self, length: int) -> list[int]:
        """First pixels of the windows along an axis.

        The last window ends with the image; where starts are multiples of a patch, it sticks out
        by less than one. An image smaller than a window has one, which sticks out.
        """
        if length <= self.side:
            return [0]
        last = -(-(length - self.side) // self.step) * self.step
        return [*range(0, last, self.side - self.overlap), last]

    def owned(self, length: int) -> list[tuple[int, int]]:
        """For each window along an axis the patches [first, stop) that the mosaic takes from it.

        Neighbours share their overlap half and half, so that every patch is taken from where it
        lies farthest from a window's edge. Patches are counted from the image's first.
        """
        starts = [start // self.step for start in self.starts(length)]
        patches = -(-length // self.step)
        side = self.side // self.step
        cuts = [(following + start + side) // 2 for start, following in pairwise(starts)]
        return list(zip([0, *cuts], [*cuts, patches], strict=True))


def _whole(side: int, size: int) -> int:
    """The nearest window whose patches are whole pixels."""
    pixels = max(1, round(side * PATCH_SIZE / size))
    return pixels * size // PATCH_SIZE
