"""Geometries that others wrote, as well-known binary, looked at before a library reads them."""

import struct

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Well-known binary begins with the order of bytes and the kind.
_ORDERS = (">", "<")
_HEAD = struct.Struct("<BI")
_POLYGONS, _SEVERAL = (
    [struct.pack(f"{order}BI", byte, kind) for byte, order in enumerate(_ORDERS)] for kind in (3, 6)
)


def check_polygons(geometry: pa.Array) -> None:
    """Lets through what a library reads without going deeper: Polygons, also several of them.

    GEOS reads a collection by calling itself for what lies in it: one in a hundred thousand others
    ends the process.

    Args:
        geometry: (N,) WKB.

    Raises:
        ValueError: one is something else, or cut short.
    """
    heads = pc.binary_slice(geometry, 0, _HEAD.size)
    kinds = pc.index_in(heads, pa.array(_POLYGONS + _SEVERAL, pa.binary()))
    if kinds.null_count:
        raise ValueError("a geometry is neither a Polygon nor a MultiPolygon")
    for row in np.flatnonzero(kinds.to_numpy() >= len(_POLYGONS)).tolist():
        _check_members(geometry[row].as_py())


def _check_members(content: bytes) -> None:
    """Walks over the members of a MultiPolygon, each of which has to be a Polygon."""
    try:
        order = _ORDERS[content[0]]
        (members,) = struct.unpack_from(f"{order}I", content, _HEAD.size)
        at = _HEAD.size + 4
        for _ in range(members):
            if content[at : at + _HEAD.size] not in _POLYGONS:
                raise ValueError("a MultiPolygon holds something else than Polygons")
            order = _ORDERS[content[at]]
            (rings,) = struct.unpack_from(f"{order}I", content, at + _HEAD.size)
            at += _HEAD.size + 4
            for _ in range(rings):
                (points,) = struct.unpack_from(f"{order}I", content, at)
                at += 4 + 16 * points
    except struct.error:
        raise ValueError("a geometry is cut short") from None
