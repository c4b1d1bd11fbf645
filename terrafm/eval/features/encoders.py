"""The rows of a comparison: what makes features of the images, and what they depend on."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.eval.datasets.compatibility import modality_choices, normalisation_for
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.eval.features.extraction import (
    UNTRAINED_SEEDS,
    input_side,
    mean_spectra,
    untrained_like,
)
from terrafm.eval.features.job import (
    EncoderFeatures,
    FeatureWorkers,
    extract_features,
    untrained_spec,
)
from terrafm.eval.features.readouts import Readout
from terrafm.models.encoder import Encoder
from terrafm.models.weights import infer_model_name, load_encoder, state_fingerprint
from terrafm.storage import absolute

MEAN_SPECTRUM = "mean spectrum"
TIMM, TORCHGEO, UNTRAINED = "timm:", "torchgeo:", "untrained:"
PEERS = (TIMM, TORCHGEO, UNTRAINED)
"""How the rows of other encoders are called: by who has their architecture and weights."""


@dataclass(frozen=True)
class InputOptions:
    """How images are given to encoders.

    Attributes:
        modalities: those that are used, fused if they are several.
        size: side to which images are resized, pixels.
        batch: images at once.
        device: where to compute.
        by_set: normalise by the set's own statistics, not by those that weights state.
        workers: Ray workers that make the features; None for this process.
        own_size: TerraFM encoders get images of the side that they were trained with instead.
        readout: which numbers of an encoder of ours are an image's embedding.
    """

    modalities: tuple[str, ...]
    size: int
    batch: int
    device: torch.device
    by_set: bool = False
    workers: FeatureWorkers | None = None
    own_size: bool = False
    readout: Readout = Readout.CLS


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        title: for the reader.
        seen: what the model sees: bands and normalisation, in one line.
        depends_on: JSON-able, all that the features depend on besides the set.
        compute: makes (N, D) float32, rows of unit length, zero for images without the modality;
            given a URI, workers keep finished parts there.
        inputs: how images are given to it.
        encoder: of a TerraFM row, with its normalisation; for dense tasks.
        normalisation: modality -> {"mean", "std"} that the encoder sees.
        family: title of the rows whose mean is shown in place of each; None for one by itself.
    """

    title: str
    seen: str
    depends_on: dict[str, Any]
    compute: Callable[[str | None], NDArray[np.float32]]
    inputs: InputOptions
    encoder: Encoder | None = None
    normalisation: dict[str, dict[str, Any]] | None = None
    family: str | None = None


def mean_spectrum_row(images: ImageSet, inputs: InputOptions) -> Row:
    """The baseline without a model: every band's mean."""
    return Row(
        MEAN_SPECTRUM,
        "mean of every band, standardised over the set",
        {"row": MEAN_SPECTRUM, "modalities": list(inputs.modalities)},
        lambda _: mean_spectra(images, [inputs.modalities])[0],
        inputs,
    )


def weights_rows(
    weights: Sequence[str | os.PathLike[str]],
    images: ImageSet,
    inputs: InputOptions,
    notes: list[str],
    seeds: Sequence[int] = UNTRAINED_SEEDS,
) -> list[Row]:
    """Untrained encoders of each architecture among the weights, then the weights.

    The untrained ones see images as the first weights of their architecture do.

    Args:
        weights: URIs of exported or released weights.
        images: the set.
        inputs: how images are given to the encoders.
        notes: receives what a reader of the result should know.
        seeds: of the untrained encoders; several are a family.

    Raises:
        UsageError: unreadable weights, or weights that do not know the modalities.
    """
    untrained: dict[str, list[Row]] = {}
    trained = []
    for given in weights:
        uri = os.fspath(given)
        encoder = load_encoder(uri)
        own = replace(inputs, size=input_side(encoder, None if inputs.own_size else inputs.size))
        modality_choices(encoder, images, inputs.modalities, notes)
        normalisation, source = normalisation_for(
            encoder, images, inputs.modalities, notes, by_set=inputs.by_set
        )
        name = infer_model_name(encoder.state_dict(), uri)
        trained.append(
            _encoder_row(uri, absolute(uri), encoder, normalisation, source, images, own)
        )
        if name not in untrained:
            family = f"untrained {name}, {len(seeds)} seeds" if len(seeds) > 1 else None
            untrained[name] = [
                _encoder_row(
                    f"untrained {name} (seed {seed})",
                    untrained_spec(name, seed, inputs.modalities),
                    untrained_like(name, seed, inputs.modalities),
                    normalisation,
                    f"{source} of {uri}",
                    images,
                    own,
                    family,
                )
                for seed in seeds
            ]
    return [*(row for rows in untrained.values() for row in rows), *trained]


def _encoder_row(
    title: str,
    spec: str,
    encoder: Encoder,
    normalisation: dict[str, dict[str, Any]],
    source: str,
    images: ImageSet,
    inputs: InputOptions,
    family: str | None = None,
) -> Row:
    stated = {
        name: {"mean": [float(v) for v in s["mean"]], "std": [float(v) for v in s["std"]]}
        for name, s in normalisation.items()
    }
    fingerprint = state_fingerprint(encoder)
    extractor = EncoderFeatures(
        (spec,),
        (inputs.modalities,),
        stated,
        inputs.size,
        inputs.batch,
        (fingerprint,),
        inputs.readout,
    )
    depends_on = {
        "row": "terrafm",
        "weights": fingerprint,
        "modalities": list(inputs.modalities),
        "size": inputs.size,
        "normalisation": stated,
    }
    if inputs.readout is not Readout.CLS:
        depends_on["readout"] = inputs.readout.value

    def compute(parts: str | None) -> NDArray[np.float32]:
        made = extract_features(extractor, images, inputs.device, inputs.workers, parts)
        return inputs.readout.finished(made)

    return Row(
        title,
        f"normalisation: {source}",
        depends_on,
        compute,
        inputs,
        encoder,
        normalisation,
        family,
    )
