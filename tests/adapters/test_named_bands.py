"""Which channel of a set becomes which band of the model, in which unit."""

import subprocess
import sys

import pytest
import torch
from band_specs import EUROSAT, optical, radar

from terrafm.adapters.named_bands import NamedBands, Unit, whole_patches
from terrafm.errors import UsageError
from terrafm.export import export_weights
from terrafm.modalities import MODALITIES

L2A = [name.lower() for name in MODALITIES["s2_l2a"].bands]


def test_eurosats_order_and_digital_numbers(contract):
    named = NamedBands(EUROSAT, contract)
    assert list(named.channels) == ["s2_l1c"]  # It has the cirrus band.
    channels = named.channels["s2_l1c"]
    bands = MODALITIES["s2_l1c"].bands
    assert {bands[c.band]: c.at for c in channels} == {
        "B01": 0, "B02": 1, "B03": 2, "B04": 3, "B05": 4, "B06": 5, "B07": 6, "B08": 7, "B09": 8,
        "B11": 10, "B12": 11, "B8A": 12,
    }  # fmt: skip
    assert {c.unit for c in channels} == {Unit.DIGITAL_NUMBER}
    raw = torch.randint(1, 9000, (2, 13, 16, 16)).float()
    expected = contract.normalise(raw[:, [*range(8), 12, 8, 10, 11]] * 1e-4, "s2_l1c")
    normalised = named.normalised(raw)
    torch.testing.assert_close(named.arranged(normalised)["s2_l1c"], expected)
    assert (normalised[:, 9] == 0).all()


def test_reflectance_stays_and_bands_that_the_set_lacks_are_zero(contract):
    named = NamedBands([optical("b04", 0.1, 2.8), optical("b02", 0.1, 2.8)], contract)
    assert list(named.channels) == ["s2_l2a"]
    image = torch.full((1, 2, 16, 16), 0.3)
    pixels = named.arranged(named.normalised(image))["s2_l2a"]
    wanted = contract.normalise(torch.full((1, 12, 16, 16), 0.3), "s2_l2a")
    for band in range(12):
        torch.testing.assert_close(
            pixels[:, band], wanted[:, band] if band in (1, 3) else torch.zeros(1, 16, 16)
        )
    assert "without B01 B03" in named.describe()


def test_the_user_says_that_colours_are_level_1c(contract):
    colours = [optical(name) for name in ("red", "green", "blue")]
    assert list(NamedBands(colours, contract).channels) == ["s2_l2a"]
    assert list(NamedBands(colours, contract, ["s2_l1c"]).channels) == ["s2_l1c"]


def test_radar_beside_optical_in_db_and_in_power(contract):
    db = NamedBands([*map(optical, L2A), radar("vv", -12.0), radar("vh", -19.0)], contract)
    assert list(db.channels) == ["s1", "s2_l2a"]
    power = NamedBands([radar("vv", 0.13, 0.0, 2550.0), radar("vh", 0.03, 0.0, 530.0)], contract)
    raw = torch.rand(1, 2, 16, 16)
    raw[0, 0, 0, 0] = 0
    pixels = power.arranged(power.normalised(raw))["s1"]
    wanted = contract.normalise(10 * raw.log10(), "s1")
    torch.testing.assert_close(pixels, wanted)
    assert pixels[0, 0, 0, 0] == 0


def test_exchanged_names_of_radar_are_told_by_what_they_measure(contract, caplog):
    # The statistics of GEO-Bench-2's benv2.
    named = NamedBands([radar("vv", -19.361), radar("vh", -12.6317)], contract)
    assert [(c.band, c.at) for c in named.channels["s1"]] == [(0, 1), (1, 0)]
    assert "exchanged" in caplog.text
    right = NamedBands([radar("vv", -12.6317), radar("vh", -19.361)], contract)
    assert [(c.band, c.at) for c in right.channels["s1"]] == [(0, 0), (1, 1)]


def test_decibels_stored_as_unsigned_numbers_are_not_taken_for_power(contract, caplog):
    # The statistics of GEO-Bench-2's treesatai in torchgeo-bench.
    wrapped = [radar("vv", 60197.8, 0, 65535), radar("vh", 65496.9, 0, 65535)]
    assert list(NamedBands([*wrapped, *map(optical, L2A)], contract).channels) == ["s2_l2a"]
    assert "no backscatter" in caplog.text


def test_complex_numbers_are_no_backscatter(contract, caplog):
    # As GEO-Bench-2's so2sat names them.
    complex_parts = [radar("vv", 0.0, -107.6, 45.3), radar("vh", 0.0, -107.6, 108.2)]
    named = NamedBands([*complex_parts, *map(optical, L2A)], contract)
    assert list(named.channels) == ["s2_l2a"]
    assert "no backscatter" in caplog.text
    with pytest.raises(UsageError, match="none of the set's bands"):
        NamedBands(complex_parts, contract)


