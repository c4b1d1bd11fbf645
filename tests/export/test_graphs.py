"""Graphs compute what the encoder computes, for any batch, without TerraFM's code."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from terrafm.errors import TerraFMError, UsageError
from terrafm.export import ExportOptions, export_weights, graphs

onnx_missing = [n for n in ("onnx", "onnxscript", "onnxruntime") if not importlib.util.find_spec(n)]
FORMATS = [
    "torch-export",
    pytest.param("onnx", marks=pytest.mark.skipif(bool(onnx_missing), reason=f"no {onnx_missing}")),
]


def runner(format, uri):
    """Opens a graph with its own runtime: array in, arrays out."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(uri, providers=["CPUExecutionProvider"])
        return lambda image: [
            torch.from_numpy(a) for a in session.run(None, {"image": image.numpy()})
        ]
    return torch.export.load(uri).module()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("modality", "size"), [("s1", 96), ("s2_l1c", 64), ("s2_l2a", 224)])
def test_a_graph_agrees_with_the_encoder(tmp_path, teacher, format, modality, size):
    encoder, contract = teacher
    uri, _ = export_weights(
        encoder.state_dict(), contract, str(tmp_path), format, ExportOptions(modality, size)
    )
    graph = runner(format, uri)
    expected = contract.modalities[modality]
    generator = torch.Generator().manual_seed(1)
    for batch in (1, 2, 5):
        image = torch.randn(batch, len(expected.bands), size, size, generator=generator)
        image = image * expected.std[0] + expected.mean[0]
        image[:, 0, : size // 3] = np.nan
        image[:, 1, size // 2] = -np.inf
        image[:, 0, -1, ::2] = np.inf
        embedding, patches = graph(image)
        pixels = contract.normalise(image, modality)
        with torch.inference_mode():
            cls = encoder(pixels, modality)
            (maps,) = encoder.forward_features(pixels, modality)
        assert embedding.shape == cls.shape
        assert patches.shape == maps.shape
        assert float((embedding - cls).abs().max()) <= 1e-4
        assert float((patches - maps).abs().max()) <= 1e-4


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_carries_its_contract(tmp_path, teacher, format):
    encoder, contract = teacher
    uri, _ = export_weights(encoder.state_dict(), contract, str(tmp_path), format)
    if format == "onnx":
        import onnx

        model = onnx.load(uri)
        text = {entry.key: entry.value for entry in model.metadata_props}[graphs.CONTRACT_KEY]
        assert [output.name for output in model.graph.output] == list(graphs.OUTPUTS)
    else:
        held = {graphs.CONTRACT_FILE: ""}
        torch.export.load(uri, extra_files=held)
        text = held[graphs.CONTRACT_FILE]
    assert json.loads(text) == contract.model_dump(mode="json")


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_that_computes_something_else_is_not_written(
    tmp_path, teacher, format, monkeypatch
):
    encoder, contract = teacher
    forward = graphs.EmbeddingGraph.forward

    def wrong(self, image):
        embedding, patches = forward(self, image)
        return embedding + 2e-4, patches

    monkeypatch.setattr(graphs.EmbeddingGraph, "forward", wrong)
    with pytest.raises(TerraFMError, match=r"its embedding differs from the encoder's by 2\.0e-04"):
        export_weights(encoder.state_dict(), contract, str(tmp_path), format)
    assert list(tmp_path.iterdir()) == []


def test_onnx_without_its_libraries_says_what_to_install(tmp_path, teacher, monkeypatch):
    encoder, contract = teacher
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "onnx" in name else find(name)
    )
    with pytest.raises(UsageError, match=r"needs onnx, onnxscript, onnxruntime: .*terrafm\[onnx\]"):
        export_weights(encoder.state_dict(), contract, str(tmp_path), "onnx")
