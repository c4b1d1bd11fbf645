"""The codecs that shards may use, by the names of `ingest.codec`."""

from typing import Any

from numpy.typing import NDArray

from terrafm.data.shards import codec

_FULL_NAMES: dict[str, str] = getattr(codec, "CODECS", {})


def names() -> tuple[str, ...]:
    """The default first."""
    return tuple(_FULL_NAMES) or ("blosc2",)


def encode(name: str, pixels: NDArray[Any]) -> bytes:
    """Pixels to a cell."""
    return codec.encode(pixels, *_arguments(name))


def decode(name: str, cell: bytes, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """A cell to pixels."""
    return codec.decode(cell, shape, dtype, *_arguments(name))


def _arguments(name: str) -> tuple[str, ...]:
    return (_FULL_NAMES[name],) if _FULL_NAMES else ()
