"""Numbers as people read them."""


def human_bytes(size: float) -> str:
    """A number of bytes with one decimal and a decimal unit, such as 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
