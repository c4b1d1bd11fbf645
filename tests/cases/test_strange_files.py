"""The same place as strangers store it: read as the plain files are, or refused; never otherwise.

Every input goes through `ingest`, `embed` and `evaluate`. "plain" is what the usual file gives,
"holes" the same with its left part missing.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from rasterio.enums import ColorInterp

from terrafm.data.shards.dataset import Dataset
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.errors import TerraFMError, UsageError
from terrafm.eval.datasets.registry import OpenOptions, open_labelled
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

SIDE = 32
HOLE = 12
L2A = MODALITIES["s2_l2a"].bands
L1C = (*L2A[:10], "B10", *L2A[10:])
EUROSAT = (*L2A[:8], "B09", "B10", "B11", "B12", "B8A")
GROUND = (350, 420, 650, 600, 1000, 2100, 2500, 2700, 2800, 2850, 1900, 1100)
COMMON = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "swir16", "swir22",
)  # fmt: skip
COPERNICUS = (
    "01 - Coastal aerosol", "02 - Blue", "03 - Green", "04 - Red", "05 - Vegetation Red Edge",
    "06 - Vegetation Red Edge", "07 - Vegetation Red Edge", "08 - NIR",
    "08A - Vegetation Red Edge", "09 - Water vapour", "11 - SWIR", "12 - SWIR",
)  # fmt: skip
SOURCES = {"s1": "S1RTC", "s2_l1c": "S2L1C", "s2_l2a": "S2L2A"}


def texture(seed):
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.normal(size=(4, 4)), np.ones((8, 8)))
    return 0.15 * coarse + rng.normal(0, 0.03, (SIDE, SIDE))


def ground():
    """(12, 32, 32) digital numbers of Level-2A without the offset."""
    return np.stack([g * (1 + texture(i % 3)) for i, g in enumerate(GROUND)]).round().astype("u2")


def top():
    """(13, 32, 32) digital numbers of Level-1C, B10 before B11, without the offset."""
    cirrus = (15 + 3 * texture(5)).round().astype("u2")
    return np.insert(ground() + np.uint16(40), 10, cirrus, axis=0)


def decibels():
    """(2, 32, 32) backscatter, in whole hundredths of a dB."""
    return np.round(np.stack([-11 + 3 * texture(1), -17 + 3 * texture(2)]), 2)


def hole(pixels, value):
    pixels = pixels.copy()
    pixels[:, :, :HOLE] = value
    return pixels


@dataclass(frozen=True)
class Strange:
    """One input.

    Attributes:
        name: of the place and its file.
        pixels: (C, H, W) as stored.
        right: outcomes that are right: "plain", "holes", "refused".
        modality: of the file.
        options: of the writing: names, nodata, scales, offsets, mask, alpha, tags, gsd, crs, ...
    """

    name: str
    pixels: Any
    right: tuple[str, ...]
    modality: str = "s2_l2a"
    options: dict[str, Any] = field(default_factory=dict)


def l2a(name, right, pixels=None, **options):
    options.setdefault("names", L2A)
    right = tuple(right.split("|"))
    return Strange(name, ground() if pixels is None else pixels, right, options=options)


def l1c(name, right, pixels=None, **options):
    right = tuple(right.split("|"))
    return Strange(name, top() if pixels is None else pixels, right, "s2_l1c", options)


def s1(name, right, pixels, **options):
    options.setdefault("names", ("VV", "VH"))
    return Strange(name, pixels, tuple(right.split("|")), "s1", options)


def power():
    return (10 ** (decibels() / 10)).astype("f4")


def shuffled(names):
    order = np.random.default_rng(3).permutation(12)
    return {"pixels": ground()[order], "names": [names[i] for i in order]}


def in_order(pixels, bands, order):
    return pixels[[bands.index(band) for band in order]]


DN = ground()
REFLECTANCE = DN.astype("f8") / 10000
SIGNED = DN.astype("i2")
STRANGE = [
    # Names.
    l2a("lower_case", "plain", names=[b.lower() for b in L2A]),
    l2a("unpadded", "plain", names=[f"B{b[1:].lstrip('0')}" for b in L2A]),
    l2a("with_resolution", "plain", names=[f"{b}_10m" for b in L2A]),
    l2a("surface_reflectance", "plain", names=[f"{b}_sr" for b in L2A]),
    l2a("copernicus_titles", "plain", names=COPERNICUS),
    l2a("spaces_around", "plain", names=[f" {b} " for b in L2A]),
    l2a("backwards", "plain", DN[::-1], names=L2A[::-1]),
    l2a("common_names", "plain", names=COMMON),
    l2a("shuffled", "plain", **shuffled(L2A)),
    l2a("shuffled_common_names", "plain", **shuffled(COMMON)),
    l2a("upper_case_common_names", "plain", names=[n.upper() for n in COMMON]),
    l2a("unnamed", "plain", names=()),
    l2a("counted", "plain|refused", names=[str(i) for i in range(1, 13)]),
    l2a("counted_b", "plain|refused", names=[f"b{i}" for i in range(1, 13)]),
    l2a("counted_band", "plain|refused", names=[f"Band {i}" for i in range(1, 13)]),
    l2a("counted_from_0", "plain|refused", names=[f"band_{i}" for i in range(12)]),
    l2a("one_twice", "refused", names=("B02", *L2A[1:])),
    l2a("not_understood", "refused", names=[f"layer {c}" for c in "abcdefghijkl"]),
    l2a("other_letters", "refused", names=[f"полоса {i}" for i in range(12)]),
    l2a("counted_behind_a_word", "plain|refused", names=[f"SR_B{i}" for i in range(1, 13)]),
    l2a("wavelengths", "plain|refused", names=[f"{w} nm" for w in range(443, 2200, 147)]),
    l2a("some_named", "plain|refused", names=(*L2A[:3], *[""] * 9)),
    l2a("some_named_otherwise", "refused", names=("B04", "B03", "B02", *[""] * 9)),
    l2a(
        "scene_classes_too", "plain|refused",
        np.concatenate([DN, np.full((1, SIDE, SIDE), 4, "u2")]), names=(*L2A, "SCL"),
    ),
    # Units.
    l2a("signed", "plain", SIGNED),
    l2a("wide_integers", "plain", DN.astype("i4")),
    l2a("float_reflectance", "plain", REFLECTANCE.astype("f4")),
    l2a("double_reflectance", "plain", REFLECTANCE),
    l2a("float_numbers", "plain|refused", DN.astype("f4")),
    l2a("per_cent", "refused", (REFLECTANCE * 100).astype("f4")),
    l2a("picture", "refused", (DN // 20).clip(1, 255).astype("u1")),
    l2a("scaled", "plain", scales=[1e-4] * 12),
    l2a("scaled_with_offset", "plain", DN + np.uint16(1000), scales=[1e-4] * 12,
        offsets=[-0.1] * 12),
    l2a("scaled_by_one", "plain", scales=[1.0] * 12, offsets=[0.0] * 12),
    l2a("scaled_as_landsat", "plain", np.round((REFLECTANCE + 0.2) / 2.75e-5).astype("u2"),
        scales=[2.75e-5] * 12, offsets=[-0.2] * 12),
    l2a("scale_of_zero", "plain|refused", scales=[0.0] * 12),
    l2a("scale_of_nan", "plain|refused", scales=[float("nan")] * 12),
    l2a("scales_that_differ", "plain", np.stack([b * (1 + i % 2) for i, b in enumerate(DN)]),
        scales=[1e-4 / (1 + i % 2) for i in range(12)]),
    # What is missing.
    l2a("zeros", "holes", hole(DN, 0)),
    l2a("nodata_0", "holes", hole(DN, 0), nodata=0),
    l2a("nodata_65535", "holes", hole(DN, 65535), nodata=65535),
    l2a("nodata_9999", "holes", hole(SIGNED, -9999), nodata=-9999),
    l2a("untagged_9999", "holes", hole(SIGNED, -9999)),
    l2a("untagged_32768", "holes", hole(SIGNED, -32768)),
    l2a("two_fills", "holes", hole(hole(SIGNED, -32768), np.r_[[-9999] * 6, [0] * 6]), nodata=0),
    l2a("nan", "holes", hole(REFLECTANCE.astype("f4"), np.nan)),
    l2a("nan_tagged", "holes", hole(REFLECTANCE.astype("f4"), np.nan), nodata=float("nan")),
    l2a("infinite", "holes", hole(REFLECTANCE.astype("f4"), np.inf)),
    l2a("lowest_float", "holes", hole(REFLECTANCE.astype("f4"), np.finfo("f4").min)),
    l2a("lowest_float_tagged", "holes", hole(REFLECTANCE.astype("f4"), np.finfo("f4").min),
        nodata=float(np.finfo("f4").min)),
    l2a("untagged_9999_of_floats", "holes", hole(REFLECTANCE.astype("f4"), -9999)),
    l2a("masked", "holes", hole(DN, 12345), mask="internal"),
    l2a("masked_beside", "holes", hole(DN, 12345), mask="beside"),
    l2a("mask_of_nothing", "plain", mask="none"),
    l2a("alpha", "holes", hole(DN, 12345), mask="alpha"),
    l2a("alpha_unnamed", "holes", hole(DN, 12345), mask="alpha", names=()),
    l2a("scaled_holes", "holes", hole(DN + np.uint16(1000), 0), scales=[1e-4] * 12,
        offsets=[-0.1] * 12, nodata=0),
    # The offset of 1000.
    l2a("S2B_MSIL2A_20230101T100319_N0509_R122_T33UVP_20230101T120000", "plain",
        DN + np.uint16(1000)),
    l2a("S2A_MSIL2A_20180101T100319_N0206_R122_T33UVP_20180101T120000", "plain"),
    l2a("product_in_a_tag", "plain", DN + np.uint16(1000),
        tags={"product_id": "S2B_MSIL2A_20230101T100319_N0509_R122_T33UVP_20230101T120000"}),
    l2a("harmonised_though_new", "plain|refused",
        tags={"product_id": "S2B_MSIL2A_20230101T100319_N0400_R122_T33UVP_20230101T120000"}),
    # Level-1C.
    l1c("l1c_named", "plain", names=L1C),
    l1c("l1c_unnamed", "plain"),
    l1c("l1c_eurosat_unnamed", "plain", in_order(top(), L1C, EUROSAT)),
    l1c("l1c_eurosat_named", "plain", in_order(top(), L1C, EUROSAT), names=EUROSAT),
    l1c("l1c_without_cirrus", "plain|refused", np.delete(top(), 10, axis=0)),
    l1c("l1c_without_cirrus_named", "plain", np.delete(top(), 10, axis=0), names=L2A),
    l1c("l1c_with_offset", "plain", top() + np.uint16(1000), names=L1C),
    l1c("l1c_with_offset_unnamed", "plain", top() + np.uint16(1000)),
    l1c("l1c_common_names", "plain", names=(*COMMON[:10], "cirrus", *COMMON[10:])),
    # Radar.
    s1("s1_decibels", "plain", decibels().astype("f4")),
    s1("s1_double", "plain", decibels()),
    s1("s1_unnamed", "plain", decibels().astype("f4"), names=()),
    s1("s1_vh_first", "plain", decibels()[::-1].astype("f4"), names=("VH", "VV")),
    s1("s1_longer_names", "plain", decibels()[::-1].astype("f4"),
       names=("Gamma0_VH_db", "Gamma0_VV_db")),
    s1("s1_sigma_names", "plain", decibels().astype("f4"), names=("Sigma0_VV", "Sigma0_VH")),
    s1("s1_counted", "plain|refused", decibels().astype("f4"), names=("1", "2")),
    s1("s1_other_polarisations", "refused", decibels().astype("f4"), names=("HH", "HV")),
    s1("s1_power", "plain", power()),
    s1("s1_power_zeros", "holes", hole(power(), 0)),
    s1("s1_power_negative", "holes", hole(power(), -1e-4)),
    s1("s1_power_9999", "holes", hole(power(), -9999)),
    s1("s1_power_nan_tag_9999", "holes", hole(power(), -9999), nodata=float("nan")),
    s1("s1_power_32768", "holes", hole(power(), -32768)),
    s1("s1_zeros", "holes", hole(decibels().astype("f4"), 0)),
    s1("s1_infinite", "holes", hole(decibels().astype("f4"), -np.inf)),
    s1("s1_9999", "holes", hole(decibels().astype("f4"), -9999)),
    s1("s1_nodata_tag", "holes", hole(decibels().astype("f4"), -99), nodata=-99),
    s1("s1_masked", "holes", hole(decibels().astype("f4"), -3), mask="internal"),
    s1("s1_hundredths", "plain", np.round(100 * decibels()).astype("i2"), scales=[0.01] * 2),
    s1("s1_hundredths_holes", "holes", hole(np.round(100 * decibels()).astype("i2"), -32768),
       scales=[0.01] * 2, nodata=-32768),
    s1("s1_hundredths_untold", "plain|refused", np.round(100 * decibels()).astype("i2")),
    s1("s1_tenths_untold", "refused", np.round(10 * decibels()).astype("i2")),
    s1("s1_amplitudes", "refused", np.round(400 * np.sqrt(power())).astype("u2")),
    s1("s1_amplitudes_of_floats", "refused", (400 * np.sqrt(power())).astype("f4")),
    s1("s1_picture", "refused", (255 * power() / power().max()).clip(1, 255).astype("u1")),
]  # fmt: skip


def write(path, pixels, *, names=(), nodata=None, scales=None, offsets=None, mask=None, tags=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    valid = np.full((SIDE, SIDE), 255, "u1")
    if mask in ("internal", "beside", "alpha"):
        valid[:, :HOLE] = 0
    if mask == "alpha":
        opaque = np.where(valid, np.iinfo(pixels.dtype).max, 0).astype(pixels.dtype)
        pixels = np.concatenate([pixels, opaque[None]])
        names = (*names, "alpha") if names else ()
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mask != "beside"),
        rasterio.open(
            path, "w", driver="GTiff", count=len(pixels), height=SIDE, width=SIDE,
            dtype=pixels.dtype, nodata=nodata, crs="EPSG:32633",
            transform=rasterio.Affine(10, 0, 600000, 0, -10, 5200000),
        ) as file,
    ):  # fmt: skip
        if mask == "alpha":
            file.colorinterp = [ColorInterp.gray] * (len(pixels) - 1) + [ColorInterp.alpha]
        file.write(pixels)
        for number, name in enumerate(names, start=1):
            file.set_band_description(number, name)
        if scales:
            file.scales = scales
        if offsets:
            file.offsets = offsets
        if tags:
            file.update_tags(**tags)
        if mask and mask != "alpha":
            file.write_mask(valid)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Of a tiny encoder whose tokens differ from each other, as trained ones do."""
    uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    statistics = {
        name: {
            "mean": [-14.0 if name == "s1" else 0.2] * sensor.channels,
            "std": [3.0 if name == "s1" else 0.1] * sensor.channels,
        }
        for name, sensor in MODALITIES.items()
    }
    generator = torch.Generator().manual_seed(5)
    state = build_encoder("terrafm_tiny").state_dict()
    for tensor in state.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=generator)
    save_safetensors(uri, state, WeightsContract.build("terrafm_tiny", statistics, image_size=SIDE))
    return uri