def test_a_bright_cirrus_band_bears_a_wrong_name(contract, caplog):
    # The statistics of GEO-Bench-2's dynamic_earthnet.
    means = {
        "b01": 1092, "b02": 1319, "b03": 1380, "b04": 2679, "b05": 1731, "b06": 2373,
        "b07": 2630, "b08": 2783, "b8a": 2307, "b10": 1720, "b11": 1004, "b12": 3031,
    }  # fmt: skip
    named = NamedBands([optical(name, mean) for name, mean in means.items()], contract)
    assert list(named.channels) == ["s2_l2a"]
    bands = MODALITIES["s2_l2a"].bands
    spectrum = [list(means.values())[c.at] for c in named.channels["s2_l2a"]]
    assert spectrum[:10] == sorted(spectrum[:10])
    assert bands[named.channels["s2_l2a"][0].band] == "B01"
    assert "bands are taken as B02 B03 B04 B08" in caplog.text
    some = [optical(name, means[name]) for name in ("b02", "b10")]
    with pytest.raises(UsageError, match="bear wrong names"):
        NamedBands(some, contract)
    dark = [optical(name, 12 if name == "b10" else 1000) for name in means]
    assert list(NamedBands(dark, contract).channels) == ["s2_l1c"]


def test_m_eurosats_shifted_names(contract, caplog):
    # The statistics of GEO-Bench's m-eurosat in torchgeo-bench, by the names it gives.
    means = {
        "01": 1355, "02": 1118, "03": 1042, "04": 947, "05": 1199, "06": 2000, "07": 2369,
        "08": 2296, "08a": 732, "09": 12, "10": 1820, "11": 1119, "12": 2594,
    }  # fmt: skip
    named = NamedBands([optical(f"b{name}", mean) for name, mean in means.items()], contract)
    bands = MODALITIES["s2_l1c"].bands
    assert {bands[c.band]: c.at for c in named.channels["s2_l1c"]} == {
        "B01": 0, "B02": 1, "B03": 2, "B04": 3, "B05": 4, "B06": 5, "B07": 6, "B08": 7, "B09": 8,
        "B11": 10, "B12": 11, "B8A": 12,
    }  # fmt: skip
    assert "cirrus band is bright" in caplog.text


def test_of_two_passes_one_is_taken(contract, caplog):
    passes = [
        radar(f"{name}_{side}", mean, sensor=f"s1_{side}")
        for side in ("asc", "desc")
        for name, mean in (("vv", -12.0), ("vh", -18.0), ("vv_vh", 6.0))
    ]
    named = NamedBands(passes, contract)
    assert [(c.band, c.at) for c in named.channels["s1"]] == [(0, 0), (1, 1)]
    assert "only s1_asc" in caplog.text


@pytest.mark.parametrize(
    ("bands", "modalities", "message"),
    [
        ([optical("red", 100.0, 255.0)], None, "neither digital numbers nor reflectance"),
        ([optical("red", sensor="aerial")], None, "none of the set's bands"),
        ([optical("red", sensor="landsat")], None, "none of the set's bands"),
        ([optical("red")], ["s3"], "trained on s1, s2_l1c, s2_l2a"),
        ([optical("red")], ["s1"], "none of the set's bands"),
    ],
)
def test_what_cannot_be_taken_is_one_line(contract, bands, modalities, message):
    with pytest.raises(UsageError, match=message) as error:
        NamedBands(bands, contract, modalities)
    assert "\n" not in str(error.value)


def test_images_become_whole_patches():
    images = {"s1": torch.rand(1, 2, 120, 64)}
    assert whole_patches(images, 16, None)["s1"].shape == (1, 2, 128, 64)
    assert whole_patches(images, 16, 32)["s1"].shape == (1, 2, 32, 32)
    kept = {"s1": torch.rand(1, 2, 48, 64)}
    assert whole_patches(kept, 16, None)["s1"] is kept["s1"]


# Of what the project installs, and a benchmark's environment need not have.
ABSENT = (
    "ray", "deepspeed", "rasterio", "s3fs", "obstore", "typer", "rich", "matplotlib",
    "blosc2", "cv2", "pandas", "sklearn", "optuna", "tensorboard", "huggingface_hub",
    "timm", "yaml",
)  # fmt: skip


def test_adapters_need_what_the_page_says_and_no_more(tmp_path, encoder, contract):
    written = export_weights(encoder.state_dict(), contract, str(tmp_path), "safetensors")
    lines = (
        f"import sys\nfor name in {ABSENT}: sys.modules[name] = None\n"
        "import terrafm.adapters.named_bands\n"
        "from terrafm.adapters.loading import load_described\n"
        "from terrafm.eval.features.readouts import Readout\n"
        "encoder, contract = load_described(sys.argv[1], 64)\n"
        "print(Readout.CLS.width(encoder), contract.model)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", lines, written[0]], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["96", "terrafm_tiny"]
