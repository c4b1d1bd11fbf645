"""Bands of a file to bands of the model: by their labels, never by position where a label counts.

Bands without labels have one stated order (`usual_order`). Where 13 unlabelled bands may lie in
two orders, the pixels are asked: air swallows what the cirrus band sees, so it is by far the
darkest.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from terrafm.errors import PixelError
from terrafm.modalities import MODALITIES, SENTINEL

RULE = "0 after normalisation"
CIRRUS = "B10"
_L2A = MODALITIES["s2_l2a"].bands
L1C_ORDER = (*_L2A[:10], CIRRUS, *_L2A[10:])
EUROSAT_ORDER = (*_L2A[:8], "B09", CIRRUS, "B11", "B12", "B8A")
"""Level-1C as EuroSAT's authors stored it: B8A comes last."""
BY_RESOLUTION = (
    *("B02", "B03", "B04", "B08"), *("B05", "B06", "B07", "B8A", "B11", "B12"), "B01", "B09",
)  # fmt: skip
"""Level-2A with its bands of 10 m first, as TreeSatAI stores it."""
EXCHANGED_DB = 3.0
"""VH above VV by more than that has VV's name: over land VV is the stronger one."""
UNDERSTOOD = {
    "sentinel-1": "VV, VH, VV_db, Gamma0_VH",
    "sentinel-2": "B01, B1, 8A, B12_sr, blue, rededge1, nir, nir08, swir16",
}

_COMMON = {
    "B01": "coastal coastalaerosol aerosol aerosols ultrablue",
    "B02": "blue",
    "B03": "green",
    "B04": "red",
    "B05": "rededge1 rededge071 rededge705 re1 vre1",
    "B06": "rededge2 rededge075 rededge740 re2 vre2",
    "B07": "rededge3 rededge078 rededge783 re3 vre3",
    "B08": "nir nirbroad broadnir nirwide widenir nir842",
    "B8A": "nir08 nirnarrow narrownir nir865 rededge4 re4 vre4",
    "B09": "nir09 vapour vapor wv",
    "B10": "cirrus swircirrus cirrusswir",
    "B11": "swir16 swir1 swir1610",
    "B12": "swir22 swir2 swir2190",
}
_BY_COMMON = {alias: band for band, aliases in _COMMON.items() for alias in aliases.split()}
# What a word says beside a number: "B5 - NIR" is another satellite's.
_WORDS = {
    "coastal": {"B01"}, "aerosol": {"B01"}, "ultrablue": {"B01"},
    "blue": {"B02"}, "green": {"B03"}, "red": {"B04"},
    "rededge": {"B05", "B06", "B07", "B8A"},
    "nir": {"B08", "B8A", "B09"}, "swir": {"B10", "B11", "B12"},
    "vapour": {"B09"}, "vapor": {"B09"}, "cirrus": {"B10"},
    **{alias: {band} for alias, band in _BY_COMMON.items() if alias[-1].isdigit()},
}  # fmt: skip
_FILLERS = frozenset(
    re.split(
        r"\s+",
        "s2 s2a s2b s2c sentinel sentinel2 sentinel2a sentinel2b l1c l2a msi sr toa boa sur surf "
        "surface refl reflectance band bands bnd dn raw harmonized harmonised 10m 20m 60m nm tif "
        "tiff central wavelength vegetation water mean median",
    )
)
# Layers that lie beside the bands of a product, and what is computed of bands.
_LAYERS = frozenset(
    re.split(
        r"\s+",
        "scl aot wvp tci tcir tcig tcib visual cld snw cldprb snwprb cldprob qa qa10 qa20 qa60 "
        "msk mask cloud clouds cloudmask cloudprobability fmask datamask valid shadow "
        "probability class classification angle incidence lia azimuth zenith quality alpha index "
        "ratio difference diff ndvi ndwi evi nbr std stddev stdev variance count error dem "
        "elevation slope",
    )
)
_NUMBERED = re.compile(r"(?:b|bnd|band)0*(1[0-2]|[1-9])(a?)")
_BARE = re.compile(r"0*(1[0-2]|[1-9])(a?)")
_COUNTED = re.compile(r"(.*?)0*(\d+)")
_RADAR_FILLERS = (
    r"(?:s1[ab]?|sentinel1?[ab]?|gamma|sigma|beta|naught|nought|[gs]?0|rtc|grd|iw|band|bands|db|"
    r"decibels?|linear|lin|power|pow|intensity|int|backscatter|coefficient|norm|lee|filtered|"
    r"terrain|flattened|mean|median|tiff?|asc|desc|ascending|descending)*"
)
_RADAR = re.compile(rf"{_RADAR_FILLERS}(vv|vh|hh|hv){_RADAR_FILLERS}")