REFERENCES = {
    "s2_l2a": ({"names": L2A}, DN, hole(DN, 0)),
    "s2_l1c": ({"names": L1C}, top(), hole(top(), 0)),
    "s1": (
        {"names": ("VV", "VH")},
        decibels().astype("f4"),
        hole(decibels().astype("f4"), np.nan),
    ),
}


def references():
    for modality, (options, plain, holes) in REFERENCES.items():
        for what, pixels in (("plain", plain), ("holes", holes)):
            yield Strange(f"reference_{modality}_{what}", pixels, (what,), modality, options)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A place for each input, with plain files of the other sensors."""
    root = tmp_path_factory.mktemp("archive")
    for case in (*STRANGE, *references()):
        for modality, folder in SOURCES.items():
            options, plain, _ = REFERENCES[modality]
            chosen = (case.pixels, case.options) if modality == case.modality else (plain, options)
            write(root / folder / f"{case.name}.tif", chosen[0], **chosen[1])
        cover = np.full((1, SIDE, SIDE), 40, "u1")
        write(root / "LULC" / f"{case.name}.tif", cover)
    return root


@pytest.fixture(scope="module")
def ingested(archive, tmp_path_factory):
    """The archive as a dataset, and the quarantine's reason by place and sensor."""
    from terrafm.cli import main

    output = tmp_path_factory.mktemp("tiles") / "out"
    with pytest.raises(SystemExit) as end:
        main(
            [
                *("ingest", "--source", "geotiff", "--input", str(archive), "--output"),
                *(str(output), "--tile-size", str(SIDE), "--set", "ingest.max_bad_fraction=1"),
                *("--set", "ingest.require_modalities=[]", "--set", "ingest.workers=1"),
            ]
        )
    assert end.value.code == 0
    faults = {}
    for line in (output / "quarantine.jsonl").read_text().splitlines():
        entry = json.loads(line)
        place = entry["what"].removesuffix("_0_0")
        faults[place, entry["modality"]] = entry["why"]
    return Dataset.open(str(output)), faults


