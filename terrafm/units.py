"""Numbers as people read them."""


def human_bytes(size: float) -> str:
    """A number of bytes with one decimal and a decimal unit, such as 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def place_name(latitude: float, longitude: float, digits: int = 2) -> str:
    """Degrees as on maps, such as 45.15°N 15.00°E; two digits are a kilometre."""
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.{digits}f}°{north} {abs(longitude):.{digits}f}°{east}"
