"""Export: where files go, what they are called, and that the printed lines work."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

import terrafm
from terrafm.errors import TerraFMError, UsageError
from terrafm.export import ExportFormat, ExportOptions, export_weights, loading_snippet
from terrafm.train.checkpoints.store import load_network

NEEDS = {"onnx": "onnxruntime", "terratorch": "terratorch"}
# What the lines print for the checkpoint: 96 channels, crops of 64 pixels.
PRINTED = {
    "safetensors": ["(1, 96)"],
    "released": ["(1, 96)"],
    "hf": ["(1, 96)"],
    "terratorch": [f"{[96] * 4} {[(1, 96, 4, 4)] * 4}"],
    "torch-export": ["(1, 96) (1, 96, 4, 4)"],
    "onnx": ["(1, 96) (1, 96, 4, 4)"],
}


def need(export_format):
    library = NEEDS.get(export_format)
    if library and importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")


@pytest.mark.parametrize("format", ["safetensors", "released", "hf", "terratorch"])
def test_exported_weights_give_the_teachers_embeddings(tmp_path, teacher, format):
    encoder, contract = teacher
    x = torch.randn(2, 12, 48, 64)
    export_weights(encoder.state_dict(), contract, str(tmp_path / "out"), format)
    model = terrafm.load_model("terrafm_tiny", weights=tmp_path / "out")
    assert model.contract == contract
    with torch.inference_mode():
        for modality in ("s2_l1c", "s2_l2a"):
            assert torch.equal(model(x, modality=modality), encoder(x, modality=modality))


def test_released_weights_for_l2a_in_the_papers_file(tmp_path, teacher):
    """It sends any image of 12 bands through Level-1C's patch embedding."""
    encoder, contract = teacher
    x = torch.randn(2, 12, 48, 64)
    options = ExportOptions(modality="s2_l2a")
    export_weights(encoder.state_dict(), contract, str(tmp_path / "out"), "released", options)
    model = terrafm.load_model("terrafm_tiny", weights=tmp_path / "out")
    assert list(model.contract.modalities) == [m for m in contract.modalities if m != "s2_l1c"]
    with torch.inference_mode():
        as_released = model(x, modality="s2_l1c")
        assert torch.equal(as_released, encoder(x, modality="s2_l2a"))
        assert not torch.equal(as_released, encoder(x, modality="s2_l1c"))
        radar = torch.randn(2, 2, 48, 64)
        assert torch.equal(model(radar, modality="s1"), encoder(radar, modality="s1"))


def test_files_are_named_after_the_model_or_as_told(tmp_path, teacher):
    encoder, contract = teacher
    state, root = encoder.state_dict(), str(tmp_path)
    for output, format, expected in [
        (root, "safetensors", ["terrafm_tiny.safetensors"]),
        (f"{root}/", "released", ["terrafm_tiny.pth", "terrafm_tiny.json"]),
        (f"{root}/mine.safetensors", "safetensors", ["mine.safetensors"]),
        (f"{root}/mine.v1.pth", "released", ["mine.v1.pth", "mine.v1.json"]),
        (root, "torch-export", ["terrafm_tiny_s2_l2a.pt2"]),
        (f"{root}/hub", "hf", ["hub/model.safetensors", "hub/config.json", "hub/README.md"]),
    ]:
        written = export_weights(state, contract, output, format)
        item = f"{expected[0]}.stac.json"
        assert [os.path.relpath(uri, root) for uri in written] == [*expected, item]
        assert all(os.path.getsize(uri) for uri in written)
    names = os.listdir(root)
    assert not [name for name in names if name.startswith(".")]
    memory = export_weights(state, contract, "memory://exports/run", "safetensors")
    assert memory[0] == "memory://exports/run/terrafm_tiny.safetensors"
    student = contract.model_copy(update={"network": "student"})
    uri, _ = export_weights(state, student, root, "safetensors")
    assert uri == f"{root}/terrafm_tiny_student.safetensors"


def test_wrong_use_is_one_clear_line(tmp_path, teacher):
    encoder, contract = teacher
    state = encoder.state_dict()
    with pytest.raises(UsageError, match="unknown format 'keras': one of safetensors, released"):
        export_weights(state, contract, str(tmp_path), "keras")
    with pytest.raises(UsageError, match=r"the format released needs \.pth"):
        export_weights(state, contract, str(tmp_path / "w.safetensors"), "released")
    with pytest.raises(UsageError, match="the format hf needs a folder"):
        export_weights(state, contract, str(tmp_path / "model.safetensors"), "hf")
    (tmp_path / "file").touch()
    with pytest.raises(TerraFMError, match="cannot write weights"):
        export_weights(state, contract, str(tmp_path / "file" / "w.pth"), "released")