@dataclass(frozen=True)
class BandMatch:
    """Which band of a file is which band of the model.

    Attributes:
        modality: whose bands.
        labels: of the file's bands, in its order.
        names: canonical names of the file's bands; None for what is no band.
        channels: positions in the model's order of the bands that the file has.
        take: for each of them its position in the file.
        source: where the names come from, for the reader of a result.
    """

    modality: str
    labels: tuple[str, ...]
    names: tuple[str | None, ...]
    channels: tuple[int, ...]
    take: tuple[int, ...]
    source: str

    @property
    def missing(self) -> tuple[str, ...]:
        """Bands of the model that the file does not have."""
        bands = MODALITIES[self.modality].bands
        return tuple(band for i, band in enumerate(bands) if i not in self.channels)

    @property
    def cirrus(self) -> int | None:
        """Position in the file of Level-1C's cirrus band."""
        return self.names.index(CIRRUS) if CIRRUS in self.names else None

    def describe(self) -> str:
        """Which band went where, in one line."""
        bands = MODALITIES[self.modality].bands
        went = " ".join(
            f"{bands[channel]}={at + 1}"
            for channel, at in zip(self.channels, self.take, strict=True)
        )
        dropped = [
            f"{name or label or 'unknown'}={at + 1}"
            for at, (name, label) in enumerate(zip(self.names, self.labels, strict=True))
            if at not in self.take
        ]
        parts = [f"model band = place in the file ({self.source}): {went}"]
        if dropped:
            parts.append(f"dropped {' '.join(dropped)}")
        if self.missing:
            parts.append(f"missing {' '.join(self.missing)}: {RULE}")
        return "; ".join(parts)


def canonical(label: str, modality: str) -> str | None:
    """The band that a label means: "B8A" for 8A, b8a, nir08 or "08A - Vegetation Red Edge".

    Args:
        label: as a file has it.
        modality: whose bands to look for.

    Returns:
        Its usual name, or None where it is no band of that sensor.
    """
    sensor = MODALITIES[modality]
    if sensor.radiometry == "stated":
        named = {_compact(band): band for band in sensor.bands}
        return named.get(_compact(label))
    if sensor.radiometry == "sentinel-1":
        found = _RADAR.fullmatch(re.sub(r"[^a-z0-9]", "", label.lower()))
        return found.group(1).upper() if found else None
    text = re.sub(r"infra[ _-]?red", "infrared", label.lower())
    for spelled, word in (
        (r"short[ _-]?wave[ _-]?infrared", "swir"), (r"near[ _-]?infrared", "nir"),
        (r"red[ _-]?edge[ _-]?", "rededge"), (r"ultra[ _-]?blue", "coastal"),
    ):  # fmt: skip
        text = re.sub(spelled, word, text)
    words = re.findall(r"[a-z0-9]+", text)
    if not words or _LAYERS & set(words):
        return None
    numbered = {_number(found) for word in words if (found := _NUMBERED.fullmatch(word))}
    rest = [word for word in words if word not in _FILLERS]
    if numbered:
        band = numbered.pop() if len(numbered) == 1 else None
    elif rest and (found := _BARE.fullmatch(rest[0])):
        known = all(word in _WORDS or word.isdigit() for word in rest[1:])
        band = _number(found) if known else None
    else:
        return _BY_COMMON.get("".join(rest))
    said = [_WORDS[word] for word in rest if word in _WORDS]
    return band if band and (not said or any(band in bands for bands in said)) else None


