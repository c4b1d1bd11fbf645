"""What the pages say is what the code does."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pages import code_blocks, run_pages_shell

from terrafm.cli import app
from terrafm.config import load_config, settings
from terrafm.models.weights import load_encoder

ROOT = Path(__file__).resolve().parents[1]


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
    (code,) = code_blocks("README.md", "python")
    prepare = "import torch; pixels = l2a = l1c = torch.zeros(1, 12, 96, 96); s1 = pixels[:, :2]\n"
    check = "assert embedding.shape == fused.shape == (1, 768) and maps[0].shape == (1, 768, 6, 6)"
    subprocess.run([sys.executable, "-c", prepare + code + check], check=True, cwd=tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_first_real_run_of_the_readme_runs(tmp_path, shared_folder):
    (script,) = code_blocks("README.md", "bash")
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


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_code_of_the_validation_page_runs(small_dataset, tmp_path):
    page = "docs/validation.md"
    (script,) = code_blocks(page, "bash")
    run_pages_shell(script, tmp_path, TILES=small_dataset)
    assert (tmp_path / "weights" / "terrafm_tiny.safetensors").exists()
    (code,) = code_blocks(page, "python")
    (tmp_path / "python").mkdir()
    given = f"tiles = {small_dataset!r}\n"
    done = subprocess.run(
        [sys.executable, "-c", given + code],
        cwd=tmp_path / "python",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Best(step=" in done.stdout
    assert (tmp_path / "python" / "validation.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_code_of_the_adapt_page_runs(small_dataset, tmp_path):
    run_pages_shell("\n".join(code_blocks("docs/adapt.md", "bash")), tmp_path, TILES=small_dataset)
    first, frozen = (
        load_encoder(str(tmp_path / run / "exported" / "last.safetensors")).state_dict()
        for run in ("first", "frozen")
    )
    same = {name for name, tensor in first.items() if tensor.equal(frozen[name])}
    assert {name.split(".")[1] for name in same if name.startswith("blocks.")} == {"0"}
    assert "patch_error" in (tmp_path / "distilled" / "metrics.jsonl").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("part", ["plain", "onnx", "terratorch"])
def test_the_code_of_the_export_page_runs(part, checkpoint, tmp_path):
    if part != "plain":
        pytest.importorskip({"onnx": "onnxruntime"}.get(part, part))
    kind = "" if part == "plain" else f" {part}"
    page = "docs/export.md"
    # TerraTorch's lines read what the plain ones wrote.
    scripts = code_blocks(page, "bash" if part == "terratorch" else f"bash{kind}")
    run_pages_shell("\n".join(scripts), tmp_path, CHECKPOINT=checkpoint)
    codes = code_blocks(page, f"python{kind}")
    assert codes
    for code in codes:
        subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def verbs(command=None, name=""):
    """Every verb of the command line, also those of its groups, such as "jobs list"."""
    command = command or typer.main.get_command(app)
    for word, inner in command.commands.items():
        full = f"{name} {word}".strip()
        if hasattr(inner, "commands"):
            yield from verbs(inner, full)
        else:
            yield full


def test_every_verb_has_a_page_in_the_index():
    pages = {}
    index = (ROOT / "docs/README.md").read_text()
    for row in re.findall(r"^\|(.*terrafm .*)\|(.*)\|$", index, re.M):
        for group in row[0].split(";"):
            words = re.findall(r"`([^`]+)`", group)
            first = words[0].removeprefix("terrafm ").split()
            for word in (" ".join(first), *(" ".join([*first[:-1], w]) for w in words[1:])):
                pages[word] = re.findall(r"\]\(([^)]+)\)", row[1])
    assert set(pages) == set(verbs())
    for verb, files in pages.items():
        text = "".join((ROOT / "docs" / file).read_text() for file in files)
        assert verb.split()[-1] in text, f"{files} say nothing of terrafm {verb}"
        assert f"terrafm {verb.split()[0]}" in text, f"{files} say nothing of terrafm {verb}"


def test_every_page_is_in_the_index():
    index = (ROOT / "docs/README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name


@pytest.mark.parametrize("page", ["elastic", "sweeps"])
def test_the_configurations_of_the_pages_are_ones(tmp_path, page):
    texts = code_blocks(f"docs/{page}.md", "yaml")
    assert texts
    for text in texts:
        (tmp_path / "page.yaml").write_text(text)
        load_config(str(tmp_path / "page.yaml"))


@pytest.fixture
def no_cluster(monkeypatch):
    """Nothing in the environment names a cluster that would be joined by accident."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)


# In the order in which they make what the next ones use: a dataset, a run, its checkpoints.
ROAD = ("datasets", "pretraining", "checkpoints", "sweeps")


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_code_of_the_road_runs(tmp_path, no_cluster):
    for name in ROAD:
        page = f"docs/{name}.md"
        run_pages_shell("\n".join(code_blocks(page, "bash")), tmp_path)
        for code in code_blocks(page, "python"):
            subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    assert len(list((tmp_path / "geotiffs").glob("*.tif"))) == 7
    assert (tmp_path / "average" / "complete.json").exists()
    assert (tmp_path / "sweep" / "best.yaml").exists()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_code_of_the_jobs_page_runs(tmp_path, no_cluster):
    private = {"HOME": str(tmp_path / "home"), "TERRAFM_CLUSTER_DIR": str(tmp_path / "cluster")}
    (tmp_path / "home").mkdir()
    script = "\n".join(code_blocks("docs/jobs.md", "bash"))
    # Whatever fails, the cluster ends.
    run_pages_shell(f"trap 'terrafm cluster down || true' ERR\n{script}", tmp_path, **private)
    assert (tmp_path / "run" / "checkpoints" / "step_00000020").exists()
    assert not list((tmp_path / "cluster").glob("token"))


@pytest.mark.slow
def test_the_code_of_the_doctor_page_runs(tmp_path, no_cluster):
    run_pages_shell(*code_blocks("docs/doctor.md", "bash"), tmp_path)
    assert not any((tmp_path / "results").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_code_of_the_demo_page_runs(tmp_path, no_cluster):
    run_pages_shell(*code_blocks("docs/demo.md", "bash"), tmp_path)
    for name in re.findall(r"^\| `([^`]+?)/?`[ ,]", (ROOT / "docs/demo.md").read_text(), re.M):
        assert (tmp_path / "demo" / name).exists(), name
    found = json.loads((tmp_path / "demo" / "summary.json").read_text())["retrieval"]
    assert len(found) == 6
    assert {"weights", "untrained", "chance"} <= set(found["s1>s2_l2a"])
    assert all(0 <= recall <= 1 for row in found.values() for recall in row.values())
