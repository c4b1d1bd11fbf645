"""Writes tortilla files as `tacotoolbox` 0.5 does, small."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from rasterio.io import MemoryFile


def tortilla(parts, columns=None):
    """Bytes of a tortilla.

    Args:
        parts: (id, file format, content) of each.
        columns: name -> values, one for each part.
    """
    body, places = b"", []
    start = 200  # The header and its padding.
    for _, _, content in parts:
        places.append((start + len(body), len(content)))
        body += content
    table = pa.table(
        {
            "tortilla:id": [name for name, _, _ in parts],
            "tortilla:file_format": [kind for _, kind, _ in parts],
            "tortilla:offset": [at for at, _ in places],
            "tortilla:length": [length for _, length in places],
            **(columns or {}),
        }
    )
    footer = io.BytesIO()
    pq.write_table(table, footer)
    header = b"#y" + (start + len(body)).to_bytes(8, "little")
    header += len(footer.getvalue()).to_bytes(8, "little")
    return header.ljust(start, b"\0") + body + footer.getvalue()


def geotiff(pixels):
    """Bytes of a GeoTIFF of (C, H, W)."""
    with MemoryFile() as memory:
        with memory.open(
            driver="GTiff", count=len(pixels), height=pixels.shape[1], width=pixels.shape[2],
            dtype=pixels.dtype.name, crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
        ) as image:  # fmt: skip
            image.write(pixels)
        return memory.read()


def write_set(path, samples):
    """A set.

    Args:
        path: of the file.
        samples: (id, split, [(id, content)], columns of the first part) of each.
    """
    parts = []
    for name, _, files, columns in samples:
        held = [(key, "GTiff", content) for key, content in files]
        # As the published files: what is known of the sample stands in its every row.
        inner = {key: [value] * len(files) for key, value in columns.items()}
        parts.append((name, "TORTILLA", tortilla(held, inner)))
    Path(path).write_bytes(
        tortilla(parts, {"tortilla:data_split": [split for _, split, _, _ in samples]})
    )
