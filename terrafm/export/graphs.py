"""The encoder as a graph that needs no TerraFM code: torch.export programs and ONNX models.

A graph is for one modality and one image size, any batch. It takes physical values and normalises
them itself, and it is written only where it computes what the encoder computes.
"""

from __future__ import annotations

import importlib.util
import io
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terrafm.errors import TerraFMError, UsageError
from terrafm.export.request import Export, chosen_modality, chosen_size
from terrafm.models.encoder import Encoder
from terrafm.models.weights import WeightsContract, encoder_from_state
from terrafm.storage import write_bytes

TOLERANCE = 1e-4
"""Largest difference of any output to the encoder's, float32."""
CONTRACT_FILE = "terrafm_contract.json"
CONTRACT_KEY = "terrafm_contract"
OUTPUTS = ("embedding", "patches")
_ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")


class EmbeddingGraph(nn.Module):
    """What is exported: one modality's images of one size to embedding and patch map.

    Args:
        encoder: its parameters are shared.
        contract: of the encoder; the normalisation becomes part of the graph.
        modality: which one.
        image_size: side of the images, pixels. The position embedding for it is computed here,
            once: interpolation differs between runtimes.
    """

    conv: nn.Conv2d
    modality: Tensor
    cls: Tensor
    position: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: Encoder, contract: WeightsContract, modality: str, image_size: int
    ) -> None:
        super().__init__()
        embed = encoder.patch_embed
        expected = contract.modalities[modality]
        self.grid = image_size // encoder.patch_size
        conv = embed.get_submodule(f"conv2d_{modality}")
        assert isinstance(conv, nn.Conv2d)
        self.conv = conv
        self.projection = embed.projection
        self.blocks = encoder.blocks
        self.norm = encoder.norm
        with torch.no_grad():
            position = encoder.position_embedding(self.grid, self.grid).clone()
            self.register_buffer("modality", embed.get_parameter(f"{modality}_embed").clone())
            self.register_buffer("cls", encoder.cls_token + position[:, :1])
            self.register_buffer("position", position[:, 1:].clone())
        self.register_buffer("mean", torch.tensor(expected.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(expected.std).view(-1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds images.

        Args:
            image: (B, C, S, S) in the modality's unit, NaN or infinite where there is no data.

        Returns:
            (B, D) embeddings, and the normed patch maps of the last block (B, D, S/16, S/16).
        """
        normalised = (image - self.mean) / self.std
        pixels = torch.where(torch.isfinite(normalised), normalised, 0.0)
        # A convolution, which runtimes of other makers have kernels for.
        conv = self.conv
        patches = (
            F.conv2d(pixels, conv.weight, conv.bias, conv.stride).flatten(2).transpose(1, 2)
            + self.modality
        )
        patches = self.projection(patches) + self.position
        tokens = torch.cat([self.cls.expand(image.shape[0], -1, -1), patches], dim=1)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        maps = tokens[:, 1:].transpose(1, 2).unflatten(2, (self.grid, self.grid))
        return tokens[:, 0], maps


def write_torch_export(export: Export) -> list[str]:
    """Writes a `.pt2` program, with the contract as an extra file in it.

    Raises:
        TerraFMError: the program read back differs from the encoder by more than 1e-4.
    """
    encoder, program = _trace(export)
    buffer = io.BytesIO()
    extra = {CONTRACT_FILE: export.contract.to_json()}
    torch.export.save(program, buffer, extra_files=extra)
    again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    _check(export, encoder, again(_example(export, 3)))
    write_bytes(export.uri, buffer.getvalue())
    return [export.uri]


def write_onnx(export: Export) -> list[str]:
    """Writes an `.onnx` model, with the contract in its metadata.

    Raises:
        UsageError: the libraries are not installed.
        TerraFMError: what ONNX Runtime computes differs from the encoder by more than 1e-4.
    """
    missing = [name for name in _ONNX_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"the format onnx needs {', '.join(missing)}: pip install 'terrafm[onnx]'")
    import onnxruntime

    encoder, program = _trace(export)
    onnx_program: Any = torch.onnx.export(
        program, input_names=["image"], output_names=list(OUTPUTS), verbose=False
    )
    onnx_program.model.metadata_props[CONTRACT_KEY] = export.contract.to_json()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        onnx_program.save(str(file), external_data=False)
        content = file.read_bytes()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    found = session.run(list(OUTPUTS), {"image": _example(export, 3).numpy()})
    _check(export, encoder, tuple(torch.from_numpy(array) for array in found))
    write_bytes(export.uri, content)
    return [export.uri]


def _trace(export: Export) -> tuple[Encoder, torch.export.ExportedProgram]:
    encoder = encoder_from_state(export.state).requires_grad_(False)
    modality, size = _chosen(export)
    graph = EmbeddingGraph(encoder, export.contract, modality, size).eval()
    program = torch.export.export(
        graph,
        (_example(export, 2),),
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
    )
    return encoder, program


def _example(export: Export, count: int) -> Tensor:
    """Images as the contract expects them, with some missing pixels of every kind."""
    modality, size = _chosen(export)
    expected = export.contract.modalities[modality]
    generator = torch.Generator().manual_seed(count)
    shape = (count, len(expected.bands), size, size)
    noise = torch.randn(shape, generator=generator)
    image = noise * torch.tensor(expected.std).view(-1, 1, 1)
    image += torch.tensor(expected.mean).view(-1, 1, 1)
    for missing in (torch.nan, -torch.inf, torch.inf):
        image.masked_fill_(torch.rand(shape, generator=generator) < 0.01, missing)
    return image


def _chosen(export: Export) -> tuple[str, int]:
    return (
        chosen_modality(export.contract, export.options),
        chosen_size(export.contract, export.options),
    )


def _check(export: Export, encoder: Encoder, found: tuple[Tensor, ...]) -> None:
    modality, _ = _chosen(export)
    pixels = export.contract.normalise(_example(export, 3), modality)
    with torch.inference_mode():
        expected = (
            encoder(pixels, modality),
            *encoder.forward_features(pixels, modality),
        )
    for name, ours, theirs in zip(OUTPUTS, expected, found, strict=True):
        # Not finite is not in agreement either.
        worst = float((ours - theirs).abs().max())
        if not worst <= TOLERANCE:
            raise TerraFMError(
                f"{export.uri} was not written: its {name} differs from the encoder's by "
                f"{worst:.1e}, more than {TOLERANCE:.0e}"
            )
