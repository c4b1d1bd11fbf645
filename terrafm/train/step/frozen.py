"""Parts of an encoder that a run leaves as its weights to start from have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from terrafm.errors import UsageError
from terrafm.models.contract import WeightsContract
from terrafm.models.encoder import Encoder
from terrafm.models.weights import TRAINING_ONLY


def freeze(encoder: Encoder, parts: Sequence[str]) -> None:
    """Takes the gradients of parts of a student away, before an optimizer is built.

    Args:
        encoder: of the student.
        parts: as `model.frozen` names them.

    Raises:
        UsageError: more blocks than there are.
    """
    for part in parts:
        for name in _names_of(part, encoder):
            encoder.get_parameter(name).requires_grad_(False)


def check_frozen(
    encoder: Encoder,
    parts: Sequence[str],
    weights: Mapping[str, Tensor] | None,
    contract: WeightsContract | None,
    source: str,
    modalities: Sequence[str] = (),
) -> None:
    """Makes sure that what is to be frozen was trained, and is not as a seed has drawn it.

    Args:
        encoder: with the sensors that are trained on.
        parts: as `model.frozen` names them.
        weights: to start from; None without any.
        contract: of these weights, where they state one.
        source: where they come from, for the message.
        modalities: that are trained on.

    Raises:
        UsageError: there are no weights, they lack a part, or as `freeze`.
    """
    if parts and weights is None:
        raise UsageError(
            "model.frozen needs weights to start from: without model.init its parts would stay as "
            "they were drawn"
        )
    # Own weights have the stems of all built-in sensors, trained or not.
    known = None if contract is None else contract.modalities
    stems = [m for m in modalities if known is not None and m not in known]
    if "patch_embed" in parts and stems:
        raise UsageError(
            f"{source} was not trained on {', '.join(stems)}, whose patch embedding "
            "model.frozen=patch_embed would leave untrained: take patch_embed out of model.frozen"
        )
    for part in parts:
        for name in _names_of(part, encoder):
            if weights is not None and name not in weights:
                raise UsageError(
                    f"{source} has no {name}, which model.frozen={part} would leave untrained: "
                    f"take {part} out of model.frozen"
                )


def _names_of(part: str, encoder: Encoder) -> list[str]:
    names = [name for name, _ in encoder.named_parameters()]
    match part.partition(":"):
        case "patch_embed", _, _:
            # Fusion is a part of its own: released weights come without it.
            return [
                n for n in names if n.startswith("patch_embed.") and not n.startswith(TRAINING_ONLY)
            ]
        case "fusion", _, _:
            return [name for name in names if name.startswith(TRAINING_ONLY)]
        case "blocks", _, first:
            depth = len(encoder.blocks)
            count = int(first) if first else depth
            if count > depth:
                raise UsageError(f"model.frozen={part}: the encoder has {depth} blocks")
            lowest = tuple(f"blocks.{number}." for number in range(count))
            return [name for name in names if name.startswith(lowest)]
        case _:
            return [name for name in names if name == part]
