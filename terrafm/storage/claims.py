"""What a file claims to hold against the bytes it has: memory is not given for the asking."""

HARMLESS_BYTES = 256 << 20
"""A claim up to this is met, whatever the file: it costs a moment at worst."""
# One constant image shrinks to a four-hundredth at most, by any codec of a GeoTIFF.
_MOST_TIMES = 5000


def check_claim(claimed: int, stored: int) -> None:
    """Refuses pixels that so few bytes cannot hold, before memory is taken for them.

    Args:
        claimed: bytes of the pixels once they are decoded.
        stored: bytes that they are decoded from.

    Raises:
        ValueError: more than 256 MiB, and more than 5000 times what is stored.
    """
    if claimed > max(HARMLESS_BYTES, _MOST_TIMES * stored):
        raise ValueError(f"{stored:,} bytes cannot hold the {claimed:,} bytes of pixels it claims")
