"""The blocks of code of a page of the documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def code_blocks(page, language):
    """Texts of a page's blocks of one kind, in order: "python", or "python onnx" for some only."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{re.escape(language)}\n(.*?)^```", text, re.M | re.S)


def code_block(page, language):
    """The only one."""
    (found,) = code_blocks(page, language)
    return found
