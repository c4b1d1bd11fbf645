"""Coordinate systems as datasets name them, for GDAL."""

import pyproj
from pyproj.exceptions import CRSError
from rasterio.crs import CRS

from terrafm.errors import TerraFMError


def raster_crs(name: str) -> CRS:
    """The coordinate system of an authority string or WKT.

    GDAL itself would fetch a name that is an address, and read one that is a file; pyproj does not.

    Raises:
        TerraFMError: there is no such coordinate system.
    """
    try:
        return CRS.from_wkt(pyproj.CRS.from_user_input(name).to_wkt())
    except CRSError:
        raise TerraFMError(f"{name[:100]!r} is no coordinate system") from None
