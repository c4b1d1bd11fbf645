"""The lines of Python that load an export and embed a correctly normalised example."""

from __future__ import annotations

from terrafm.export.request import (
    GRAPHS,
    ExportFormat,
    ExportOptions,
    check_format,
    check_options,
    chosen_modality,
    chosen_size,
    target_uri,
)
from terrafm.models.weights import WeightsContract
from terrafm.storage import absolute, is_local, join

# Plausible values of each unit, for the example.
_EXAMPLE = {"reflectance": "0.3 * {random}({shape})", "dB": "20 * {random}({shape}) - 25"}
_ANY_UNIT = "{random}({shape})"

_LOAD_MODEL = """\
import torch
import terrafm

model = terrafm.load_model({model!r}, weights={place!r})
"""
_HUB = """\
import torch
from terrafm.models.hub import HubEncoder

model = HubEncoder.from_pretrained({place!r})
"""
_HUB_REMOTE = """\
from pathlib import Path

import torch
from terrafm.models.hub import HubEncoder
from terrafm.storage import download, join, list_names

Path({model!r}).mkdir(exist_ok=True)
for name in list_names({place!r}):
    download(join({place!r}, name), Path({model!r}, name))
model = HubEncoder.from_pretrained({model!r})
"""
_EMBED = """
{image}
pixels = model.contract.normalise(image, {modality!r})  # (x - mean) / std, no data is 0
with torch.inference_mode():
    embedding = model(pixels, modality={modality!r})
print(tuple(embedding.shape))
"""
_TERRATORCH = """\
import torch
import terrafm.adapters.terratorch  # registers terrafm_encoder
from terratorch.registry import BACKBONE_REGISTRY

backbone = BACKBONE_REGISTRY.build(
    "terrafm_encoder", ckpt_path={place!r}, modality={modality!r}
)

{image}
pixels = backbone.contract.normalise(image, {modality!r})  # (x - mean) / std, no data is 0
with torch.inference_mode():
    maps = backbone(pixels)
print(backbone.out_channels, [tuple(m.shape) for m in maps])
"""
_TORCH_EXPORT = """\
import torch

model = torch.export.load({place!r}).module()
"""
_TORCH_EXPORT_REMOTE = """\
import fsspec
import torch

with fsspec.open({place!r}, "rb") as file:
    model = torch.export.load(file).module()
"""
_TORCHGEO_BENCH = """\
# torchgeo-bench run 'hydra.searchpath=[file://{place}]' model={model} \\
#   dataset.names=[m-eurosat] dataset.bands=all dataset.normalization=model_native
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torchgeo_bench.datasets import get_bench_dataset_class

config = OmegaConf.load({config!r})
bands = get_bench_dataset_class("m-eurosat")().bands
model = instantiate(config, bands=bands, normalization="model_native", _convert_="object").eval()
image = torch.tensor([[[band.mean]] for band in bands]).expand(1, -1, {size}, {size})
print(tuple(model(image).shape))
"""
_PANGAEA = """\
# torchrun pangaea/run.py 'hydra.searchpath=[file://{place}]' encoder={model}_optical ...
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

encoder = instantiate(OmegaConf.load({config!r}))
image = torch.zeros(1, len(encoder.input_bands["optical"]), {size}, {size})  # normalised
print([tuple(feature_map.shape) for feature_map in encoder({{"optical": image}})])
"""
_RUN_TORCH = """
{image}
with torch.inference_mode():
    embedding, patches = model(image)  # normalised inside
print(tuple(embedding.shape), tuple(patches.shape))
"""
_ONNX = """\
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession({place!r}, providers=["CPUExecutionProvider"])
"""
_ONNX_REMOTE = """\
import fsspec
import numpy as np
import onnxruntime

with fsspec.open({place!r}, "rb") as file:
    session = onnxruntime.InferenceSession(file.read(), providers=["CPUExecutionProvider"])
"""
_RUN_ONNX = """
{image}
embedding, patches = session.run(None, {{"image": image.astype(np.float32)}})  # normalised inside
print(embedding.shape, patches.shape)
"""
_IMAGE = """\
# Your image: {modality} in {unit} as float, NaN where there is no data, bands
# {bands}
image = {example}"""

# From this machine's disk, and from anywhere else.
_SNIPPETS = {
    ExportFormat.SAFETENSORS: (_LOAD_MODEL + _EMBED, _LOAD_MODEL + _EMBED),
    ExportFormat.RELEASED: (_LOAD_MODEL + _EMBED, _LOAD_MODEL + _EMBED),
    ExportFormat.HF: (_HUB + _EMBED, _HUB_REMOTE + _EMBED),
    ExportFormat.TERRATORCH: (_TERRATORCH, _TERRATORCH),
    ExportFormat.TORCHGEO_BENCH: (_TORCHGEO_BENCH, _TORCHGEO_BENCH),
    ExportFormat.PANGAEA: (_PANGAEA, _PANGAEA),
    ExportFormat.TORCH_EXPORT: (_TORCH_EXPORT + _RUN_TORCH, _TORCH_EXPORT_REMOTE + _RUN_TORCH),
    ExportFormat.ONNX: (_ONNX + _RUN_ONNX, _ONNX_REMOTE + _RUN_ONNX),
}
_CONFIGURATIONS = {
    ExportFormat.TORCHGEO_BENCH: ("model", "{model}.yaml"),
    ExportFormat.PANGAEA: ("encoder", "{model}_optical.yaml"),
}
_NOTHING = ExportOptions()


def loading_snippet(
    output_uri: str, format: str, contract: WeightsContract, options: ExportOptions = _NOTHING
) -> str:
    """Python that loads exported weights and embeds an example.

    Args:
        output_uri: as given to `export_weights`.
        format: as given to `export_weights`.
        contract: of the weights.
        options: as given to `export_weights`.

    Raises:
        UsageError: as `export_weights`.
    """
    known = check_format(format)
    check_options(known, contract, options)
    uri = target_uri(output_uri, known, contract, options)
    return snippet_at(absolute(uri), known, contract, options)


def snippet_at(
    place: str, format: ExportFormat, contract: WeightsContract, options: ExportOptions = _NOTHING
) -> str:
    """The same for a place that is spelled as it should stand in the lines."""
    modality = chosen_modality(contract, options)
    expected = contract.modalities[modality]
    size = chosen_size(contract, options)
    shape = f"1, {len(expected.bands)}, {size}, {size}"
    random = "np.random.rand" if format is ExportFormat.ONNX else "torch.rand"
    image = _IMAGE.format(
        modality=modality,
        unit=expected.unit,
        bands=" ".join(expected.bands),
        example=_EXAMPLE.get(expected.unit, _ANY_UNIT).format(random=random, shape=shape),
    )
    here, elsewhere = _SNIPPETS[format]
    template = here if is_local(place) else elsewhere
    if format in GRAPHS:
        image = f"# Any number of images, {size} x {size} pixels each.\n{image}"
    return template.format(
        model=contract.model,
        place=place,
        modality=modality,
        image=image,
        size=size,
        config=join(place, *_CONFIGURATIONS.get(format, ())).format(model=contract.model),
    )