@pytest.mark.parametrize(
    ("format", "options", "complaint"),
    [
        ("safetensors", {"modality": "s1"}, "--modality is for the formats torch-export, onnx"),
        ("released", {"modality": "s1"}, "--modality s1: the format released holds all sensors"),
        ("terratorch", {"image_size": 64}, "--image-size is for the formats torch-export, onnx"),
        ("onnx", {"license": "mit"}, "--license is for the formats hf, torchgeo-bench, not for"),
        ("torch-export", {"modality": "s3"}, "--modality s3: these weights were trained on s1,"),
        ("torch-export", {"image_size": 100}, "--image-size 100: a side must be a multiple of 16"),
        ("torch-export", {"image_size": 0}, "--image-size 0: a side must be a multiple of 16"),
    ],
)
def test_options_that_do_not_fit_are_refused(tmp_path, teacher, format, options, complaint):
    encoder, contract = teacher
    with pytest.raises(UsageError, match=complaint):
        export_weights(
            encoder.state_dict(), contract, str(tmp_path / "out"), format, ExportOptions(**options)
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("network", ["teacher", "student"])
def test_the_network_that_was_asked_for_is_written(run, tmp_path, checkpoint, network):
    code, out, _ = run(
        *("export", "--checkpoint", checkpoint, "--output", tmp_path / "w"),
        *("--format", "safetensors", *(["--model", "student"] if network == "student" else [])),
    )
    assert code == 0
    assert ("_student" in out) == (network == "student")
    model = terrafm.load_model("terrafm_tiny", tmp_path / "w")
    assert model.contract.network == network
    own, other = (
        load_network(checkpoint, n)
        for n in (network, {"teacher", "student"}.difference([network]).pop())
    )
    name = "blocks.0.attn.qkv.weight"
    assert torch.equal(model.get_parameter(name), own[f"encoder.{name}"])
    assert not torch.equal(model.get_parameter(name), other[f"encoder.{name}"])


@pytest.mark.slow
@pytest.mark.parametrize("export_format", list(ExportFormat))
def test_the_printed_lines_run_in_a_fresh_interpreter(
    run, tmp_path, checkpoint, export_format, fresh_interpreter, monkeypatch
):
    need(export_format)
    monkeypatch.chdir(tmp_path)
    code, out, errors = run(
        *("export", "--checkpoint", checkpoint, "--output", "out", "--format", export_format)
    )
    assert code == 0, errors
    printed, _, lines = out.partition("Load it with:\n")
    assert printed.count("wrote out/") == len(list(tmp_path.rglob("out/**/*.*")))
    found = [
        line for line in fresh_interpreter(lines) if line != "Loading weights from local directory"
    ]
    assert found == PRINTED[export_format]


@pytest.mark.parametrize(
    "export_format",
    [
        "hf",
        pytest.param("torch-export", marks=pytest.mark.slow),
        pytest.param("onnx", marks=pytest.mark.slow),
    ],
)
def test_the_lines_for_a_store_run_too(tmp_path, teacher, export_format, fresh_interpreter):
    """With an address that no loader but fsspec knows."""
    need(export_format)
    encoder, contract = teacher
    place = f"file://{tmp_path}/out"
    export_weights(encoder.state_dict(), contract, place, export_format)
    lines = loading_snippet("s3://bucket/out", export_format, contract)
    found = fresh_interpreter(lines.replace("s3://bucket/out", place))
    assert found[-1] == PRINTED[export_format][0]


def test_the_snippet_shows_a_modality_that_the_weights_know(teacher):
    _, contract = teacher
    radar = contract.model_copy(update={"modalities": {"s1": contract.modalities["s1"]}})
    snippet = loading_snippet("s3://bucket/run", "released", radar)
    assert "s3://bucket/run/terrafm_tiny.pth" in snippet
    assert "s1 in dB" in snippet
    assert "VV VH" in snippet


def test_weights_in_another_unit_have_an_example_too(teacher):
    _, contract = teacher
    other = {n: m.model_copy(update={"unit": "counts"}) for n, m in contract.modalities.items()}
    told = loading_snippet("w", "released", contract.model_copy(update={"modalities": other}))
    assert "in counts" in told


def test_importing_the_package_imports_neither_torch_nor_timm():
    code = (
        "import sys, terrafm, terrafm.cli, terrafm.export; "
        "print({'torch', 'timm', 'ray', 'huggingface_hub'} & set(sys.modules))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "set()"
