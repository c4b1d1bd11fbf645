"""Export: where files go, what they are called, and that the printed lines work."""

import os
import subprocess
import sys

import pytest
import torch

import terrafm
from terrafm.errors import TerraFMError, UsageError
from terrafm.export import export_weights, loading_snippet
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    statistics = {
        name: {"mean": [0.2] * m.channels, "std": [0.1] * m.channels}
        for name, m in MODALITIES.items()
    }
    encoder = build_encoder("terrafm_tiny").eval()
    return encoder, WeightsContract.build("terrafm_tiny", statistics, image_size=64)


@pytest.mark.parametrize("format", ["safetensors", "released"])
def test_exported_weights_give_the_teachers_embeddings(tmp_path, teacher, format):
    encoder, contract = teacher
    x = torch.randn(2, 12, 48, 64)
    first, *_ = export_weights(encoder.state_dict(), contract, str(tmp_path / "out"), format)
    model = terrafm.load_model("terrafm_tiny", weights=first)
    with torch.inference_mode():
        for modality in ("s2_l1c", "s2_l2a"):
            assert torch.equal(model(x, modality=modality), encoder(x, modality=modality))


def test_files_are_named_after_the_model_or_as_told(tmp_path, teacher):
    encoder, contract = teacher
    state, root = encoder.state_dict(), str(tmp_path)
    for output, format, expected in [
        (root, "safetensors", ["terrafm_tiny.safetensors"]),
        (f"{root}/", "released", ["terrafm_tiny.pth", "terrafm_tiny.json"]),
        (f"{root}/mine.safetensors", "safetensors", ["mine.safetensors"]),
        (f"{root}/mine.v1.pth", "released", ["mine.v1.pth", "mine.v1.json"]),
    ]:
        written = export_weights(state, contract, output, format)
        assert [os.path.relpath(uri, root) for uri in written] == expected
        assert all(os.path.getsize(uri) for uri in written)
    names = os.listdir(root)
    assert not [name for name in names if name.startswith(".")]
    memory = export_weights(state, contract, "memory://exports/run", "safetensors")
    assert memory == ["memory://exports/run/terrafm_tiny.safetensors"]


def test_wrong_use_is_one_clear_line(tmp_path, teacher):
    encoder, contract = teacher
    state = encoder.state_dict()
    with pytest.raises(UsageError, match="unknown format 'onnx': one of safetensors, released"):
        export_weights(state, contract, str(tmp_path), "onnx")
    with pytest.raises(UsageError, match=r"the format released needs \.pth"):
        export_weights(state, contract, str(tmp_path / "w.safetensors"), "released")
    (tmp_path / "file").touch()
    with pytest.raises(TerraFMError, match="cannot write weights"):
        export_weights(state, contract, str(tmp_path / "file" / "w.pth"), "released")


def test_the_printed_snippets_run_in_a_fresh_interpreter(tmp_path, teacher, monkeypatch):
    encoder, contract = teacher
    monkeypatch.chdir(tmp_path)
    snippets = []
    for format in ("safetensors", "released"):
        export_weights(encoder.state_dict(), contract, f"out/{format}", format)
        snippets.append(loading_snippet(f"out/{format}", format, contract))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:__main__", "-c", "\n".join(snippets)],
        cwd=elsewhere,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.stderr == ""
    assert result.stdout.splitlines() == ["(1, 96)", "(1, 96)"]


def test_the_snippet_shows_a_modality_that_the_weights_know(teacher):
    _, contract = teacher
    radar = contract.model_copy(update={"modalities": {"s1": contract.modalities["s1"]}})
    snippet = loading_snippet("s3://bucket/run", "released", radar)
    assert "s3://bucket/run/terrafm_tiny.pth" in snippet
    assert "s1 in dB" in snippet
    assert "VV VH" in snippet


def test_importing_the_package_imports_neither_torch_nor_timm():
    code = "import sys, terrafm; print({'torch', 'timm', 'ray'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "set()"
