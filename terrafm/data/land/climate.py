"""Climate zones from a raster that the user gives, such as a Koeppen-Geiger map.

Any GeoTIFF of integer codes in EPSG:4326 will do, at any resolution. Zones are only used to spread
the selection of tiles; they never enter the loss.
"""

from functools import cached_property
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from terrafm.data.archive import BadCellError
from terrafm.data.rasters.opening import open_raster, open_raster_through
from terrafm.errors import UsageError
from terrafm.storage import is_local, read_bytes
from terrafm.storage.limits import WHOLE_FILE_BYTES

UNKNOWN = 0


class ClimateZones:
    """A raster of climate zones; picklable, opened once in each process that reads it."""

    def __init__(self, uri: str) -> None:
        """Checks the raster.

        Raises:
            UsageError: it cannot be opened, is not in EPSG:4326, or holds no integer codes.
        """
        self._uri = uri
        try:
            dataset = self._dataset
        except (RasterioError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UsageError(f"cannot open the climate raster {uri}: {reason}") from None
        kind = str(dataset.dtypes[0])
        if dataset.crs is None or dataset.crs.to_epsg() != 4326:
            raise UsageError(f"the climate raster {uri} must be in EPSG:4326, not {dataset.crs}")
        if (
            not kind.removeprefix("u").startswith("int")
            or dataset.transform.b
            or dataset.transform.d
        ):
            raise UsageError(
                f"the climate raster {uri} must be a north-up grid of integer codes, not {kind}"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay behind."""
        return {"_uri": self._uri}

    def codes(
        self, latitude: NDArray[np.float64], longitude: NDArray[np.float64]
    ) -> NDArray[np.int32]:
        """The zone at each place, nearest neighbour.

        Args:
            latitude: (N,) degrees.
            longitude: (N,) degrees; any turn.

        Returns:
            (N,) codes of the raster; 0 outside of it and where it has no data.

        Raises:
            BadCellError: the raster is damaged there.
        """
        dataset = self._dataset
        west, north = dataset.transform.c, dataset.transform.f
        columns = np.floor(np.mod(longitude - west, 360.0) / dataset.transform.a).astype(np.int64)
        rows = np.floor((latitude - north) / dataset.transform.e).astype(np.int64)
        # The South Pole lies on the lower edge of the last row.
        rows[latitude == dataset.bounds.bottom] = dataset.height - 1
        codes = np.full(len(latitude), UNKNOWN, dtype=np.int32)
        for i in np.flatnonzero((rows >= 0) & (rows < dataset.height) & (columns < dataset.width)):
            try:
                window = Window(int(columns[i]), int(rows[i]), 1, 1)
                code = int(dataset.read(1, window=window)[0, 0])
            except RasterioError as error:
                raise BadCellError(self._uri, f"climate raster cannot be read: {error}") from None
            codes[i] = UNKNOWN if code == dataset.nodata else code
        return codes

    @cached_property
    def _dataset(self) -> Any:
        if is_local(self._uri):
            return open_raster(self._uri)
        # Read once and whole: a request for each tile's pixel would take far longer.
        content = read_bytes(self._uri, WHOLE_FILE_BYTES)
        return open_raster_through(self._uri, lambda: BytesIO(content), lambda: len(content))
