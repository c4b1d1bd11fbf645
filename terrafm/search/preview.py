"""A tile in colour, and who gives it."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Preview:
    """A tile in colour.

    Attributes:
        modality: key of `SENSOR_TITLES`.
        image: (H, W, 3) physical values as `terrafm.pictures.colours` makes them, NaN
            without data.
    """

    modality: str
    image: NDArray[np.float32]


class Previews(Protocol):
    """Where pictures of tiles come from."""

    def preview(self, tile: dict[str, Any]) -> Preview | None:
        """One tile of what `find_similar` returns; None where it has no sensor to show.

        Raises:
            TerraFMError: its pixels cannot be read.
        """
        ...
