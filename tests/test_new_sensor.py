"""A sensor of another package, by its entry alone: named, ingested, trained, fused, exported.

What is known is decided when terrafm is imported: what needs it here is a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from landsat_archive import write_archive
from pages import code_block, code_blocks, run_pages_shell

ROOT = Path(__file__).resolve().parents[1]
PAGE = "docs/new_sensor.md"
INGEST = (
    "ingest", "--source", "geotiff", "--tile-size", "96", "--modalities", "s2_l2a,landsat,dem",
    "--set", "ingest.workers=0",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A folder with the page's module."""
    (tmp_path / "sensors.py").write_text(code_block(PAGE, "python sensors.py"))
    return tmp_path


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    root = tmp_path_factory.mktemp("landsat") / "archive"
    return root, write_archive(root)


def run(folder, *words, sensors="sensors:SENSORS", code=None):
    """`terrafm WORDS`, or some Python, where the sensors are named."""
    before = os.environ.get("PYTHONPATH", "")
    return subprocess.run(
        [sys.executable, *(("-m", "terrafm", *words) if code is None else ("-c", code))],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": f"{folder}:{ROOT}:{before}",
            "TERRAFM_MODALITIES": sensors,
        },
        capture_output=True,
        text=True,
        check=False,
    )


def printed(folder, code, **options):
    done = run(folder, code=code, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


KNOWN = """
import json
from terrafm.config import Config
from terrafm.modalities import FIRST_CHOICE, MODALITIES, SENSOR_TITLES
config = Config()
print(json.dumps([list(MODALITIES), list(FIRST_CHOICE), SENSOR_TITLES["landsat"],
                  config.data.modalities, config.ingest.require_modalities]))
"""


def test_what_is_named_is_known_and_changes_no_default(folder):
    known, first, title, trained, required = printed(folder, KNOWN)
    assert known == ["s1", "s2_l1c", "s2_l2a", "dem", "landsat"]
    assert first == ["s2_l2a", "s2_l1c", "s1", "dem", "landsat"]
    assert title == "Landsat 8/9"
    assert trained == required == ["s1", "s2_l1c", "s2_l2a"]
    # One order in every process, however they were named.
    again = printed(folder, KNOWN, sensors="sensors:LANDSAT,sensors:DEM")
    assert again[0] == known


def test_the_module_may_be_imported_before_terrafm(folder):
    code = "import json, sensors, terrafm.modalities as m; print(json.dumps(list(m.MODALITIES)))"
    assert "landsat" in printed(folder, code)


def test_an_installed_package_names_its_sensors_by_an_entry_point(folder):
    metadata = folder / "mysensors-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: mysensors\nVersion: 1.0\n")
    named = "[terrafm.modalities]\nlandsat = sensors:LANDSAT\n"
    (metadata / "entry_points.txt").write_text(named)
    code = "import json, terrafm.modalities as m; print(json.dumps(list(m.MODALITIES)))"
    assert printed(folder, code, sensors="") == ["s1", "s2_l1c", "s2_l2a", "landsat"]


ENTRY = 'Modality("x", ("a",), (30,), "uint16", 0, 1.0, "m"'


@pytest.mark.parametrize(
    ("module", "named", "why"),
    [
        ("", "nowhere:SENSORS", "No module named 'nowhere'"),
        ("", "mine:OTHER", "has no attribute 'OTHER'"),
        ("X = 3", "mine:X", "it is no terrafm.Modality"),
        ("", "mine", "write it as package.module:NAME"),
        ("raise RuntimeError('two\\nlines')", "mine:X", "two lines"),
        (f"X = {ENTRY.replace('uint16', 'float32')})", "mine:X", "dtype must be uint16 or int16"),
        (f"X = {ENTRY.replace('(30,)', '(30, 30)')})", "mine:X", "one for each band"),
        (f"X = {ENTRY}, picture=('b',))", "mine:X", "picture must be one or three of its bands"),
        (f"X = {ENTRY.replace('x', 's1')})", "mine:X", "there is another one named s1"),
        (f"X = {ENTRY}, radiometry='sentinel-2')", "mine:X", "leave it out"),
    ],
)
def test_an_entry_that_cannot_be_taken_is_one_line(tmp_path, module, named, why):
    (tmp_path / "mine.py").write_text(f"from terrafm import Modality\n{module}\n")
    done = run(tmp_path, "inspect", "tiles", sensors=named)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("terrafm: error: ")
    assert f"the sensor {named}, named in TERRAFM_MODALITIES" in line
    assert why in line


