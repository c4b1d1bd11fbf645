"""Text of a job as a terminal may be given it: colours stay, what moves or commands it does not.

A job prints what others made: names of tiles, messages of stores. Escape sequences in it could
write over lines above, change the window's title or the clipboard, or have the terminal type an
answer.
"""

from __future__ import annotations

import re

# Colours, and the erasing of a line, which bars of progress need.
_KEPT = re.compile(r"\x1b\[[0-9;]*[mK]")
_SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: cursor, screen, modes, questions
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\)"  # OSC, DCS, SOS, PM, APC: title, clipboard, links
    r"|\x1b[ -/]*[0-~]",  # other escapes
    re.DOTALL,
)
_BEGUN = re.compile(r"\x1b(?:\[[0-?]*[ -/]*|[\]PX^_].*|[ -/]*)?$", re.DOTALL)
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_LONGEST = 4096


class Shown:
    """A stream of text, piece by piece; a sequence may begin in one and end in the next."""

    def __init__(self) -> None:
        self._begun = ""

    def __call__(self, text: str) -> str:
        """What may be shown of the next piece."""
        text = self._begun + text
        begun = _BEGUN.search(text)
        # One that never ends is no sequence.
        held = begun is not None and len(text) - begun.start() <= _LONGEST
        self._begun = text[begun.start() :] if begun is not None and held else ""
        return clean(text[: len(text) - len(self._begun)])


def clean(text: str) -> str:
    """A whole text without what moves or commands a terminal."""
    pieces, at = [], 0
    for found in _SEQUENCE.finditer(text):
        pieces.append(_CONTROLS.sub("", text[at : found.start()]))
        if _KEPT.fullmatch(found[0]):
            pieces.append(found[0])
        at = found.end()
    pieces.append(_CONTROLS.sub("", text[at:]))
    return "".join(pieces)
