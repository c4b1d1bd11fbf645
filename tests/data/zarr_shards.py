"""TerraMesh and SSL4EO-S12 v1.1 as published, written by zarr and tarfile themselves."""

import io
import tarfile
import warnings

import numpy as np
import zarr
from numcodecs import Blosc
from pyproj import Transformer
from zarr.storage import ZipStore

from terrafm.modalities import MODALITIES

L2A = MODALITIES["s2_l2a"].bands
L1C = (*L2A[:10], "B10", *L2A[10:])
LABELS = {"S2L2A": L2A, "S2L1C": L1C, "S1RTC": ("vv", "vh"), "S1GRD": ("vv", "vh"),
          "LULC": ("lulc",)}  # fmt: skip
CORNER = (603_960, 4_988_880)
TIME = np.datetime64("2022-07-06T08:56:11", "ns")


def pixels(folder, seed=0, side=24, dates=1):
    """(dates, bands, side, side) of a folder, in its units."""
    rng = np.random.default_rng([seed, sum(map(ord, folder))])
    shape = (dates, len(LABELS[folder]), side, side)
    if folder.startswith("S1"):
        return rng.normal(-14, 3, shape).astype(np.float16)
    if folder == "LULC":
        return np.broadcast_to(rng.choice([1, 2, 5, 9], (side, side)), shape).astype(np.uint8)
    found = rng.integers(200, 3000, shape).astype(np.int16)
    if folder == "S2L1C":
        found[:, 10] = rng.integers(5, 40, shape[2:])
    return found


def centre(side, corner=CORNER, epsg=32633):
    """Longitude and latitude, degrees."""
    to_degrees = Transformer.from_crs(epsg, 4326, always_xy=True)
    return to_degrees.transform(corner[0] + side * 5, corner[1] - side * 5)


def sample(folder, values, corner=CORNER, epsg=32633, clouds=None, time=TIME, **changed):
    """Bytes of a Zarr zip of one place."""
    dates, _, rows, columns = values.shape
    longitude, latitude = centre(rows, corner, epsg)
    days = (time + np.arange(dates) * np.timedelta64(90, "D")).astype(np.int64)
    arrays = {
        "bands": values,
        "band": np.array(LABELS[folder], "<U4"),
        "x": corner[0] + 5.0 + 10 * np.arange(columns),
        "y": corner[1] - 5.0 - 10 * np.arange(rows),
        "time": days,
        "crs": np.array(epsg),
        "center_lon": np.array(longitude),
        "center_lat": np.array(latitude),
        "file_id": np.array([f"{folder}_FILE_{n}" for n in range(dates)]),
    }
    if folder.startswith("S2"):
        mask = np.zeros((dates, rows, columns), np.uint8)
        mask[:] = 0 if clouds is None else clouds
        arrays["cloud_mask"] = mask
    return packed({**arrays, **changed})


def packed(arrays, attributes=None, **options):
    """Bytes of a zip of arrays, those that are not None."""
    import tempfile
    from pathlib import Path

    settings = {"compressors": Blosc("lz4", 5, Blosc.SHUFFLE), **options}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # zarr writes the group's own files once more where it puts all metadata together.
        warnings.simplefilter("ignore", UserWarning)
        path = Path(folder) / "a.zarr.zip"
        with ZipStore(path, mode="w") as store:
            group = zarr.group(store, zarr_format=2)
            for name, values in arrays.items():
                if values is not None:
                    units = {"units": "nanoseconds since 1970-01-01"} if name == "time" else {}
                    group.create_array(name, data=np.asarray(values), **settings,
                                       attributes=(attributes or {}).get(name, units))  # fmt: skip
            zarr.consolidate_metadata(store)
        return path.read_bytes()


def write_shard(path, samples):
    """A tar of {name: bytes}, as webdataset writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as shard:
        for name, content in samples.items():
            info = tarfile.TarInfo(f"{name}.zarr.zip")
            info.size = len(content)
            shard.addfile(info, io.BytesIO(content))
    return path


def write_archive(root, number=3, side=24, folders=("S1RTC", "S2L1C", "S2L2A", "LULC"), dates=1,
                  shard="majortom_shard_000001.tar", name="majortom_val_{:07d}"):  # fmt: skip
    """Shards of places beside each other; {(folder, place): pixels}."""
    written = {}
    for folder in folders:
        samples = {}
        for place in range(number):
            # A map of land cover has one date.
            values = pixels(folder, place, side, 1 if folder == "LULC" else dates)
            written[folder, place] = values
            corner = (CORNER[0] + place * side * 10, CORNER[1])
            samples[name.format(place)] = sample(folder, values, corner)
        write_shard(root / folder / shard, samples)
    return written
