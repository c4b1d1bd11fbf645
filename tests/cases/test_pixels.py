"""Archives that failed once: names, units, masks, fill and offsets, each as its README wants it."""

from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from terrafm.config import IngestConfig, load_config
from terrafm.data.ingest.cutter import Cutter, make_groups
from terrafm.data.ingest.job import ingest
from terrafm.data.ingest.tally import Tally
from terrafm.data.inspect import inspect
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.offsets import survey_archive
from terrafm.data.sources.registry import open_source
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors

# The made-up place of all cases, digital numbers or hundredths of a dB; medians.
LEVELS = {
    "s1_10m": [-1100, -1700],
    "s2_l2a_10m": [350, 420, 650, 600, 1000, 2100, 2500, 2700, 2800, 2850, 1900, 1100],
    "s2_l1c_10m": [1250, 1040, 980, 800, 1150, 2180, 2550, 2740, 2830, 950, 1920, 1110],
}


@pytest.fixture
def cut(cases):
    """Reads an archive as ingest does, without Ray: (tile id -> record, tally)."""

    def tiles(name, modalities=tuple(MODALITIES)):
        source = open_source("geotiff", str(cases(name)), modalities, "")
        layout, refs = source.layout(), source.cells()
        cutter = Cutter(
            tile_size=32,
            gsd=layout.gsd,
            cell_shape=layout.shape,
            groups=make_groups(layout.band_gsd, layout.gsd, 32),
            required=modalities,
            max_nodata=0.5,
            ocean_drop=0.0,
            seed=0,
            worldcover=None,
        )
        cutter, tally = replace(cutter, survey=survey_archive(source, refs)), Tally()
        records = [record for ref in refs for record in cutter.tiles(source, ref, tally)]
        return {record.tile_id.removesuffix("_0_0"): record for record in records}, tally

    return tiles


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Any weights that know the sensors."""
    torch.manual_seed(0)
    uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    statistics = {
        name: {"mean": [mean] * MODALITIES[name].channels, "std": [std] * MODALITIES[name].channels}
        for name, mean, std in (("s1", -14.0, 3.0), ("s2_l1c", 0.17, 0.1), ("s2_l2a", 0.15, 0.1))
    }
    contract = WeightsContract.build("terrafm_tiny", statistics, image_size=32)
    state = build_encoder("terrafm_tiny").state_dict()
    for tensor in state.values():
        tensor += 0.05 * torch.randn(tensor.shape)
    save_safetensors(uri, state, contract)
    return uri


@pytest.fixture
def vector(cases, weights, tmp_path):
    """The embedding of a case's one scene, (D,)."""

    def of(name, modality="s2_l2a"):
        output = tmp_path / name.replace("/", "_")
        options = EmbedOptions(modalities=[modality], window=32, workers=0)
        embed(weights, cases(name), output, options)
        (row,) = pq.read_table(output / "tiles").to_pylist()
        return np.array(row["embedding"])

    return of


@pytest.fixture
def refusal(cases, weights, refused, tmp_path):
    """The line that `terrafm embed` ends with."""

    def of(name, modality="s2_l2a"):
        return refused(
            "embed", "--weights", weights, "--data", cases(name), "--output", tmp_path / "out",
            "--modality", modality, "--window", "32", "--workers", "0",
        )  # fmt: skip

    return of


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def medians(record, group):
    bands = record.arrays[group].astype(float)
    bands[bands == MODALITIES[group.rpartition("_")[0]].nodata] = np.nan
    return np.nanmedian(bands, axis=(1, 2))


def assert_is_the_place(record, groups=tuple(LEVELS)):
    for group in groups:
        tolerance = 12 if group == "s1_10m" else 60
        np.testing.assert_allclose(medians(record, group), LEVELS[group], atol=tolerance)


def test_01_reflectance_as_floats_is_multiplied(cut):
    records, tally = cut("archives/01/input")
    assert set(records) == {"a_bright", "b_dark"}
    assert not tally.quarantine
    assert_is_the_place(records["b_dark"])
    bright = records["a_bright"].arrays["s2_l2a_10m"]
    assert 5490 < bright.min() < bright.max() < 9510


def test_02_zero_power_is_missing(cut):
    records, tally = cut("archives/02/input")
    radar = records["place"].arrays["s1_10m"]
    assert np.mean(radar == -32768) == pytest.approx(0.375)
    assert radar[radar != -32768].min() > -2500
    assert tally.statistics(["s1"])["s1"]["mean"] == pytest.approx([-11, -17], abs=1)


def test_03_masked_pixels_are_missing_in_ingest(cut):
    records, _ = cut("archives/03/input")
    for group in ("s2_l1c_10m", "s2_l2a_10m"):
        pixels = records["place"].arrays[group]
        assert (pixels[:, :, :16] == 0).all()
        assert (pixels[:, :, 16:] != 0).all()


