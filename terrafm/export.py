"""A checkpoint's teacher encoder as a weights file, and the lines of Python that load it."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from torch import Tensor

from terrafm.errors import TerraFMError, UsageError
from terrafm.models.weights import WeightsContract, save_released, save_safetensors
from terrafm.storage import is_local, join
from terrafm.train.checkpoints.store import load_network, read_record

Format = Literal["safetensors", "released"]
_SUFFIX = {"safetensors": ".safetensors", "released": ".pth"}

# Plausible values of each unit, for the example.
_EXAMPLE = {"reflectance": "0.3 * torch.rand({shape})", "dB": "20 * torch.rand({shape}) - 25"}

_SNIPPET = """\
import torch
import terrafm

model = terrafm.load_model({model!r}, weights={weights!r})

# Your image: {modality} in {unit}, NaN where there is no data, bands
# {bands}
image = {example}
pixels = model.contract.normalise(image, {modality!r})  # (x - mean) / std, no data is 0
with torch.inference_mode():
    embedding = model(pixels, modality={modality!r})
print(tuple(embedding.shape))
"""


def export_weights(
    state: Mapping[str, Tensor], contract: WeightsContract, output_uri: str, format: str
) -> list[str]:
    """Writes weights in one of the two formats of `terrafm.models.weights`.

    Args:
        state: the teacher encoder's state dict.
        contract: what it expects of its input.
        output_uri: a file that ends in the format's suffix, or a folder, in which the file is
            named after the model.
        format: "safetensors" or "released".

    Returns:
        The URIs written; the first one is what `load_model` takes.

    Raises:
        UsageError: unknown format, or a file name of another format.
        TerraFMError: the file cannot be written.
    """
    uri = _weights_uri(output_uri, format, contract)
    save = save_safetensors if format == "safetensors" else save_released
    try:
        return save(uri, state, contract)
    except OSError as error:
        raise TerraFMError(f"cannot write weights {uri}: {error}") from None


def export_checkpoint(checkpoint_uri: str, output_uri: str, format: str) -> tuple[list[str], str]:
    """Writes the teacher's encoder of a training checkpoint.

    Args:
        checkpoint_uri: a checkpoint folder of a run, such as `step_00000040`.
        output_uri: as in `export_weights`.
        format: as in `export_weights`.

    Returns:
        The URIs written, and the Python that loads them.

    Raises:
        UsageError: no checkpoint there, or as `export_weights`.
        TerraFMError: the checkpoint is damaged, or as `export_weights`.
    """
    contract = WeightsContract.model_validate(read_record(checkpoint_uri)["contract"])
    prefix = "encoder."
    encoder = {
        name.removeprefix(prefix): tensor
        for name, tensor in load_network(checkpoint_uri, "teacher").items()
        if name.startswith(prefix)
    }
    written = export_weights(encoder, contract, output_uri, format)
    return written, loading_snippet(output_uri, format, contract)


def loading_snippet(output_uri: str, format: str, contract: WeightsContract) -> str:
    """Python that loads exported weights and embeds a correctly normalised example.

    Args:
        output_uri: as given to `export_weights`.
        format: as given to `export_weights`.
        contract: of the weights.

    Raises:
        UsageError: as `export_weights`.
    """
    uri = _weights_uri(output_uri, format, contract)
    if is_local(uri) and "://" not in uri:
        uri = str(Path(uri).resolve())
    known = contract.modalities
    modality = "s2_l2a" if "s2_l2a" in known else next(iter(known))
    bands, unit = known[modality].bands, known[modality].unit
    shape = f"1, {len(bands)}, {contract.image_size}, {contract.image_size}"
    return _SNIPPET.format(
        model=contract.model,
        weights=uri,
        modality=modality,
        unit=unit,
        bands=" ".join(bands),
        example=_EXAMPLE[unit].format(shape=shape),
    )


def _weights_uri(output_uri: str, format: str, contract: WeightsContract) -> str:
    if format not in get_args(Format):
        raise UsageError(f"unknown format {format!r}: one of {', '.join(get_args(Format))}")
    suffix = PurePosixPath(output_uri).suffix
    if suffix == _SUFFIX[format] or (format == "released" and suffix == ".pt"):
        return output_uri
    if suffix in (*_SUFFIX.values(), ".pt", ".json"):
        raise UsageError(f"--output {output_uri}: the format {format} needs {_SUFFIX[format]}")
    return join(output_uri, contract.model + _SUFFIX[format])