def compared(found, plain, holes, alike):
    if alike(found, plain):
        return "plain"
    return "holes" if alike(found, holes) else "otherwise"


def through_ingest(case, ingested):
    dataset, faults = ingested
    if (case.name, case.modality) in faults:
        return "refused"

    def pixels(name):
        return dataset.read_tile(dataset.row_of(f"{name}_0_0"), (case.modality,))

    def alike(one, other):
        # What has other steps than ten-thousandths of reflectance may round otherwise.
        loose = 1 if case.name == "scaled_as_landsat" else 0
        return one.keys() == other.keys() and all(
            np.array_equal(one[k] == MODALITIES[case.modality].nodata,
                           other[k] == MODALITIES[case.modality].nodata)
            and np.abs(one[k].astype(int) - other[k].astype(int)).max() <= loose
            for k in one
        )  # fmt: skip

    try:
        found = pixels(case.name)
    except UsageError:
        return "lost"
    reference = f"reference_{case.modality}_"
    return compared(found, pixels(reference + "plain"), pixels(reference + "holes"), alike)


def through_embed(case, weights, folder):
    def vector(name, pixels, options):
        write(folder / name / f"{case.name}.tif", pixels, **options)
        asked = EmbedOptions(modalities=[case.modality], window=SIDE, workers=0)
        embed(weights, folder / name / f"{case.name}.tif", folder / f"{name}.out", asked)
        (row,) = pq.read_table(folder / f"{name}.out" / "tiles").to_pylist()
        return np.array(row["embedding"])

    def alike(one, other):
        return one @ other / np.linalg.norm(one) / np.linalg.norm(other) >= 0.9999

    try:
        found = vector("in", case.pixels, case.options)
    except TerraFMError as error:
        return "refused" if "\n" not in str(error) else "told in several lines"
    options, plain, holes = REFERENCES[case.modality]
    return compared(found, vector("plain", plain, options), vector("holes", holes, options), alike)