TILE = """
import sys, numpy as np
from terrafm.data.shards.dataset import Dataset
dataset = Dataset.open("tiles")
tile = dataset.read_tile(dataset.row_of("place1_0_0"))
np.savez("tile.npz", **tile)
"""


def test_its_pixels_are_stored_as_its_entry_says(folder, archive):
    root, truth = archive
    done = run(folder, *INGEST, "--input", str(root), "--output", "tiles")
    assert done.returncode == 0, done.stderr
    assert run(folder, code=TILE).returncode == 0
    tile = np.load(folder / "tile.npz")
    assert tile["s2_l2a_10m"].shape == (12, 96, 96)
    reflectance, height = (part[..., :32, :32] for part in truth["place1"])
    landsat, dem = tile["landsat_30m"], tile["dem_30m"][0]
    assert (landsat.dtype, dem.dtype) == (np.uint16, np.int16)
    np.testing.assert_array_equal(landsat == 0, np.isnan(reflectance))
    measured = landsat > 0
    # Half a step of the archive's numbers, and half a one of storage.
    away = np.abs(landsat[measured] * 1e-4 - reflectance[measured])
    assert away.max() < 6.4e-5
    np.testing.assert_array_equal(dem == -32768, height == -9999)
    # Sea level is a height.
    np.testing.assert_array_equal(dem[height != -9999], np.rint(height[height != -9999]))
    assert (dem == 0).sum() >= 8

    # Somebody else without the module, and the owner after a change of it.
    stranger = run(folder, "inspect", "tiles", sensors="")
    assert stranger.returncode == 2
    assert "of no modality that is known here: install the package" in stranger.stderr
    (folder / "sensors.py").write_text(
        (folder / "sensors.py").read_text().replace("scale=1.0", "scale=0.1")
    )
    changed = run(folder, "inspect", "tiles")
    assert changed.returncode == 2
    assert "the entry of the sensor dem has changed" in changed.stderr
    assert "scale was 1.0, now 0.1" in changed.stderr


def test_a_scale_that_cannot_be_is_a_fault_of_the_product(folder, archive):
    module = (folder / "sensors.py").read_text().replace("raw_scale=2.75e-5", "raw_scale=1.0")
    (folder / "sensors.py").write_text(module)
    done = run(folder, *INGEST, "--input", str(archive[0]), "--output", "tiles")
    assert done.returncode == 0, done.stderr
    faults = [json.loads(line) for line in (folder / "tiles/quarantine.jsonl").open()]
    assert {fault["modality"] for fault in faults} == {"landsat"}
    assert all("does the file lack a scale tag" in fault["why"] for fault in faults)
    assert not any(fault["quarantined"] for fault in faults)


def test_pixels_of_another_size_than_the_entry_says_are_refused(folder, archive):
    module = (folder / "sensors.py").read_text().replace("(30,) * 7", "(60,) * 7")
    (folder / "sensors.py").write_text(module)
    done = run(folder, *INGEST, "--input", str(archive[0]), "--output", "tiles")
    assert done.returncode == 2
    assert "landsat has 30 m and the others 10 m" in done.stderr


def test_a_source_that_knows_sentinel_only_says_so(folder):
    words = ("--input", "synthetic:cells=4", "--output", "tiles", "--modalities", "s1,landsat")
    done = run(folder, "ingest", "--source", "synthetic", *words)
    assert done.returncode == 2
    assert "reads s1, s2_l1c, s2_l2a: for landsat take --source geotiff" in done.stderr
    assert not (folder / "tiles").exists()


