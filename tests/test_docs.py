"""What the pages say is what the code does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from terrafm.config import settings

ROOT = Path(__file__).resolve().parents[1]


def blocks(page, language):
    """Of one kind: "python", or "python onnx" where they need what may not be installed."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)


def test_the_configuration_page_lists_every_key_with_its_default():
    page = (ROOT / "docs" / "configuration.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| (.*?) \| `(.*?)` \| (.*?) \|$", page, re.M)
    expected = [
        (key, kind.replace("|", "or"), _shown(default), description)
        for key, kind, default, description in settings()
    ]
    assert rows == expected


def _shown(default):
    return str(list(default) if isinstance(default, tuple) else default)


def test_every_link_to_a_file_leads_somewhere():
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_of_the_readme_runs(tmp_path):
    (code,) = blocks("README.md", "python")
    prepare = "import torch; pixels = l2a = l1c = torch.zeros(1, 12, 96, 96); s1 = pixels[:, :2]\n"
    check = "assert embedding.shape == fused.shape == (1, 768) and maps[0].shape == (1, 768, 6, 6)"
    subprocess.run([sys.executable, "-c", prepare + code + check], check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_real_run_of_the_readme_runs(tmp_path, shared_folder):
    (script,) = blocks("README.md", "bash")
    real = shared_folder / "realdata"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | {
        "ARCHIVE": str(real / "colocated"),
        "EUROSAT": str(real / "eurosat_ms"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean spectrum" in done.stdout


def run_pages_shell(script, folder, **environment):
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


@pytest.mark.slow
@pytest.mark.parametrize("part", ["plain", "onnx", "terratorch"])
def test_the_code_of_the_export_page_runs(part, checkpoint, tmp_path):
    if part != "plain":
        pytest.importorskip({"onnx": "onnxruntime"}.get(part, part))
    kind = "" if part == "plain" else f" {part}"
    page = "docs/export.md"
    # TerraTorch's lines read what the plain ones wrote.
    scripts = blocks(page, "bash" if part == "terratorch" else f"bash{kind}")
    run_pages_shell("\n".join(scripts), tmp_path, CHECKPOINT=checkpoint)
    codes = blocks(page, f"python{kind}")
    assert codes
    for code in codes:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