def match_bands(labels: Sequence[str], modality: str, source: str, where: str) -> BandMatch:
    """Matches the bands of a file to the model's by their labels.

    Args:
        labels: of the file's bands, in its order; "" or "-" for what is no band.
        modality: whose bands.
        source: where the labels come from.
        where: the file, for the message.

    Raises:
        PixelError: a label is not understood, a band occurs twice, or none is a band of the
            modality.
    """
    sensor = MODALITIES[modality]
    found = tuple(canonical(label, modality) for label in labels)
    unknown = [
        label
        for label, name in zip(labels, found, strict=True)
        if name is None and not _is_no_band(label, modality)
    ]
    if unknown:
        own = ", ".join(sensor.bands)
        raise PixelError(
            where,
            f"band {', '.join(unknown[:4])} is not understood as a band of {modality} (understood "
            f"are such as {UNDERSTOOD.get(sensor.radiometry, own)}): name it otherwise, or with "
            "--bands",
        )
    pairs = []
    for channel, band in enumerate(sensor.bands):
        at = [i for i, name in enumerate(found) if name == band]
        if len(at) > 1:
            raise PixelError(where, f"band {band} occurs {len(at)} times ({', '.join(labels)})")
        if at:
            pairs.append((channel, at[0]))
    if not pairs:
        raise PixelError(
            where,
            f"none of its bands ({', '.join(labels)}) is a band of {modality} "
            f"({' '.join(sensor.bands)})",
        )
    channels, take = zip(*pairs, strict=True)
    return BandMatch(modality, tuple(labels), found, channels, take, source)


def match_file(
    labels: Sequence[str],
    modality: str,
    where: str,
    levels: Callable[[], Sequence[float]],
    bands: Sequence[str] | None = None,
    *,
    otherwise: Sequence[str] | None = None,
) -> BandMatch:
    """Matches the bands of a file, labelled or not.

    Args:
        labels: of the file's bands, in its order; "" where it has none.
        modality: whose bands.
        where: the file, for the message.
        levels: gives the median of each band, digital numbers or reflectance; asked only where
            the order of unlabelled bands depends on it.
        bands: their names as the user gives them.
        otherwise: order of 13 bands without labels where the pixels do not tell it, as the layout
            of the archive states it.

    Raises:
        PixelError: it cannot be told which band is which.
    """
    count = len(labels)
    if bands is not None:
        return match_bands(bands, modality, "as named", where)
    radiometry = MODALITIES[modality].radiometry
    # SR_B1 to SR_B7 count as well, and are names where the sensor's entry has them.
    is_named = radiometry == "stated" and all(canonical(label, modality) for label in labels)
    if _only_count(labels) and not is_named:
        number = _compact(labels[0]).removeprefix("b")
        if number.isdigit() and count <= 12 and radiometry == "sentinel-2":
            raise PixelError(
                where,
                f"its bands are labelled {labels[0]} to {labels[-1]}, which may count them or "
                "number the sensor's: name them (B01, B8A, red), or with --bands",
            )
        labels = [""] * count
    if all(labels):
        return match_bands(labels, modality, "by the files' band names", where)
    order, source = usual_order(count, modality, where, levels, otherwise)
    named = [canonical(label, modality) if label else None for label in labels]
    if all(name in (None, band) for name, band in zip(named, order, strict=True)):
        return match_bands(order, modality, source, where)
    if set(MODALITIES[modality].bands) <= set(named):
        return match_bands(labels, modality, "by the files' band names", where)
    empty = ", ".join(str(at) for at, label in enumerate(labels, start=1) if not label)
    raise PixelError(where, f"band {empty} has no name, others do: name all, or with --bands")


def usual_order(
    count: int,
    modality: str,
    where: str,
    levels: Callable[[], Sequence[float]],
    otherwise: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], str]:
    """The stated order of bands without labels, and how it is told to a reader.

    B01 to B12 with B8A after B08, and B10 before B11 where there are 13; VV, VH.

    Args:
        count: bands.
        modality: whose.
        where: the file, for the message.
        levels: as in `match_file`.
        otherwise: as there.

    Raises:
        PixelError: no order is stated for so many bands, or the pixels do not tell which.
    """
    bands = MODALITIES[modality].bands
    if count == len(bands):
        return bands, "no names in the files: the usual order"
    if MODALITIES[modality].radiometry != "sentinel-2" or count != len(L1C_ORDER):
        # Level-2A has no cirrus band.
        also = " or 13" if modality == "s2_l1c" else ""
        raise PixelError(
            where,
            f"{count} bands, not {len(bands)}{also}, without names: say which with --bands, in "
            "the files' order, as B02,B03,B04,B08",
        )
    medians = levels()
    for order, source in (
        (L1C_ORDER, "no names in the files: the usual order, as the cirrus band shows"),
        (EUROSAT_ORDER, "no names in the files: EuroSAT's order, as the cirrus band shows"),
    ):
        if is_cirrus(medians, order.index(CIRRUS)):
            return order, source
    if otherwise is not None and modality == "s2_l1c":
        return tuple(otherwise), "no names in the files: the layout's order"
    raise PixelError(
        where,
        "13 bands without names, and neither the 10th nor the 11th is so dark as a cirrus band: "
        "say which with --bands",
    )