BANDS = """
import json
from terrafm.data.rasters.bands import match_file, modality_of
from terrafm.errors import PixelError
names = [f"SR_B{n}" for n in range(1, 8)]
def matched(labels, **options):
    try:
        found = match_file(labels, "landsat", "f.tif", list, **options)
        return [list(found.channels), list(found.take)]
    except PixelError as fault:
        return str(fault)
print(json.dumps([
    modality_of(names, "f.tif"), modality_of(["VV", "VH"], "f.tif"),
    matched(names), matched(["sr b3", "QA_PIXEL", "SR-B1"]), matched([""] * 7),
    matched(["Band 1", "Band 2", "Band 3", "Band 4", "Band 5", "Band 6", "Band 7"]),
    matched([""] * 6), matched(["SR_B1", "B10"]),
]))
"""


def test_its_bands_are_taken_by_their_names_or_in_their_order(folder):
    mine, radar, named, some, order, counted, few, other = printed(folder, BANDS)
    assert (mine, radar) == ("landsat", "s1")
    all_seven = [list(range(7)), list(range(7))]
    assert named == order == counted == all_seven
    assert some == [[0, 2], [2, 0]]
    assert "6 bands, not 7, without names" in few
    assert "band B10 is not understood as a band of landsat" in other
    assert "SR_B1, SR_B2" in other


DRAWN = """
import json, numpy as np
from terrafm.config import load_config
from terrafm.data.samples.crops import draw_views
def views(*modalities):
    config = load_config("demo").data
    n = 40
    return draw_views(config, modalities, seed=3, epochs=np.zeros(n, int), positions=np.arange(n),
                      available=np.ones((n, len(modalities)), bool), units=32)
one = views("s1", "s2_l2a")
found = [one.box.tolist(), one.student.tolist()]
try:
    more, most = views("s2_l2a", "landsat"), views("s2_l2a", "dem", "landsat")
    found += [more.student.mean((0, 1)).tolist(), more.teacher.mean((0, 1)).tolist(),
              bool((most.student[..., 2] == more.student[..., 1])[most.student.sum(-1) > 1].all()),
              bool((more.student[:, :2, 1] != more.teacher[..., 1]).any())]
except Exception as error:
    found.append(repr(error))
print(json.dumps(found))
"""


def test_what_a_seed_means_does_not_depend_on_what_is_installed(folder):
    without = printed(folder, DRAWN, sensors="")
    found = printed(folder, DRAWN)
    assert found[:2] == without[:2]
    # Each is kept with 0.5, and of two that are not kept one is drawn: 0.5 + 0.25 / 2.
    np.testing.assert_allclose(found[2:4], 0.625, atol=0.12)
    # Where it is kept does not depend on the other sensors; student and teacher differ.
    assert found[4:] == [True, True]


ENCODERS = """
import json, torch
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import load_state
names = lambda encoder: sorted(encoder.state_dict())
plain = build_encoder("terrafm_tiny")
mine = build_encoder("terrafm_tiny", modalities=("s1", "landsat"))
before = mine.state_dict()["patch_embed.conv2d_landsat.weight"].clone()
load_state(mine, plain.state_dict(), new_sensors=True)
after = mine.state_dict()
same = all(torch.equal(after[name], value) for name, value in plain.state_dict().items())
try:
    load_state(mine, plain.state_dict(), "old.safetensors")
    refused = ""
except Exception as error:
    refused = str(error)
one = mine(torch.zeros(2, 7, 32, 32), modality="landsat")
both = mine({"landsat": torch.zeros(2, 7, 32, 32), "s1": torch.zeros(2, 2, 32, 32)})
print(json.dumps([sorted(set(names(mine)) - set(names(plain))), same,
                  bool(torch.equal(before, after["patch_embed.conv2d_landsat.weight"])), refused,
                  list(one.shape), list(both.shape)]))
"""


