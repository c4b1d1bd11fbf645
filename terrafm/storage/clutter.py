"""Files that nobody means to give: what file managers, archivers and network disks leave."""

# Hidden names, such as .DS_Store and the ._ twins of macOS, begin with a dot.
_CLUTTER = {
    "thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "icon\r", "$recycle.bin",
    "system volume information", "@eadir", "lost+found",
}  # fmt: skip


def is_clutter(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a file manager left there."""
    return name.startswith(".") or name.lower() in _CLUTTER
