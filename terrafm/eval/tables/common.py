"""What all tables of evaluation share: options, rows, provenance, and how they are printed."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from rich.table import Table

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.datasets.registry import OpenOptions
from terrafm.eval.features.encoders import (
    PEERS,
    TIMM,
    TORCHGEO,
    UNTRAINED,
    InputOptions,
    Row,
    mean_spectrum_row,
    weights_rows,
)
from terrafm.eval.features.extraction import UNTRAINED_SEEDS
from terrafm.eval.features.job import FeatureWorkers
from terrafm.eval.features.readouts import Readout
from terrafm.eval.metrics import RESAMPLES
from terrafm.eval.probes.protocols import CLASS_PROTOCOLS, MASK_PROTOCOLS
from terrafm.modalities import FIRST_CHOICE, MODALITIES
from terrafm.models.patch_embed import IMAGE_SIZE

EPOCHS = 30
NAMES = {
    "knn20": "kNN k=20",
    "knn5": "kNN k=5",
    "linear": "linear probe",
    "upernet": "UPerNet",
    "finetune": "fine-tuned",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced",
    "f1_macro": "macro F1",
    "f1_micro": "micro F1",
    "map_macro": "mAP",
    "map_micro": "micro mAP",
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
}
"""Of protocols and metrics, for readers."""


@dataclass(frozen=True)
class CompareOptions:
    """How a comparison is made.

    Attributes:
        modalities: those to use, fused if they are several; by default one, L2A before L1C before
            radar.
        protocols: some of `CLASS_PROTOCOLS` or `MASK_PROTOCOLS`; by default the fast ones.
        features: URI of the folder that keeps features; None keeps none.
        size: side to which images are resized, pixels; by default each TerraFM encoder gets them
            as it was trained.
        batch: images at once.
        device: "cpu" or "cuda"; by default a GPU where there is one.
        by_set: normalise by the set's own statistics, not by those that weights state.
        seed: of folds and bootstrap.
        resamples: bootstrap draws.
        epochs: of UPerNet and, at most, of fine-tuning.
        open: what the set does not say of itself.
        workers: Ray actors that make the features; None for this process.
        progress: called with (images done, images in all) for every encoder, with workers.
        readout: which numbers of an encoder of ours are an image's embedding.
    """

    modalities: Sequence[str] | None = None
    protocols: Sequence[str] | None = None
    features: str | None = None
    size: int | None = None
    readout: Readout = Readout.CLS
    batch: int = 32
    device: str | None = None
    by_set: bool = False
    seed: int = 0
    resamples: int = RESAMPLES
    epochs: int = EPOCHS
    open: OpenOptions = field(default_factory=OpenOptions)
    workers: int | None = None
    progress: Callable[[int, int], None] | None = None

    def inputs(self, images: ImageSet) -> InputOptions:
        """How a set is looked at.

        Raises:
            UsageError: a modality that the set does not have.
        """
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        return InputOptions(
            _modalities(images, self.modalities),
            IMAGE_SIZE if self.size is None else self.size,
            self.batch,
            torch.device(device),
            self.by_set,
            None
            if self.workers is None
            else FeatureWorkers(self.workers, self.open, self.device, self.progress),
            own_size=self.size is None,
            readout=self.readout,
        )

    def chosen(self, usual: Sequence[str], fit: Sequence[str], what: str) -> tuple[str, ...]:
        """The protocols to run, each once.

        Args:
            usual: where none is named.
            fit: those that can be run.
            what: says what the set is, for the message.

        Raises:
            UsageError: one that cannot.
        """
        for protocol in self.protocols or ():
            if protocol not in fit:
                raise UsageError(f"{what}: its protocols are {', '.join(fit)}, not {protocol}")
        return tuple(dict.fromkeys(self.protocols or usual))


def check_protocols(options: CompareOptions) -> None:
    """Refuses a protocol that is for no set at all, before one is opened.

    Raises:
        UsageError: it names it.
    """
    known = tuple(dict.fromkeys((*CLASS_PROTOCOLS, *MASK_PROTOCOLS)))
    for protocol in options.protocols or ():
        if protocol not in known:
            raise UsageError(f"unknown protocol {protocol!r}: one of {', '.join(known)}")


def check_baselines(baselines: Sequence[str]) -> None:
    """Refuses what is no other encoder, before anything is read.

    Raises:
        UsageError: it names it.
    """
    for name in baselines:
        if not name.startswith(PEERS):
            raise UsageError(
                f"baseline {name!r} is not known: {TIMM}NAME[@URI], {TORCHGEO}WEIGHTS[@URI] or "
                f"{UNTRAINED}NAME; TerraFM weights are named with --weights"
            )


def table_rows(
    images: ImageSet,
    inputs: InputOptions,
    weights: Sequence[str | os.PathLike[str]],
    baselines: Sequence[str],
    notes: list[str],
    seeds: Sequence[int] = UNTRAINED_SEEDS,
) -> list[Row]:
    """The rows of a table, top to bottom; untrained encoders of some seeds, one row each.

    Raises:
        UsageError: an encoder that cannot be read or does not fit the set.
    """
    check_baselines(baselines)
    ours = weights_rows(weights, images, inputs, notes, seeds)
    others = []
    if baselines:
        # timm loads its whole zoo: only for those who ask for one of its models.
        from terrafm.eval.features.peers import peer_rows

        others = [row for name in baselines for row in peer_rows(name, images, inputs)]
    return [
        mean_spectrum_row(images, ours[0].inputs if ours else inputs),
        *others,
        *ours,
    ]


def provenance(
    images: ImageSet, inputs: InputOptions, rows: Sequence[Row], options: CompareOptions
) -> dict[str, Any]:
    """What a reader of a result has to know, JSON-able.

    `image_size` is one number, or a list where TerraFM encoders got images of several sizes.
    """
    sizes = sorted({row.inputs.size for row in rows if row.encoder is not None}) or [inputs.size]
    return {
        "data": images.uri,
        "data_fingerprint": images.fingerprint,
        "classes": list(images.classes),
        "modalities": list(inputs.modalities),
        "bands": {modality: images.bands[modality] for modality in inputs.modalities},
        "image_size": sizes[0] if len(sizes) == 1 else sizes,
        "readout": inputs.readout.value,
        "seed": options.seed,
        "resamples": options.resamples,
    }


def with_scores(
    rows: Sequence[dict[str, Any]], protocols: Sequence[str], notes: list[str]
) -> list[dict[str, Any]]:
    """Rows that have a score: what has no encoder of ours cannot be fine-tuned.

    Args:
        rows: all of the table.
        protocols: those that were run.
        notes: receives what was not.

    Raises:
        UsageError: none has.
    """
    if "finetune" in protocols:
        without = [row["title"] for row in rows if "finetune" not in row["protocols"]]
        notes.append(f"only TerraFM's encoders are fine-tuned, not: {', '.join(without)}")
    kept = [row for row in rows if row["protocols"]]
    if not kept:
        raise UsageError("fine-tuning needs an encoder: --weights URI")
    return kept


def averaged(rows: Sequence[Row], shown: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table, those of one family as their mean.

    Args:
        rows: as computed.
        shown: each one's scores, JSON-able.

    Returns:
        The rows; of a family, metric -> {"value", "low", "high"} are means over its members that
        ran the protocol, "spread" the standard deviation of their values, "members" their number.
    """
    result: list[dict[str, Any]] = []
    families: dict[str, list[dict[str, Any]]] = {}
    for row, found in zip(rows, shown, strict=True):
        if row.family is None:
            result.append(found)
            continue
        members = families.setdefault(row.family, [])
        if not members:
            result.append({"title": row.family, "family": members})
        members.append(found)
    return [_mean_row(row) if "family" in row else row for row in result]


