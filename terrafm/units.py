"""Numbers as people read them."""


def human_bytes(size: float) -> str:
    """A number of bytes with one decimal and a decimal unit, such as 1.4 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def counted(number: int, noun: str) -> str:
    """A number of things, such as 1 tile or 1,024 tiles."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def place_name(latitude: float, longitude: float, digits: int = 2) -> str:
    """Degrees as on maps, such as 45.15°N 15.00°E; two digits are a kilometre."""
    north, east = "N" if latitude >= 0 else "S", "E" if longitude >= 0 else "W"
    return f"{abs(latitude):.{digits}f}°{north} {abs(longitude):.{digits}f}°{east}"


def shown_number(value: float) -> str:
    """A number with about four digits, such as 1,024, 0.0031 or 1.2e-07."""
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """A time as people say it, such as 45 s, 12 min, 3.5 h or 2.1 d."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} d"