def through_evaluate(case, folder):
    def pixels(name, content, options):
        for label in ("x", "y"):
            write(folder / name / label / f"{case.name}.tif", content, **options)
        images = open_labelled(str(folder / name), OpenOptions(modality=case.modality))
        (grid,) = images.read(1, (case.modality,))[case.modality]
        return dict(zip(grid.channels, grid.pixels, strict=True))

    def alike(one, other):
        return one.keys() == other.keys() and all(
            np.allclose(one[k], other[k], rtol=0, atol=2e-5, equal_nan=True) for k in one
        )

    try:
        found = pixels("in", case.pixels, case.options)
    except TerraFMError as error:
        return "refused" if "\n" not in str(error) else "told in several lines"
    options, plain, holes = REFERENCES[case.modality]
    return compared(found, pixels("plain", plain, options), pixels("holes", holes, options), alike)


def test_there_are_enough_of_them():
    assert len(STRANGE) >= 80
    assert max(Counter(case.name for case in STRANGE).values()) == 1


@pytest.mark.parametrize("case", STRANGE, ids=lambda case: case.name)
def test_ingest(case, ingested):
    assert through_ingest(case, ingested) in case.right


@pytest.mark.parametrize("case", STRANGE, ids=lambda case: case.name)
def test_embed(case, weights, tmp_path):
    assert through_embed(case, weights, tmp_path) in case.right


@pytest.mark.parametrize("case", STRANGE, ids=lambda case: case.name)
def test_evaluate(case, tmp_path):
    assert through_evaluate(case, tmp_path) in case.right
