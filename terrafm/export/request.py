"""What can be asked of an export: format, network, options, and where it goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from terrafm.errors import UsageError
from terrafm.modalities import SENTINEL
from terrafm.storage import join

if TYPE_CHECKING:
    from torch import Tensor

    from terrafm.models.contract import WeightsContract


class ExportFormat(StrEnum):
    """What is written."""

    SAFETENSORS = "safetensors"
    RELEASED = "released"
    HF = "hf"
    TERRATORCH = "terratorch"
    TORCHGEO_BENCH = "torchgeo-bench"
    PANGAEA = "pangaea"
    TORCH_EXPORT = "torch-export"
    ONNX = "onnx"


class Network(StrEnum):
    """Which of a checkpoint's two networks."""

    TEACHER = "teacher"
    STUDENT = "student"


SUFFIXES = {
    ExportFormat.SAFETENSORS: (".safetensors",),
    ExportFormat.RELEASED: (".pth", ".pt"),
    ExportFormat.TORCH_EXPORT: (".pt2",),
    ExportFormat.ONNX: (".onnx",),
}
"""Of the formats that are one file, and not a folder; the first is written."""

GRAPHS = (ExportFormat.TORCH_EXPORT, ExportFormat.ONNX)
"""Formats that hold computation and weights of one modality and one image size."""

_TAKEN_BY = {
    "modality": (
        *GRAPHS,
        ExportFormat.TERRATORCH,
        ExportFormat.TORCHGEO_BENCH,
        ExportFormat.PANGAEA,
        ExportFormat.RELEASED,
    ),
    "image_size": GRAPHS,
    "license": (ExportFormat.HF, ExportFormat.TORCHGEO_BENCH),
    "scores": (ExportFormat.HF,),
}
_OTHER_SUFFIXES = (".json", ".yaml", ".md")


@dataclass(frozen=True)
class ExportOptions:
    """What only some formats take.

    Attributes:
        modality: that the graph, or TerraTorch's backbone, is for; by default Sentinel-2 L2A
            where the weights know it. The only one that torchgeo-bench is to see; what PANGAEA's
            optical bands are. Of "released" only "s2_l2a": see `save_released`.
        image_size: side of the graph's images, pixels; by default that of a global crop.
        license: identifier of the weights' licence, such as "apache-2.0", for the model card and
            for torchgeo's metadata.
        scores: URI of what `terrafm evaluate ... --json` printed, for the model card.
    """

    modality: str | None = None
    image_size: int | None = None
    license: str | None = None
    scores: str | None = None


@dataclass(frozen=True)
class Export:
    """One export: what a writer needs to know.

    Attributes:
        state: the encoder's state dict.
        contract: what it expects of its input.
        uri: the file or folder to write.
        options: checked against format and contract.
        record: the checkpoint's `state.json`; empty where the weights come from elsewhere.
    """

    state: Mapping[str, Tensor]
    contract: WeightsContract
    uri: str
    options: ExportOptions = field(default_factory=ExportOptions)
    record: Mapping[str, Any] = field(default_factory=dict)


def target_uri(
    output_uri: str, format: ExportFormat, contract: WeightsContract, options: ExportOptions
) -> str:
    """The file or folder that an export writes.

    Args:
        output_uri: a folder, or for formats of one file that file.
        format: of the export.
        contract: the file is named after its model, and its network where it is the student.
        options: a graph's file is named after its modality as well.

    Raises:
        UsageError: a file name of another format.
    """
    suffix = PurePosixPath(output_uri).suffix
    own = SUFFIXES.get(format, ())
    if suffix in own:
        return output_uri
    if suffix in (*(s for known in SUFFIXES.values() for s in known), *_OTHER_SUFFIXES):
        needs = own[0] if own else "a folder"
        raise UsageError(f"--output {output_uri}: the format {format} needs {needs}")
    return join(output_uri, file_name(format, contract, options)) if own else output_uri


def file_name(format: ExportFormat, contract: WeightsContract, options: ExportOptions) -> str:
    """Such as terrafm_base.safetensors, terrafm_base_student_s1.onnx."""
    parts = [contract.model]
    if contract.network != "teacher":
        parts.append(contract.network)
    if format in GRAPHS:
        parts.append(chosen_modality(contract, options))
    return "_".join(parts) + SUFFIXES[format][0]


def check_format(format: str) -> ExportFormat:
    """The format of a name.

    Raises:
        UsageError: there is no such format.
    """
    try:
        return ExportFormat(format)
    except ValueError:
        known = ", ".join(ExportFormat)
        raise UsageError(f"unknown format {format!r}: one of {known}") from None


def check_options(format: ExportFormat, contract: WeightsContract, options: ExportOptions) -> None:
    """Makes sure that a format and these weights can do what was asked.

    Raises:
        UsageError: an option that the format does not take, a modality that the weights do not
            know, or an image size that is not a multiple of the patch.
    """
    for option in fields(options):
        if getattr(options, option.name) is not None and format not in _TAKEN_BY[option.name]:
            name = option.name.replace("_", "-")
            taken = ", ".join(_TAKEN_BY[option.name])
            raise UsageError(f"--{name} is for the formats {taken}, not for {format}")
    others = [name for name in contract.modalities if name not in SENTINEL]
    if format == ExportFormat.RELEASED and others:
        raise UsageError(
            f"the format released has the three sensors of the released weights, and these know "
            f"{', '.join(others)} too: take safetensors, hf, or a graph of one sensor"
        )
    chosen_modality(contract, options)
    if format == ExportFormat.RELEASED and options.modality not in (None, "s2_l2a"):
        raise UsageError(
            f"--modality {options.modality}: the format released holds all sensors; only s2_l2a "
            "is a choice, which the paper's inference file then computes in L1C's place"
        )
    size = chosen_size(contract, options)
    if format in GRAPHS and (size < contract.patch_size or size % contract.patch_size):
        raise UsageError(
            f"--image-size {size}: a side must be a multiple of {contract.patch_size} pixels"
        )


def chosen_modality(contract: WeightsContract, options: ExportOptions) -> str:
    """The modality asked for, or else the one that most data sets have.

    Raises:
        UsageError: the weights were not trained on it.
    """
    known = contract.modalities
    if options.modality is None:
        return "s2_l2a" if "s2_l2a" in known else next(iter(known))
    if options.modality not in known:
        raise UsageError(
            f"--modality {options.modality}: these weights were trained on {', '.join(known)}"
        )
    return options.modality


def chosen_size(contract: WeightsContract, options: ExportOptions) -> int:
    """Side of the graph's images, pixels."""
    return contract.image_size if options.image_size is None else options.image_size