def test_03_a_mask_and_an_alpha_band_are_as_zeros_in_embed(vector):
    zeros = vector("archives/03/input_zero")
    assert cosine(vector("archives/03/input_mask"), zeros) > 0.9999
    assert cosine(vector("archives/03/input_alpha"), zeros) > 0.9999


def test_04_bands_are_known_by_any_usual_name(cut):
    records, tally = cut("archives/04/input")
    assert set(records) == {"b_gee", "c_radar", "d_common"}
    assert not tally.quarantine
    for record in records.values():
        assert_is_the_place(record)


def test_05_thirteen_bands_without_names_lie_as_the_cirrus_band_shows(vector):
    found = vector("archives/05/input", "s2_l1c")
    assert cosine(found, vector("archives/05/input_named", "s2_l1c")) > 0.9999


def test_06_fill_values_are_missing_without_a_tag(vector, cut):
    tagged = vector("archives/06/input_tagged")
    assert cosine(vector("archives/06/input"), tagged) > 0.9999
    assert cosine(vector("archives/06/input_32768"), tagged) > 0.9999
    radar = cut("archives/06/input_archive")[0]["place"].arrays["s1_10m"]
    assert np.mean(radar == -32768) == pytest.approx(0.375)


def test_07_nodata_of_land_cover_never_votes(cut):
    records, tally = cut("archives/07/input")
    assert {name: record.land_cover for name, record in records.items()} == {"a_255": 40, "b_0": 40}
    assert all(set(record.histogram) == {40} for record in records.values())
    assert tally.codes == {40}


def test_08_pictures_are_no_reflectance(cut):
    records, tally = cut("archives/08/input")
    assert not records
    assert tally.counts["tiles_quarantined"] == 1
    assert all("8-bit pixels look like a picture" in fault["why"] for fault in tally.quarantine)


def test_09_amplitudes_are_no_backscatter(cut):
    records, tally = cut("archives/09/input")
    assert not records
    (fault,) = tally.quarantine
    assert fault["modality"] == "s1"
    assert fault["where"].endswith("S1RTC/place.tif")
    assert "+22 dB" in fault["why"]
    assert "uncalibrated amplitudes" in fault["why"]


def test_11_the_baseline_in_a_files_name_counts(cut):
    records, _ = cut("archives/11/input", ("s1", "s2_l2a"))
    decided = {
        name.split("_")[3]: (tile.products["s2_l2a"]["offset"], medians(tile, "s2_l2a_10m").max())
        for name, tile in records.items()
    }
    assert decided == {"N0208": (0, pytest.approx(2211, abs=30)), "N0509": (1000, 1)}


def test_12_pixels_outweigh_a_name_that_they_contradict(cut):
    records, tally = cut("archives/12/input")
    assert_is_the_place(records["place"])
    ((_, unit, offset, reason),) = [key for key in tally.decisions if key[0] == "s2_l2a"]
    assert (unit, offset) == ("DN", 0)
    assert reason.endswith("against baseline N0400")


def test_15_scale_and_offset_tags_are_applied(vector, cut):
    assert np.isfinite(vector("archives/15/input", "s1")).all()
    plain = vector("archives/15/input_s2_plain")
    assert cosine(vector("archives/15/input_s2"), plain) > 0.9999
    assert_is_the_place(cut("archives/15/input_archive")[0]["place"])


@pytest.mark.parametrize("name", ["input", "input_b4"])
def test_22_labels_that_count_are_no_names(refusal, vector, name):
    line = refusal(f"archives/22/{name}")
    assert "may count them or number the sensor's" in line
    assert "--bands" in line


@pytest.mark.slow
def test_commands_tell_what_was_decided(cases, tmp_path):
    """The same by real ingests: what `terrafm inspect` counts, and shards of equal pixels."""
    for name in ("archives/04/input", "archives/12/input", "archives/15/input_archive"):
        ingest(
            "geotiff",
            str(cases(name)),
            str(tmp_path / name),
            tile_size=32,
            config=IngestConfig(workers=1),
        )
    decisions = inspect(str(tmp_path / "archives/12/input"), load_config())["decisions"]
    assert "against baseline N0400" in decisions["s2_l2a"][0]["reason"]
    first = Dataset.open(str(tmp_path / "archives/04/input")).read_tile(0)
    for name in ("archives/12/input", "archives/15/input_archive"):
        other = Dataset.open(str(tmp_path / name)).read_tile(0)
        for group, pixels in first.items():
            assert np.abs(other[group].astype(int) - pixels).max() <= 1
