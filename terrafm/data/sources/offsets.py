"""Whether the digital numbers of a Sentinel-2 product still hold the offset of 1000.

Products since processing baseline 04.00 add it; archives differ in whether they took it off again.
What a product says of itself is a claim; where pixels that cannot be deceived say otherwise, the
pixels decide.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from terrafm.data.archive import BadCellError, CellRef, Product, Source
from terrafm.data.land.selection import parse_time
from terrafm.data.rasters.units import (
    OFFSET,
    Decision,
    digital_numbers,
    is_missing,
    sample,
    unit_of,
)
from terrafm.errors import PixelError
from terrafm.modalities import OPTICAL

FIRST_BASELINE_WITH_OFFSET = 400
# Collection-1 test products, published without the offset.
_TEST_BASELINE = 9999
_BASELINE = re.compile(r"_N(\d{4})(?![0-9A-Za-z])")
_PRODUCT_NAME = re.compile(r"S2[A-D]_MSIL[12][AC]_.*_N\d{4}(?![0-9A-Za-z])")

# Without the offset the cirrus band's 0.1 percentile is 2 to 54 in real scenes, with it 1004 to
# 1040.
_CIRRUS_THRESHOLD = OFFSET // 2
# No cirrus is so bright in its darkest pixels: such a band is another one, or drawn.
_BRIGHTEST_CIRRUS = 2 * OFFSET
# Where a twentieth of a band lies far below what an offset leaves, or far below zero, there is
# none, or it was taken off twice.
_BELOW_OFFSET = 500
_BELOW_ZERO = -400
# Reflectance of shadows falls slightly below zero after atmospheric correction: the darkest pixels
# of an offset product lie a little under 1000. Water and shadow in infrared lie little above it;
# where all ground is brighter than that, it may be bright itself.
_DARK_WITH_OFFSET = 900
_DARK_INFRARED = 1200
# Leaves swallow blue light: with the offset their DN in B02 lie in these bounds, without it below,
# and above them nothing green. Level-1C has the air's own blue in it.
_GREEN_INDEX = 0.3
_GREEN_SHARE = 0.05
_LEAF_BLUE = {"s2_l2a": (1150, 1900), "s2_l1c": (1500, 2600)}
# Bands where the atmosphere changes reflectance least: L2A and L1C differ there by the offset.
_CLEAR_BANDS = ("B8A", "B11", "B12")
_SAME_PASS_SECONDS = 600

LOOKED_AT = 16
"""So many products, from all over an archive or a set, tell what they all have in common."""

_NO_PIXELS, _DARK, _BRIGHT = "no valid pixels", "dark pixels", "too bright to tell"


@dataclass(frozen=True)
class Survey:
    """What a few products from all over an archive, or a set, have in common.

    Attributes:
        offsets: modality -> offset of products whose own pixels do not tell, where those that
            were looked at agree.
        units: modality -> unit of most of them.
    """

    offsets: Mapping[str, int] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Iterable[Mapping[str, Decision]]) -> "Survey":
        """Of the decisions of those products; few that differ do not count."""
        votes: dict[str, Counter[int]] = {}
        units: dict[str, Counter[str]] = {}
        for decisions in found:
            for modality, decision in decisions.items():
                if decision.reason == _NO_PIXELS:
                    continue
                units.setdefault(modality, Counter())[decision.unit] += 1
                if decision.reason != _BRIGHT:
                    votes.setdefault(modality, Counter())[decision.offset] += 1
        offsets = {}
        for modality, counts in votes.items():
            if counts[0] and counts[0] >= 3 * counts[OFFSET]:
                offsets[modality] = 0
            elif counts[OFFSET] and not counts[0]:
                offsets[modality] = OFFSET
        return cls(offsets, {m: counts.most_common(1)[0][0] for m, counts in units.items()})


@dataclass(frozen=True)
class _Evidence:
    offset: int
    reason: str
    margin: int | None = None


def decide(
    products: Mapping[str, Product], survey: Survey | None = None, where: str = ""
) -> dict[str, Decision]:
    """Decides unit and offset of all products of one cell, or of one file.

    Every optical product is judged by itself: co-located Level-1C and Level-2A may differ. A claim
    is the file's own tags, else the processing baseline in the product's name. It is outweighed by
    pixels that say otherwise: the cirrus band of Level-1C, which sees almost no ground and so is
    near zero reflectance; the difference of Level-2A to the decided Level-1C of the same pass in
    bands that the atmosphere hardly touches; a band far below what an offset leaves. Without a
    claim the same evidence decides, then green leaves, which are dark in blue, then the darkest
    pixels. Bright ground can deceive those: where other products of the archive have no offset,
    they alone do not take one off, and where nothing is dark enough to tell, those decide.

    Args:
        products: modality -> product.
        survey: of the archive.
        where: what an error names, where a product has no name.

    Raises:
        PixelError: the pixels of a product can be in no unit.
    """
    survey = survey or Survey()
    decisions: dict[str, Decision] = {}
    for name, product in sorted(products.items()):
        unit = _unit(product, survey, where)
        if name not in OPTICAL:
            decisions[name] = Decision(0, "radar" if name == "s1" else "as stated", unit)
            continue
        pair = None
        if name == "s2_l2a" and "s2_l1c" in decisions:
            pair = _by_pair(product, unit, products["s2_l1c"], decisions["s2_l1c"])
        found = _judge(product, unit, pair, survey, one_pass=bool(pair) and _one_pass(products))
        decisions[name] = Decision(found.offset, found.reason, unit, found.margin)
    return decisions


def survey_archive(source: Source, refs: Sequence[CellRef]) -> Survey:
    """Looks at a few cells from all over an archive; at one where that one tells by itself."""
    found = []
    for at in spread(len(refs)):
        optical = tuple(name for name in refs[at].modalities if name in OPTICAL)
        if not optical:
            continue
        try:
            products = source.read(replace(refs[at], modalities=optical)).products
        except BadCellError:
            continue
        odd = unclear(products, Survey(), refs[at].cell_id)
        found.append(decide({m: product for m, product in products.items() if m not in odd}))
        if not any(decision.reason in (_DARK, _BRIGHT) for decision in found[0].values()):
            break
    return Survey.of(found)


def spread(count: int) -> list[int]:
    """Positions of those to look at: the first, the last, and some between."""
    return [int(at) for at in np.unique(np.linspace(0, count - 1, LOOKED_AT).round())]


def unclear(products: Mapping[str, Product], survey: Survey, where: str) -> dict[str, PixelError]:
    """Products whose pixels can be in no unit, and why."""
    faults = {}
    for name, product in products.items():
        try:
            _unit(product, survey, where)
        except PixelError as fault:
            faults[name] = fault
    return faults


def named_product(tags: Mapping[str, str], stem: str) -> str:
    """Name of the product that a file is of: its tag, or its own name where that is one."""
    for key in ("product_id", "PRODUCT_ID", "PRODUCT_URI"):
        if tags.get(key):
            return tags[key].removesuffix(".SAFE")
    return stem if _PRODUCT_NAME.search(stem) else ""


def claimed_offset(tags: Mapping[str, str], offset_tag: bool) -> tuple[int, str] | None:
    """The offset that is left in a file's digital numbers, by its own tags.

    Args:
        tags: the file's metadata.
        offset_tag: GDAL's offset was in the file, and is applied.

    Returns:
        DN to subtract, and which tag says so; None where none does.
    """
    if offset_tag:
        return 0, "offset tag"
    if "DATASET_FINGERPRINT" in tags:
        return 0, "a tile of terrafm"
    applied = tags.get("earthsearch:boa_offset_applied", "").lower()
    if applied == "true":
        return 0, "boa_offset_applied"
    for key in ("BOA_ADD_OFFSET", "RADIO_ADD_OFFSET"):
        if re.fullmatch(r"-?(0|1000)(\.0*)?", tags.get(key, "")):
            return abs(int(float(tags[key]))), key
    baseline = re.fullmatch(r"N?(\d\d)\.?(\d\d)", tags.get("PROCESSING_BASELINE", ""))
    if baseline:
        return _of_baseline("".join(baseline.groups()))
    return None


def _unit(product: Product, survey: Survey, where: str) -> str:
    name = product.modality
    usual = survey.units.get(name)
    where = product.source or product.product_id or where or name
    return unit_of(product.bands, name, product.nodata, where, usual)


def _judge(
    product: Product, unit: str, pair: _Evidence | None, survey: Survey, *, one_pass: bool
) -> _Evidence:
    claim = _claim(product)
    cirrus = _by_cirrus(product, unit)
    if claim is not None:
        against = [cirrus, pair if one_pass else None, _by_floor(product, unit, claim.offset)]
        for evidence in against:
            if evidence is not None and evidence.offset != claim.offset:
                reason = f"{evidence.reason}, against {claim.reason}"
                return _Evidence(evidence.offset, reason, evidence.margin)
        return _Evidence(claim.offset, claim.reason, cirrus.margin if cirrus else None)
    found = cirrus or pair or _by_dark_pixels(product, unit)
    usual = survey.offsets.get(product.modality)
    if found.reason == _BRIGHT and usual is not None:
        return _Evidence(usual, "other products of the archive")
    if found.reason != _DARK or usual in (None, found.offset):
        return found
    # Shadows of a product with the offset may lie below 900, but not far; and no bright ground
    # looks like leaves.
    if usual == OFFSET:
        weak = (found.margin or 0) <= _DARK_WITH_OFFSET - _BELOW_OFFSET
    else:
        weak = _by_leaves(product, unit) is None
    if weak:
        return _Evidence(int(usual or 0), f"other products of the archive, against {_DARK}")
    return found


def _claim(product: Product) -> _Evidence | None:
    if product.claim is not None:
        return _Evidence(*product.claim)
    match = _BASELINE.search(product.product_id)
    return _Evidence(*_of_baseline(match.group(1))) if match else None


def _of_baseline(digits: str) -> tuple[int, str]:
    present = FIRST_BASELINE_WITH_OFFSET <= int(digits) != _TEST_BASELINE
    return (OFFSET if present else 0), f"baseline N{digits}"


def _by_cirrus(product: Product, unit: str) -> _Evidence | None:
    if product.cirrus is None:
        return None
    values = _numbers(product.cirrus, product, unit)
    if not values.size:
        return None
    low = float(np.percentile(values, 0.1))
    if low > _BRIGHTEST_CIRRUS:
        return None
    margin = round(abs(low - _CIRRUS_THRESHOLD))
    return _Evidence(OFFSET if low >= _CIRRUS_THRESHOLD else 0, "cirrus band", margin)


def _by_pair(product: Product, unit: str, level_1c: Product, decided: Decision) -> _Evidence | None:
    medians = []
    for band in _CLEAR_BANDS:
        if band not in product.bands or band not in level_1c.bands:
            continue
        upper = digital_numbers(level_1c.bands[band], decided.unit)
        lower = digital_numbers(product.bands[band], unit)
        if upper.shape != lower.shape:
            return None
        both = ~is_missing(level_1c.bands[band], level_1c.nodata)
        both &= ~is_missing(product.bands[band], product.nodata) & (upper > 0) & (lower > 0)
        if not both.any():
            return None
        ground = lower[both].astype(np.float64) - upper[both] + decided.offset
        medians.append(np.median(ground))
    if not medians:
        return None
    apart = float(np.median(medians))
    offset = OFFSET if apart > OFFSET / 2 else 0
    return _Evidence(offset, "paired with Level-1C", round(abs(apart - OFFSET / 2)))


def _one_pass(products: Mapping[str, Product]) -> bool:
    """Whether Level-1C and Level-2A are known to show the same moment: clouds differ otherwise."""
    first, second = (parse_time(products[name].time) for name in ("s2_l1c", "s2_l2a"))
    if first is None or second is None:
        return False
    return abs((first - second).total_seconds()) < _SAME_PASS_SECONDS


def _by_floor(product: Product, unit: str, claimed: int) -> _Evidence | None:
    """What the darkest band says against a claim; it never speaks for one."""
    lows = [
        float(np.percentile(values, 5))
        for band in product.bands.values()
        if (values := _numbers(band, product, unit)).size
    ]
    low = min(lows, default=0.0)
    if claimed == OFFSET and lows and low < _BELOW_OFFSET:
        return _Evidence(0, f"a band below {OFFSET}", round(_BELOW_OFFSET - low))
    if claimed == 0 and low < _BELOW_ZERO:
        return _Evidence(-OFFSET, "a band below zero", round(_BELOW_ZERO - low))
    return None


def _by_leaves(product: Product, unit: str) -> _Evidence | None:
    """Whether what has the index of green leaves is as bright in blue as an offset makes it."""
    if not {"B02", "B04", "B08"} <= set(product.bands):
        return None
    bands = [product.bands[name] for name in ("B02", "B04", "B08")]
    if len({band.shape for band in bands}) > 1:
        return None
    valid = np.logical_and.reduce([~is_missing(band, product.nodata) for band in bands])
    blue, red, infrared = (
        np.asarray(digital_numbers(band[valid], unit), np.float64) for band in bands
    )
    green = (blue > 0) & (red > 0) & (infrared - red >= _GREEN_INDEX * (infrared + red))
    if not green.any() or green.mean() < _GREEN_SHARE:
        return None
    level = float(np.median(blue[green]))
    least, most = _LEAF_BLUE[product.modality]
    if not least <= level <= most:
        return None
    return _Evidence(OFFSET, "leaves in blue", round(level - least))


def _by_dark_pixels(product: Product, unit: str) -> _Evidence:
    darkest = {
        name: float(np.percentile(values, 1))
        for name, band in product.bands.items()
        if (values := _numbers(band, product, unit)).size
    }
    if not darkest:
        return _Evidence(0, _NO_PIXELS)
    low = min(darkest.values())
    if low < _DARK_WITH_OFFSET:
        return _Evidence(0, _DARK, round(_DARK_WITH_OFFSET - low))
    infrared = min((darkest[band] for band in _CLEAR_BANDS if band in darkest), default=np.inf)
    if infrared <= _DARK_INFRARED:
        return _Evidence(OFFSET, _DARK, round(low - _DARK_WITH_OFFSET))
    return _by_leaves(product, unit) or _Evidence(0, _BRIGHT)


def _numbers(pixels: NDArray[Any], product: Product, unit: str) -> NDArray[Any]:
    """(n,) measured digital numbers, or some of them."""
    values = digital_numbers(sample(pixels, product.nodata), unit)
    found: NDArray[Any] = values[values > -OFFSET]
    return found
