"""The blocks of code of a page of the documentation, and how they are run."""

import os
import re
import subprocess
import sys
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


def run_pages_shell(script, folder, **environment):
    """Runs a script as a reader would, in a folder; fails with what it printed."""
    paths = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**os.environ, "PATH": paths, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
