"""Commands that a person may paste into a shell."""

import os
import shlex

_ESCAPED = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\t": "\\t"}


def command_line(*words: str | os.PathLike[str]) -> str:
    """A command with its arguments as one line, which a shell reads back as these words."""
    return " ".join(quoted(os.fspath(word)) for word in words)


def quoted(word: str) -> str:
    """A word for bash.

    Names may hold line breaks and other control characters, which end a comment or steer a
    terminal: those are spelled out, as `$'...'` has them.
    """
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + "".join(map(_spelled, word)) + "'"


def _spelled(character: str) -> str:
    if character in _ESCAPED:
        return _ESCAPED[character]
    code = ord(character)
    if character.isprintable():
        return character
    if 0xDC80 <= code <= 0xDCFF:
        # A byte that is no UTF-8, as Python has it.
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x80 else f"\\U{code:08x}"
