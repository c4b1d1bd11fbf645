"""What is embedded: tiles of a dataset or windows of GeoTIFFs, with their places."""

from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from terrafm.data.land.selection import parse_time
from terrafm.embed.hilbert import hilbert_order
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.datasets.shard_tiles import ShardTiles, cell_of

Affine = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class Place:
    """What is known of a tile besides its pixels.

    Attributes:
        tile_id: unique.
        crs: of the pixels, as an authority string or WKT.
        transform: affine coefficients (a, b, c, d, e, f) of the grid of `shape`.
        shape: rows and columns.
        source: URI of the dataset or file.
        times: modality -> acquisition, where it is known.
        land_cover: code of the majority class.
        land_cover_name: its name.
        grid_cell: the cell that the tile was cut from.
        window: column, row, width, height of a GeoTIFF's window.
    """

    tile_id: str
    crs: str
    transform: Affine
    shape: tuple[int, int]
    source: str
    times: dict[str, datetime] = field(default_factory=dict)
    land_cover: int | None = None
    land_cover_name: str | None = None
    grid_cell: str | None = None
    window: tuple[int, int, int, int] | None = None


class TileSource(ImageSet, Protocol):
    """Images with their places; pickled into every worker.

    Attributes:
        kind: "dataset" or "geotiff".
        legend: land-cover code -> name.
        options: JSON-able, how the images were cut out.
        gsd: side of a pixel, m; None where it is not in metres.
        chip_layout: how the images lie beside each other, as STAC's Embedding has it.
    """

    kind: Literal["dataset", "geotiff"]
    legend: dict[int, str]
    options: dict[str, Any]
    gsd: float | None
    chip_layout: dict[str, Any]

    def __len__(self) -> int: ...

    @property
    def order(self) -> NDArray[np.int64]:
        """(N,) images in the order in which they are embedded and stored, by place."""
        ...

    def place(self, row: int) -> Place:
        """Where an image lies, when it was taken, what it shows."""
        ...


class DatasetTiles(ShardTiles):
    """The tiles of a dataset of ingest."""

    kind: Literal["dataset", "geotiff"] = "dataset"

    def __init__(self, uri: str, fingerprint: str | None = None) -> None:
        """Opens the dataset, as `ShardTiles`."""
        super().__init__(uri, fingerprint)
        self.legend = dict(self.dataset.legend)
        self.options: dict[str, Any] = {}
        side = self.dataset.tile_size
        self.gsd: float | None = float(self.dataset.gsd)
        self.chip_layout: dict[str, Any] = {
            "layout_type": "regular_grid", "chip_size": [side, side], "stride": [side, side],
        }  # fmt: skip

    def __len__(self) -> int:
        return len(self.dataset)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker opens the same version by itself: an open index does not travel.
        return DatasetTiles, (self.uri, self.fingerprint)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """(N,) tiles along a Hilbert curve over the globe."""
        return hilbert_order(self.dataset.longitude, self.dataset.latitude)

    def place(self, row: int) -> Place:
        """As the index has it."""
        tile = self.dataset.tile(row)
        times = {m: parse_time(product.get("time", "")) for m, product in tile["products"].items()}
        code, side = int(tile["land_cover"]), self.dataset.tile_size
        return Place(
            tile_id=tile["tile_id"],
            crs=tile["crs"],
            transform=tile["transform"],
            shape=(side, side),
            source=self.uri,
            times={m: time for m, time in times.items() if time is not None},
            land_cover=code,
            land_cover_name=self.legend.get(code, f"class {code}"),
            grid_cell=cell_of(tile["tile_id"]),
        )