def test_only_encoders_that_train_on_it_have_its_parameters(folder):
    own, same, fresh, refused, one, both = printed(folder, ENCODERS)
    assert own == [
        "patch_embed.conv2d_landsat.bias",
        "patch_embed.conv2d_landsat.weight",
        "patch_embed.landsat_embed",
    ]
    assert same
    assert fresh
    assert refused == "old.safetensors: parameter patch_embed.landsat_embed is missing"
    assert one == both == [2, 96]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_road_of_the_page(folder, archive):
    """Ingest, two steps with fusion, export, embedding: as a reader types it."""
    root, _ = archive
    script = "\n".join(code_blocks(PAGE, "bash"))
    said = run_pages_shell(script, folder, ARCHIVE=str(root))
    assert "16 tiles of 4 cells" in said
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(np.isfinite(line["loss"]) for line in lines)
    # The vectors of modalities begin at zero: those that were trained have moved.
    assert printed(folder, MOVED) == {"dem": True, "landsat": True, "s2_l2a": True, "s1": False}
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "embedded/tiles")
    assert table.num_rows == 16
    assert table["modalities"].to_pylist() == [["dem", "landsat"]] * 16
    assert all(time is not None for time in table["time_landsat"].to_pylist())
    vectors = np.stack(table["embedding"].to_numpy())
    assert np.isfinite(vectors).all()
    assert np.ptp(vectors, axis=0).max() > 0
    page = (folder / "page.html").read_text()
    assert "Landsat 8/9" in page
    assert "Height" in page

    weights = ("--weights", "weights", "--data", "tiles")
    for words in (
        ("search", "embedded", "--tile", "place0_0_0", "--output", "sheet.png"),
        ("tile", "tiles", "place0_0_0", "--output", "geotiffs"),
        ("evaluate", "retrieval", *weights, "--modality", "landsat", "--modality", "s2_l2a"),
        ("evaluate", "knn", *weights),
        ("export", "--checkpoint", "run", "--output", "hub", "--format", "hf"),
    ):
        given = ("run/checkpoints/step_00000002" if word == "run" else word for word in words)
        done = run(folder, *given)
        assert done.returncode == 0, (words, done.stderr)
    assert (folder / "geotiffs/place0_0_0_landsat_30m.tif").exists()
    checkpoint = ("--checkpoint", "run/checkpoints/step_00000002")
    done = run(folder, "export", *checkpoint, "--output", "w.pth", "--format", "released")
    assert done.returncode == 2
    assert "these know" in done.stderr
    assert "landsat" in done.stderr
    assert not (folder / "w.pth").exists()


MOVED = """
import json
from terrafm.train.checkpoints.store import load_encoder_state
student = load_encoder_state("run/checkpoints/step_00000002", "student")
names = ("dem", "landsat", "s2_l2a", "s1")
print(json.dumps({name: bool(student[f"patch_embed.{name}_embed"].any()) for name in names}))
"""


def test_workers_of_a_cluster_get_the_variable_once(monkeypatch):
    """Ray refuses a job whose driver gives a variable that the job has given already."""
    from terrafm.clusters.versions import JOB_VARIABLE
    from terrafm.jobs.submit import _sensors
    from terrafm.ray import runtime

    started = []
    monkeypatch.setattr(runtime, "_own_address", None)
    monkeypatch.setattr(runtime, "_init", lambda where, **_: started.append(where))
    for name in ("join", "leave_private"):
        monkeypatch.setattr(runtime, name, lambda *_: None)
    monkeypatch.setattr(runtime.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    monkeypatch.delenv(JOB_VARIABLE, raising=False)
    for given in ("", "sensors:SENSORS"):
        monkeypatch.setenv("TERRAFM_MODALITIES", given)
        runtime.ensure_ray()
    assert _sensors() == {"TERRAFM_MODALITIES": "sensors:SENSORS"}
    monkeypatch.setenv(JOB_VARIABLE, "ingest-1")
    runtime.ensure_ray()
    variables = {"env_vars": {"TERRAFM_MODALITIES": "sensors:SENSORS"}}
    assert [where.get("runtime_env") for where in started] == [None, variables, None]
