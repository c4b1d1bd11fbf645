"""Whether weights fit a labelled set: modalities in common, and whose normalisation is used."""

from collections.abc import Sequence
from typing import Any

from terrafm.errors import UsageError
from terrafm.eval.labelled import ImageSet
from terrafm.models.encoder import Encoder


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
