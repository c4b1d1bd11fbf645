import shutil
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from rasterio.io import MemoryFile

from terrafm.modalities import MODALITIES

sys.path.insert(0, str(Path(__file__).parent))

L2A_BANDS = MODALITIES["s2_l2a"].bands
L1C_BANDS = (*L2A_BANDS[:10], "B10", *L2A_BANDS[10:])
CORNER = (500000.0, 5000000.0)


@pytest.fixture
def realdata():
    folder = Path(__file__).resolve().parents[2] / "../shared/realdata"
    if not folder.is_dir():
        pytest.skip(f"real samples are not at {folder}")
    return folder.resolve()


@pytest.fixture
def geotiff_bytes():
    """(C, H, W) pixels -> bytes of a GeoTIFF."""

    def encode(pixels, gsd=10, crs="EPSG:32633", corner=CORNER, nodata=None, names=None, **profile):
        with MemoryFile() as memory:
            with memory.open(
                driver="GTiff",
                dtype=pixels.dtype.name,
                count=pixels.shape[0],
                height=pixels.shape[1],
                width=pixels.shape[2],
                crs=crs,
                transform=rasterio.Affine(gsd, 0, corner[0], 0, -gsd, corner[1]),
                nodata=nodata,
                **profile,
            ) as file:
                file.write(pixels)
                for i, name in enumerate(names or ()):
                    file.set_band_description(i + 1, name)
            return bytes(memory.getbuffer())

    return encode


@pytest.fixture
def place():
    """Pixels of one place, all on one grid, in the units of the geotiff archives."""

    def draw(seed=0, size=96, offset_l1c=0, offset_l2a=0):
        rng = np.random.default_rng(seed)
        ground = rng.integers(300, 3000, (12, size, size))
        l1c = np.insert(ground + 40, 10, 15, axis=0) + offset_l1c
        return {
            "S1RTC": rng.normal(-14, 3, (2, size, size)),
            "S2L1C": l1c.astype(np.int16),
            "S2L2A": (ground + offset_l2a).astype(np.int16),
            "LULC": np.full((1, size, size), 1 + seed % 3, np.uint8),
        }

    return draw


@pytest.fixture
def geotiff_archive(tmp_path, geotiff_bytes, place):
    """Writes places into a geotiff archive: name -> pixels by folder, or by default drawn."""

    def write(places, folder="archive"):
        root = tmp_path / folder
        for i, (name, pixels) in enumerate(places.items()):
            # No two places share their ground.
            corner = (CORNER[0] + 10_000 * i, CORNER[1])
            for sensor, values in (pixels or place(i)).items():
                (root / sensor).mkdir(parents=True, exist_ok=True)
                if not isinstance(values, bytes):
                    values = geotiff_bytes(values, corner=corner)
                (root / sensor / f"{name}.tif").write_bytes(values)
        return root

    return write


@pytest.fixture
def product_bands(geotiff_bytes):
    """Band columns of one Major-TOM product with constant or given digital numbers."""

    def draw(modality, value=1500, size=96, corner=CORNER, crs="EPSG:32633", skip=()):
        if modality == "s1":
            power = np.full((1, size, size), value, np.float32)
            return {
                band: geotiff_bytes(power, corner=corner, crs=crs, nodata=-32768, compress="lzw")
                for band in ("vv", "vh")
            }
        columns = {}
        bands = L1C_BANDS if modality == "s2_l1c" else L2A_BANDS
        gsds = dict(zip(L2A_BANDS, MODALITIES["s2_l2a"].gsd, strict=True)) | {"B10": 60}
        for band in bands:
            if band not in skip:
                side = size * 10 // gsds[band]
                pixels = np.full((1, side, side), value, np.uint16)
                columns[band] = geotiff_bytes(
                    pixels, gsd=gsds[band], corner=corner, crs=crs, compress="lzw"
                )
        return columns

    return draw


@pytest.fixture
def major_tom_archive(tmp_path):
    """Writes products into Major-TOM's Parquet schema.

    Takes folder -> list of (metadata, band columns); one row group per product.
    """

    def write(
        folders,
        name="major_tom",
        url="https://huggingface.co/datasets/Major-TOM/{}/resolve/main/{}",
    ):
        root = tmp_path / name
        for folder, products in folders.items():
            (root / folder / "images").mkdir(parents=True)
            part = "images/part_00001.parquet"
            rows = []
            writer = None
            for i, (metadata, bands) in enumerate(products):
                rows.append(
                    {
                        "grid_cell": metadata["grid_cell"],
                        "product_id": metadata["product_id"],
                        "timestamp": metadata["timestamp"],
                        "cloud_cover": metadata.get("cloud_cover", 0.0),
                        "nodata": metadata.get("nodata", 0.0),
                        "parquet_url": url.format(folder, part),
                        "parquet_row": i,
                    }
                )
                table = pa.Table.from_pylist(
                    [
                        {
                            "product_id": metadata["product_id"],
                            "grid_cell": metadata.get("grid_cell_in_image", metadata["grid_cell"]),
                            "thumbnail": b"",
                            **bands,
                        }
                    ]
                )
                writer = writer or pq.ParquetWriter(root / folder / part, table.schema)
                writer.write_table(table.cast(writer.schema))
            writer.close()
            pq.write_table(pa.Table.from_pylist(rows), root / folder / "metadata.parquet")
        return root

    return write


@pytest.fixture
def worldcover_tile(tmp_path):
    """Writes an ESA WorldCover tile that is zero but for a window; returns the folder."""

    def write(code, pixels=None, row=0, column=0, folder="worldcover"):
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        south = int(code[1:3]) * (1 if code[0] == "N" else -1)
        west = int(code[4:7]) * (1 if code[3] == "E" else -1)
        with rasterio.open(
            root / f"ESA_WorldCover_10m_2021_v200_{code}_Map.tif",
            "w",
            driver="GTiff",
            dtype="uint8",
            count=1,
            height=36000,
            width=36000,
            crs="EPSG:4326",
            transform=rasterio.Affine(1 / 12000, 0, west, 0, -1 / 12000, south + 3),
            nodata=0,
            tiled=True,
            blockxsize=1024,
            blockysize=1024,
            compress="deflate",
            sparse_ok=True,
        ) as file:
            if pixels is not None:
                window = rasterio.windows.Window(column, row, pixels.shape[1], pixels.shape[0])
                file.write(pixels, 1, window=window)
        return root

    return write


@pytest.fixture
def copy_of(tmp_path):
    """A writable copy of a read-only folder."""

    def copy(folder, name="copy"):
        target = tmp_path / name
        shutil.copytree(folder, target, copy_function=shutil.copyfile)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    return copy


@pytest.fixture(scope="session")
def l2a(tmp_path_factory):
    """A Level-2A SAFE product of 264 px and its pixels; not to be changed."""
    from safe_products import BANDS, Product, ground, write_safe

    product = Product(ground(1, bands=BANDS), scl=np.full((132, 132), 4, np.uint8))
    folder = tmp_path_factory.mktemp("l2a")
    write_safe(folder, product)
    return folder, product


@pytest.fixture
def own_l2a(l2a, tmp_path):
    """A copy of it that may be changed."""
    folder, product = l2a
    shutil.copytree(folder, tmp_path / "own")
    return tmp_path / "own", product
