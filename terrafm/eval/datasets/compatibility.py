"""Whether weights fit a labelled set: modalities in common, and whose normalisation is used."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from terrafm.errors import UsageError
from terrafm.eval.datasets.labelled import ImageSet
from terrafm.modalities import FIRST_CHOICE, MODALITIES
from terrafm.models.encoder import Encoder

# Normalised data lies within a few units of 0 and has a spread near 1. Statistics of one desert or
# one ice sheet differ from a planet's by a few units; those in another unit by far more.
_FARTHEST_MEAN = 20.0
_WIDEST_SPREAD = 50.0


def modality_choices(
    encoder: Encoder, images: ImageSet, wanted: Sequence[str] | None, notes: list[str]
) -> list[tuple[str, ...]]:
    """The sets of modalities to score: each alone, and all fused; or only those wanted.

    Args:
        encoder: with its contract, if it has one.
        images: the labelled set.
        wanted: only these, fused if they are several.
        notes: receives what a reader of the result should know.

    Raises:
        UsageError: nothing in common, a wanted modality that one of them lacks, or several for
            weights without fusion parameters.
    """
    known = tuple(encoder.contract.modalities) if encoder.contract else images.modalities
    both = tuple(name for name in images.modalities if name in known)
    if not both:
        raise UsageError(
            f"no modality in common: the weights know {', '.join(known)}, {images.uri} has "
            f"{', '.join(images.modalities)}"
        )
    for name in wanted or ():
        if name not in both:
            raise UsageError(
                f"modality {name} is not in both: the weights know {', '.join(known)}, "
                f"{images.uri} has {', '.join(images.modalities)}"
            )
    if wanted:
        if len(wanted) > 1 and not encoder.fusion_loaded:
            raise UsageError("these weights have no fusion parameters: choose one modality")
        return [tuple(name for name in both if name in wanted)]
    choices: list[tuple[str, ...]] = [(name,) for name in both]
    if len(both) > 1 and encoder.fusion_loaded:
        choices.append(both)
    elif len(both) > 1:
        notes.append("the weights have no fusion parameters: modalities are scored one by one")
    return choices


def one_choice(encoder: Encoder, images: ImageSet, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The modalities to use: those wanted, fused if they are several; else one.

    By default one that both have, L2A before L1C before radar.

    Raises:
        UsageError: as `modality_choices`.
    """
    choices = modality_choices(encoder, images, wanted, [])
    if wanted:
        return choices[0]
    return next((name,) for name in FIRST_CHOICE if (name,) in choices)


def check_units(encoder: Encoder, used: Sequence[str], where: str) -> None:
    """Refuses weights whose contract wants pixels in a unit that they do not come in.

    Raises:
        UsageError: names the modality and both units.
    """
    for name in used if encoder.contract else ():
        assert encoder.contract is not None
        unit = encoder.contract.modalities[name].unit
        if unit != MODALITIES[name].unit:
            raise UsageError(
                f"the contract of weights {where} wants {name} in {unit}, data comes in "
                f"{MODALITIES[name].unit}: export the weights anew with statistics in that unit"
            )


def check_normalisation(
    normalisation: Mapping[str, Mapping[str, Any]],
    measured: Mapping[str, Mapping[str, Any]],
    where: str,
) -> None:
    """Refuses a mean and std that cannot belong to the data.

    Args:
        normalisation: modality -> {"mean", "std"} per band that will be used.
        measured: the same of the data, or of a sample of it.
        where: URI of the data, for the message.

    Raises:
        UsageError: the median band's mean lies more than 20 std away, or its spread is more than
            50 times as wide or narrow.
    """
    for name, used in normalisation.items():
        mean, std = np.asarray(used["mean"]), np.asarray(used["std"])
        found_mean = np.asarray(measured[name]["mean"])
        found_std = np.asarray(measured[name]["std"])
        away = float(np.median(np.abs(found_mean - mean) / std))
        wide = float(np.median(found_std / std))
        if away > _FARTHEST_MEAN or not 1 / _WIDEST_SPREAD < wide < _WIDEST_SPREAD:
            unit = MODALITIES[name].unit
            raise UsageError(
                f"the weights' normalisation of {name} does not fit {where}: they expect "
                f"{np.median(mean):.3g} +- {np.median(std):.3g} {unit}, the data has "
                f"{np.median(found_mean):.3g} +- {np.median(found_std):.3g} (median bands); take "
                "other weights, or --normalise set"
            )


def normalisation_for(
    encoder: Encoder,
    images: ImageSet,
    used: Sequence[str],
    notes: list[str],
    *,
    by_set: bool = False,
) -> tuple[dict[str, dict[str, Any]], str]:
    """Mean and std per modality, and where they come from: the weights' contract, or the set.

    Args:
        encoder: with its contract, if it has one.
        images: the labelled set.
        used: modalities.
        notes: receives what is assumed.
        by_set: use the set's own statistics although the weights state some.
    """
    if by_set:
        statistics = images.statistics()
        return {m: statistics[m] for m in used}, "as asked: statistics of the labelled set"
    if encoder.contract is not None:
        contract = encoder.contract.modalities
        own = {m: {"mean": contract[m].mean, "std": contract[m].std} for m in used}
        return own, "weights contract"
    notes.append(
        "the weights state no band order and no statistics: the order of this library and the "
        "statistics of the labelled set are assumed"
    )
    statistics = images.statistics()
    return {m: statistics[m] for m in used}, "assumed: statistics of the labelled set"
