"""Files that another library opens: looked through before it does.

geobench and torchgeo open what lies in a folder by themselves. Pipes and devices would hold them
up, a raster that is a VRT or an HDF5 link would send them to other files, and a dataset in HDF5
may claim any size.
"""

import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

from rasterio.errors import NotGeoreferencedWarning, RasterioError

from terrafm.data.rasters.geotiff import SUFFIXES
from terrafm.data.rasters.opening import check_whole, open_raster
from terrafm.errors import UsageError
from terrafm.storage.claims import check_claim
from terrafm.storage.faults import one_line
from terrafm.storage.local import check_regular, open_regular

HDF5_SUFFIXES = (".h5", ".hdf5")
_TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Filters that HDF5 has itself; it looks for others as libraries on the disk.
_BUILT_IN_FILTERS = range(1, 7)


def check_folder(folder: str, samples: bool = True) -> None:
    """Looks through a folder and all that lies below it.

    Args:
        folder: on a disk.
        samples: look into TIFF and HDF5 files as well; each takes about a millisecond.

    Raises:
        UsageError: it holds a pipe, a socket or a device, a `.tif` that is no TIFF or claims more
            pixels than it can hold, or an HDF5 file that leads elsewhere or claims more than it
            holds; names it.
    """
    for path in _files(folder):
        try:
            check_regular(path)
            if path.lower().endswith(SUFFIXES):
                _check_tiff(path, samples)
            elif samples and path.lower().endswith(HDF5_SUFFIXES):
                check_hdf5(path)
        except (OSError, ValueError, RuntimeError, RasterioError) as error:
            raise UsageError(f"cannot read {path}: {one_line(error)}") from None


def check_hdf5(path: str) -> None:
    """Looks through an HDF5 file.

    Raises:
        OSError, ValueError, RuntimeError: it is damaged, has links or data in other files, filters
            that are not HDF5's own, or claims more than its bytes can hold.
    """
    # Comes with the library that will read it.
    import h5py

    with open_regular(path):
        size = os.path.getsize(path)
    with h5py.File(path, "r") as file:
        check_hdf5_file(file, size)


def check_hdf5_file(file: Any, size: int) -> None:
    """Looks through an open `h5py.File`.

    Args:
        file: opened to read.
        size: of it, bytes.

    Raises:
        OSError, ValueError, RuntimeError: as `check_hdf5`.
    """
    import h5py

    claimed = 0
    for dataset in _datasets(file, h5py):
        plist = dataset.id.get_create_plist()
        filters = {plist.get_filter(n)[0] for n in range(plist.get_nfilters())}
        if not filters <= set(_BUILT_IN_FILTERS):
            raise ValueError(f"dataset {dataset.name} has a filter that HDF5 would load")
        if dataset.is_virtual or dataset.external:
            raise ValueError(f"dataset {dataset.name} has its data in another file")
        # A chunk is decoded as a whole, and may be larger than what lies in it.
        numbers = max(dataset.size or 0, math.prod(dataset.chunks or ()))
        claimed += numbers * dataset.dtype.itemsize
    check_claim(claimed, size, "data")


def _datasets(group: Any, h5py: Any) -> Iterator[Any]:
    waiting, seen = [group], set()
    while waiting:
        here = waiting.pop()
        # A link may lead back to a group above.
        if hash(here.id) in seen:
            continue
        seen.add(hash(here.id))
        for name in here:
            link = here.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise ValueError(f"{name} is a link, which may lead to another file")
            found = here[name]
            if isinstance(found, h5py.Group):
                waiting.append(found)
            elif isinstance(found, h5py.Dataset):
                yield found


def _check_tiff(path: str, pixels: bool) -> None:
    with open_regular(path) as file:
        if file.read(4) not in _TIFF_MARKS:
            raise ValueError("it is no TIFF")
    if pixels:
        with warnings.catch_warnings():
            # Where it lies does not matter here.
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with open_raster(path) as image:
                check_whole(image, lambda: os.path.getsize(path))


def _files(folder: str) -> Iterator[str]:
    for here, _, names in os.walk(folder):
        yield from (os.path.join(here, name) for name in sorted(names))