def check_named(bands: Sequence[str] | None, count: int, where: str) -> None:
    """Refuses names that the user gives for fewer or more bands than there are.

    Raises:
        PixelError: they are not as many.
    """
    if bands is not None and len(bands) != count:
        raise PixelError(where, f"it has {count} bands, {len(bands)} were named")


def modality_of(labels: Sequence[str], where: str) -> str:
    """The modality that labels of bands tell.

    Raises:
        PixelError: they tell none, or not Level-1C from Level-2A.
    """
    own = [name for name in MODALITIES if name not in SENTINEL and _are_all(labels, name)]
    # Names as Sentinel-2 itself writes them are no other sensor's.
    if len(own) == 1 and not set(labels) <= {*L1C_ORDER}:
        return own[0]
    if any(canonical(label, "s1") for label in labels):
        return "s1"
    if any(canonical(label, "s2_l1c") == CIRRUS for label in labels) or (
        len(labels) == len(L1C_ORDER) and (not any(labels) or _only_count(labels))
    ):
        return "s2_l1c"
    if not any(labels):
        raise PixelError(
            where,
            f"{len(labels)} bands without names: say which with --bands, or "
            "which sensor with --modality",
        )
    raise PixelError(
        where,
        f"its bands ({', '.join(labels)}) do not tell Sentinel-2 L1C from L2A: say which with "
        "--modality s2_l1c or s2_l2a",
    )


def _are_all(labels: Sequence[str], modality: str) -> bool:
    return {canonical(label, modality) for label in labels} == set(MODALITIES[modality].bands)


def _number(found: re.Match[str]) -> str | None:
    number, letter = int(found.group(1)), found.group(2)
    if letter:
        return "B8A" if number == 8 else None
    return f"B{number:02d}"


def _is_no_band(label: str, modality: str) -> bool:
    """A mask or another layer, a placeholder, or a band of the other sensor."""
    words = set(re.findall(r"[a-z0-9]+", label.lower()))
    if not words or words & _LAYERS:
        return True
    others = {"sentinel-1": "s2_l1c", "sentinel-2": "s1"}
    other = others.get(MODALITIES[modality].radiometry)
    return other is not None and canonical(label, other) is not None


def _compact(label: str) -> str:
    return re.sub(r"[^a-z0-9]", "", label.lower())


def _only_count(labels: Sequence[str]) -> bool:
    """Labels that are all alike, or run 1, 2, 3, ... behind one word: they name nothing."""
    texts = [label.strip().lower() for label in labels]
    if len(texts) > 1 and texts[0] and len(set(texts)) == 1:
        return True
    found = [_COUNTED.fullmatch(text) for text in texts]
    if not all(found):
        return False
    # B01 to B04 is how the sensor's bands are written, with the zero.
    if texts[0].startswith("b0"):
        return False
    before = {match.group(1) for match in found if match}
    numbers = [int(match.group(2)) for match in found if match]
    return len(before) == 1 and numbers == list(range(1, len(texts) + 1))


def is_cirrus(medians: Sequence[float], at: int) -> bool:
    """Whether a band is by far the darkest, once an offset that all bands may share is off."""
    others = sorted(level for i, level in enumerate(medians) if i != at)
    shared = 1000 if medians[at] >= 900 else 0.1 if 0.09 <= medians[at] < 1 else 0
    return medians[at] < others[0] and medians[at] - shared <= 0.6 * (others[0] - shared)
