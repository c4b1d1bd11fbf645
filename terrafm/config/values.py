"""Kinds of values that settings have, each with bounds within which a run can use it.

An upper bound stands where more would overflow, or ask for more memory than any machine has: it
catches a slip of the hand, not a daring choice.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field, Strict, WithJsonSchema
from pydantic_core import PydanticCustomError

from terrafm.modalities import MODALITIES

_T = TypeVar("_T")

ENCODER_PART = re.compile(r"patch_embed|fusion|pos_embed|cls_token|blocks(:[1-9]\d{0,2})?")
"""Of an encoder: a part, or its first so many blocks."""


def _one_line(text: str) -> str:
    # Paths that no file system takes, and errors of several lines.
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in text):
        raise ValueError("takes text of one line without control characters")
    return text


def _distinct(values: tuple[_T, ...]) -> tuple[_T, ...]:
    if len(set(values)) < len(values):
        raise ValueError("takes a list in which nothing stands twice")
    return values


def _one_each(names: tuple[str, ...]) -> tuple[str, ...]:
    _distinct(tuple(name.partition("+")[0] for name in names))
    return names


def _ordered(pair: tuple[float, float]) -> tuple[float, float]:
    if pair[0] > pair[1]:
        raise ValueError("takes the smaller one first")
    return pair


def _known(name: str) -> str:
    if name not in MODALITIES:
        raise PydanticCustomError("modality", "no modality")
    return name


def _encoder_part(name: str) -> str:
    if not ENCODER_PART.fullmatch(name):
        raise ValueError(
            "takes a list of patch_embed, fusion, pos_embed, cls_token, blocks, or blocks:2 for "
            "the first two blocks"
        )
    return name


def _gpus(share: float) -> float:
    if share > 1 and not share.is_integer():
        raise ValueError("takes a share of one GPU, or whole ones")
    return share


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Field(min_length=1), AfterValidator(_one_line)]
EncoderPart = Annotated[str, AfterValidator(_encoder_part)]

# true is no number, and neither is text.
Integer = Annotated[int, Strict()]
Count = Annotated[Integer, Field(ge=1, le=10**9)]
Whole = Annotated[Integer, Field(ge=0, le=10**9)]
Batch = Annotated[Integer, Field(ge=1, le=10**6)]
Workers = Annotated[Integer, Field(ge=1, le=10**5)]
# 0 works in the process of the command, without Ray.
WorkersOrNone = Annotated[Integer, Field(ge=0, le=10**5)]
Bytes = Annotated[Integer, Field(ge=1, le=10**18)]
Seed = Annotated[Integer, Field(ge=0, le=2**63 - 1)]
# Side of an image in pixels, whole patches.
Side = Annotated[Integer, Field(ge=16, le=2048, multiple_of=16)]

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0.0, le=1.0)]
BelowOne = Annotated[Number, Field(ge=0.0, lt=1.0)]
Positive = Annotated[Number, Field(gt=0.0, le=1e9)]
Amount = Annotated[Number, Field(ge=0.0, le=1e9)]
Temperature = Annotated[Number, Field(ge=1e-3, le=100.0)]
# Ray counts in steps of 0.0001.
Cpus = Annotated[Number, Field(ge=1e-3, le=1e5)]
Gpus = Annotated[Number, Field(ge=0.0, le=1e3), AfterValidator(_gpus)]
Share = Annotated[Number, Field(gt=0.0, le=1.0)]
# Share of a tile's area, and width / height.
Area = Share
Aspect = Annotated[Number, Field(ge=0.01, le=100.0)]

Distinct = AfterValidator(_distinct)
# "wandb" and "wandb+weights" are one tracker.
OneEach = AfterValidator(_one_each)
Ordered = AfterValidator(_ordered)
_Modality = Annotated[
    str, AfterValidator(_known), WithJsonSchema({"type": "string", "enum": list(MODALITIES)})
]
Modalities = Annotated[tuple[_Modality, ...], Distinct]
SomeModalities = Annotated[tuple[_Modality, ...], Field(min_length=1), Distinct]