def _mean_row(row: dict[str, Any]) -> dict[str, Any]:
    members = row["family"]
    protocols: dict[str, Any] = {}
    for protocol in members[0]["protocols"]:
        ran = [m["protocols"][protocol] for m in members if protocol in m["protocols"]]
        each = [scored["scores"] for scored in ran]
        protocols[protocol] = {
            **ran[0],
            "scores": {metric: _mean_score([s[metric] for s in each]) for metric in each[0]},
            "members": len(ran),
        }
    first = members[0]
    return {
        "title": row["title"],
        "seen": first["seen"],
        "features": [member["features"] for member in members],
        "protocols": protocols,
    }


def _mean_score(each: Sequence[dict[str, float]]) -> dict[str, float]:
    mean = {name: float(np.mean([score[name] for score in each])) for name in each[0]}
    if len(each) == 1:
        return mean
    return mean | {"spread": float(np.std([score["value"] for score in each], ddof=1))}


def render(result: dict[str, Any]) -> Table:
    """The result as a table for the terminal."""
    table = Table(
        title=f"{result['data']}: {result['n']} images, {len(result['classes'])} classes",
        caption="\n".join(
            [
                f"{result['split']}; images resized to {_sizes(result)} pixels, readout "
                f"{result['readout']}",
                "in percent, [low, high]: 95 % bootstrap interval, "
                f"{result['resamples']} draws, seed {result['seed']}",
                *(f"{name}: {text}" for name, text in result["bands"].items()),
                *(f"{row['title']}: {row['seen']}" for row in result["rows"]),
                *(text for row in result["rows"] for text in _chosen(row)),
                *result["notes"],
            ]
        ),
        caption_justify="left",
    )
    first = next(iter(result["rows"][0]["protocols"].values()))
    table.add_column("encoder", overflow="fold")
    table.add_column("protocol")
    for name in first["scores"]:
        table.add_column(NAMES[name], justify="right")
    for row in result["rows"]:
        for at, (protocol, scored) in enumerate(row["protocols"].items()):
            cells = [_cell(score) for score in scored["scores"].values()]
            table.add_row("" if at else row["title"], NAMES.get(protocol, protocol), *cells)
        table.add_section()
    return table


def _sizes(result: dict[str, Any]) -> str:
    sizes = result["image_size"]
    return str(sizes) if isinstance(sizes, int) else " or ".join(map(str, sizes))


def _chosen(row: dict[str, Any]) -> list[str]:
    """What training chose, of protocols that train for long."""
    lines = []
    for protocol, scored in row["protocols"].items():
        if "epochs" in scored:
            rates = ", ".join(f"{rate:g}" for rate in np.atleast_1d(scored["learning_rate"]))
            best = ", ".join(str(epoch) for epoch in np.atleast_1d(scored.get("epoch", [])))
            epochs = f"{scored['epochs']} epochs"
            spent = f"best after epoch {best} of {epochs}" if best else epochs
            lines.append(f"{row['title']}, {NAMES[protocol]}: learning rate {rates}, {spent}")
    return lines


def _cell(score: dict[str, float]) -> str:
    value, low, high = (100 * score[name] for name in ("value", "low", "high"))
    return f"{value:.1f}\n[{low:.1f}, {high:.1f}]"


def _modalities(images: ImageSet, wanted: Sequence[str] | None) -> tuple[str, ...]:
    for name in wanted or ():
        if name not in images.modalities:
            raise UsageError(f"{images.uri} has {', '.join(images.modalities)}, not {name}")
    if wanted:
        return tuple(name for name in MODALITIES if name in wanted)
    return (next(name for name in FIRST_CHOICE if name in images.modalities),)
