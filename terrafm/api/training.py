"""Runs, and the weights that come of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, overload

from terrafm import early
from terrafm.api.arguments import (
    Path,
    Progress,
    Settings,
    begin,
    choice_of,
    config_of,
    shown,
    telling,
    uri_of,
)
from terrafm.terminal import Result

if TYPE_CHECKING:
    import torch

    from terrafm.train.checkpoints.validations import Validation, ValidationTask
    from terrafm.train.driver.pretrain import RunResult
    from terrafm.train.metrics.trackers import TrackedPicture


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        written: URIs; the first one is what the format's own loader takes.
        snippet: lines of Python that load it.
    """

    written: tuple[str, ...]
    snippet: str


@overload
def pretrain(
    config: Path,
    data: Path,
    output: Path,
    *,
    dry_run: Literal[False] = False,
    profile: bool = False,
    extend: bool = False,
    set: Settings = None,
    progress: Progress = True,
) -> RunResult: ...


@overload
def pretrain(
    config: Path,
    data: Path,
    output: Path,
    *,
    dry_run: Literal[True],
    profile: bool = False,
    extend: bool = False,
    set: Settings = None,
    progress: Progress = True,
) -> Result: ...


def pretrain(
    config: Path,
    data: Path,
    output: Path,
    *,
    dry_run: bool = False,
    profile: bool = False,
    extend: bool = False,
    set: Settings = None,
    progress: Progress = True,
) -> RunResult | Result:
    """Pretrains, or goes on with the run that lies in `output`: `terrafm pretrain`.

    Starts Ray on this machine, unless RAY_ADDRESS names a cluster or one was started before.

    Args:
        config: recipe, such as "demo", or YAML file.
        data: a dataset made by ingest.
        output: folder of the run.
        dry_run: only say what it would cost; writes nothing.
        profile: trace a few steps into the run's profile/.
        extend: go on with a run of another length, on the schedules of this one.
        set: any keys, such as {"train.steps": 20}.
        progress: shown, or told, in steps.

    Returns:
        The last checkpoint, newest line of metrics, best checkpoint and exported weights; with
        `dry_run` the figures of the estimate.

    Raises:
        UsageError: configuration, data or folder do not fit; nothing was trained.
        TerraFMError: the run failed; its checkpoints stay, and the same call goes on.
    """
    begin()
    tree = config_of(config, set, ("train.profile_steps=3",) if profile else ())
    data, output = os.fspath(data), os.fspath(output)
    early.check_dataset(data, tree.data.modalities)
    labelled = tree.validation.data if tree.validation.every_steps else None
    early.check_run(output, (tree.model.init, tree.distil.teacher), labelled)
    if dry_run:
        with telling(progress, f"measuring one step of {tree.model.name} on this machine"):
            from terrafm.train.driver import pretrain as driver
            from terrafm.train.driver.estimate import describe_estimate

            figures = driver.dry_run(tree, data, output, validate=_validation, extend=extend)
            return Result(figures, describe_estimate)
    doing = f"pretraining {tree.model.name} on {data} in {output}"
    with shown(progress, "steps", doing) as advance:
        from terrafm.train.driver import pretrain as driver

        return driver.pretrain(
            tree, data, output, progress=advance, validate=_validation, extend=extend
        )


def export(
    checkpoint: Path,
    output: Path,
    format: str,
    *,
    model: str = "teacher",
    modality: str | None = None,
    image_size: int | None = None,
    license: str | None = None,
    scores: Path | None = None,
    progress: Progress = True,
) -> Exported:
    """Writes a checkpoint's encoder as weights or a graph: `terrafm export`.

    Args:
        checkpoint: a checkpoint's folder; RUN/checkpoints/best is the best one. Or weights.
        output: the file, or its folder.
        format: "safetensors", "released", "hf", "terratorch", "torchgeo-bench", "pangaea",
            "torch-export" or "onnx".
        model: "teacher" or "student".
        modality: of a graph, or of TerraTorch's backbone; all that torchgeo-bench sees; what
            PANGAEA's optical bands are. Of "released", "s2_l2a" is for Level-2A
            in the paper's inference file, which takes any 12 bands for Level-1C.
        image_size: side of a graph's images, pixels; by default as trained.
        license: of the weights, for hf's model card and torchgeo's metadata.
        scores: file of what an evaluation printed as JSON, for hf's model card.
        progress: say what is being done.

    Raises:
        UsageError: no checkpoint there, an unknown format, or an option that does not fit.
        TerraFMError: the checkpoint is damaged, or a graph does not compute what the encoder does.
    """
    begin()
    checkpoint = os.fspath(checkpoint)
    early.check_checkpoint(checkpoint)
    with telling(progress, f"reading {checkpoint}"):
        from terrafm.export.request import ExportOptions, Network, check_format
        from terrafm.export.writing import export_checkpoint

        written, snippet = export_checkpoint(
            checkpoint,
            os.fspath(output),
            check_format(format),
            network=choice_of(Network, model, "model"),
            options=ExportOptions(modality, image_size, license, uri_of(scores)),
        )
    return Exported(tuple(written), snippet)


def _validation(task: ValidationTask) -> Validation:
    """Only a run that validates needs what evaluation imports."""
    from terrafm.eval.validation import CheckpointValidation

    return CheckpointValidation(task, _draw)


def _draw(task: ValidationTask, checkpoint: str, device: torch.device) -> list[TrackedPicture]:
    """Only the process that validates needs what pictures import."""
    from terrafm.pictures.learned import pictures_of_checkpoint

    return pictures_of_checkpoint(task, checkpoint, device)
