"""Makes the table of `terrafm.data.land.land_tiles`, by hand:

    pip install landmetrics global-land-mask scipy && python tests/data/make_land_tiles.py

landmetrics has the distance to GSHHG's shoreline (CC BY 4.0, T. Tsukada), global-land-mask GLOBE.
"""

import sys
from pathlib import Path

import global_land_mask
import landmetrics
import netCDF4
import numpy as np

# Every point of a tile lies within 8 km of one of the points that the distance is known at.
_MARGIN_KM = 8
_POINTS = 31

folder = Path(landmetrics.__file__).parent / "data"
with netCDF4.Dataset(folder / "distance_to_land_0.1deg_gt0km2.nc") as file:
    distance = np.asarray(file["distance_to_land"][:])
folder = Path(global_land_mask.__file__).parent
with np.load(folder / "globe_combined_mask_compressed.npz") as file:
    globe = (~file["mask"]).reshape(60, 360, 120, 360).any((1, 3))

near = np.zeros((60, 120), bool)
for row, column in np.ndindex(near.shape):
    # Rows of the grid go northward from the South Pole.
    south = 30 * (59 - row)
    east = (30 * column + np.arange(_POINTS)) % distance.shape[1]
    near[row, column] = distance[south : south + _POINTS][:, east].min() <= _MARGIN_KM
land = near | globe
for row in land[2:]:
    sys.stdout.write(f"    {int(''.join('1' if tile else '0' for tile in row), 2):030x}\n")
sys.stdout.write(f"{land[2:50].sum()} tiles between 60 S and 84 N\n")
