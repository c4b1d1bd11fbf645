"""Archives that were read wrongly once: places, listings, metadata, footprints, names."""

import json

import geopandas
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from terrafm.config import IngestConfig
from terrafm.data.ingest import job as ingest_module
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.bigearthnet import BigEarthNet
from terrafm.data.sources.major_tom import MajorTom
from terrafm.data.sources.ssl4eo_s12 import Ssl4eoS12
from terrafm.embed.job import embed
from terrafm.embed.request import EmbedOptions
from terrafm.errors import TerraFMError
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors
from terrafm.storage import join, write_bytes

ALL = tuple(MODALITIES)
L2A = EmbedOptions(modalities=["s2_l2a"], window=32, workers=0)


@pytest.fixture
def in_process(monkeypatch):
    """Ingest without Ray, which these cases do not need."""

    def run(job, works, workers, progress=None):
        for work in works:
            work.write(job)
        return [job.finished(work) for work in works]

    monkeypatch.setattr(ingest_module, "run_works", run)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(5)
    statistics = {
        name: {
            "mean": [-14.0 if name == "s1" else 0.15] * m.channels,
            "std": [3.0 if name == "s1" else 0.07] * m.channels,
        }
        for name, m in MODALITIES.items()
    }
    uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    contract = WeightsContract.build("terrafm_tiny", statistics)
    save_safetensors(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    return uri


@pytest.fixture
def take(in_process, cases, tmp_path):
    """Ingests the input of a case; returns the report, or what it is refused with, and faults."""

    def run(source, folder, tile_size, **options):
        options = {k: str(cases(v)) if k == "worldcover" else v for k, v in options.items()}
        out = tmp_path / "out"
        config = IngestConfig(workers=1, **options.pop("settings", {}))
        try:
            result = ingest(
                source, str(cases(folder)), str(out), tile_size=tile_size, config=config, **options
            )
        except TerraFMError as error:
            result = error
        faults = out / "quarantine.jsonl"
        lines = faults.read_text().splitlines() if faults.exists() else []
        return result, [json.loads(line, parse_constant=pytest.fail) for line in lines]

    return run


def test_10_a_place_with_radar_of_another_pixel_size(take):
    report, faults = take("geotiff", "archives/10/input", 32)
    assert Dataset.open(report.uri).tile_ids.tolist() == ["a_good_0_0"]
    assert [(f["what"], f["modality"], f["quarantined"]) for f in faults] == [("b_odd", "s1", True)]
    assert "16 x 16 px at 20 m, not 32 x 32 px at 10 m" in faults[0]["why"]


def test_10_radar_of_another_pixel_size_everywhere(take):
    error, _ = take("geotiff", "archives/10/input_alone", 32)
    assert error.exit_code == 2
    assert "S1RTC has 20 m and the others 10 m" in str(error)


def test_13_a_row_of_metadata_that_names_another_product(take, cases):
    error, faults = take("major-tom", "archives/13/input", 12, worldcover="archives/13/worldcover")
    assert "holds product S2B_MSIL2A_20230301T100031_N0510" in str(error)
    assert "metadata says S2A_MSIL2A_20190301T100031_N0209" in str(error)
    assert [fault["modality"] for fault in faults] == ["s2_l2a"]
    # Without it the other sensors of the cell are read.
    source = MajorTom(str(cases("archives/13/input")), ALL)
    (ref,) = source.cells()
    assert set(source.read(ref).products) == {"s1", "s2_l1c"}


def test_14_a_row_of_metadata_without_its_place(take):
    report, faults = take("major-tom", "archives/14/input", 12, worldcover="archives/14/worldcover")
    assert Dataset.open(report.uri).tile_ids.tolist() == ["100U_1R_0_0"]
    assert [(f["what"], f["modality"], f["quarantined"]) for f in faults] == [
        ("101U_1R", "s2_l2a", True)
    ]
    assert faults[0]["where"].endswith("Core-S2L2A/metadata.parquet")
    assert faults[0]["why"] == "row 1: parquet_row is missing"


def test_16_land_without_its_worldcover_tile(take):
    error, faults = take(
        "geotiff",
        "archives/16/input",
        32,
        worldcover="archives/16/worldcover",
        settings={"ocean_drop": 0.98},
    )
    assert "no WorldCover tile N45E015" in str(error)
    assert [(f["what"], f["quarantined"]) for f in faults] == [("place", True)]


def test_17_footprints_beyond_180_degrees(cases, weights, tmp_path):
    embed(weights, str(cases("archives/17/input")), str(tmp_path / "out"), L2A)
    frame = geopandas.read_parquet(tmp_path / "out/tiles/part-00000.parquet")
    outlines = dict(zip(frame.tile_id, frame.geometry, strict=True))
    across = outlines["a_across_r0_c0"]
    assert across.geom_type == "MultiPolygon"
    assert across.bounds == pytest.approx((-180, 10 - 32 * 9e-5, 180, 10))
    assert across.area == pytest.approx((32 * 9e-5) ** 2)
    inside = outlines["b_0_360_r0_c0"]
    assert inside.geom_type == "Polygon"
    assert inside.bounds[::2] == pytest.approx((-170, -170 + 32 * 9e-5))


@pytest.mark.parametrize("name", ["plain", "Müller", "Częstochowa", "Москва", "äö-日本", "a#b%20?"])
def test_18_names_outside_ascii_in_a_store(cases, weights, s3_bucket, tmp_path, name):
    scene = (cases("archives/18") / "input/scene.tif").read_bytes()
    uri = join(s3_bucket, f"folder {name}", f"{name}.tif")
    write_bytes(uri, scene)
    embed(weights, uri.rpartition("/")[0], str(tmp_path / "out"), L2A)
    (row,) = pq.read_table(tmp_path / "out/tiles").to_pylist()
    assert row["tile_id"] == f"{name}_r0_c0"
    assert row["source"] == uri


def test_19_a_place_twice(take):
    error, faults = take("geotiff", "archives/19/input", 32)
    assert "place.TIF" in str(error)
    assert "place.tif" in str(error)
    assert [(f["what"], f["modality"], f["quarantined"]) for f in faults] == [
        ("place", "s2_l2a", True)
    ]


def test_20_bigearthnet_version_2(take, cases):
    report, faults = take(
        "bigearthnet", "archives/20/input", 120, worldcover="archives/13/worldcover"
    )
    assert not faults
    dataset = Dataset.open(report.uri)
    patch = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57"
    assert dataset.tile_ids.tolist() == [f"{patch}_0_0"]
    products = dataset.tile(0)["products"]
    assert products["s2_l2a"]["time"] == "2017-06-13T10:10:31"
    assert products["s2_l2a"]["offset"] == 0
    assert products["s1"]["product_id"] == "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_26_57"
    (ref,) = BigEarthNet(str(cases("archives/20/input")), ALL).cells()
    assert set(ref.modalities) == {"s1", "s2_l2a"}


def test_21_what_file_managers_leave(take, cases):
    source = Ssl4eoS12(str(cases("archives/21/input")), ALL)
    assert [ref.cell_id for ref in source.cells()] == [
        "0000200_20210101T101031_20210101T101029_T33UXP"
    ]
    report, faults = take(
        "ssl4eo-s12",
        "archives/21/input",
        60,
        worldcover="archives/13/worldcover",
        settings={"ocean_drop": 0.0},
    )
    assert (report.tiles, faults) == (1, [])


def test_23_a_place_in_ground_control_points(cases, weights, refused, tmp_path):
    line = refused(
        "embed", "--weights", weights, "--data", cases("archives/23/input"),
        "--output", tmp_path / "out", "--modality", "s1", "--window", "32", "--workers", "0",
        "--bands", "VV,VH",
    )  # fmt: skip
    assert "only ground control points" in line
    assert "gdalwarp -tps" in line
    assert "gdal_edit" not in line


@pytest.mark.parametrize(
    ("column", "value", "why"),
    [
        ("parquet_url", None, "parquet_url is missing"),
        ("grid_cell", None, "grid_cell is missing"),
        ("cloud_cover", "unknown", "cloud_cover is 'unknown', not a number"),
        ("product_id", None, "product_id is missing"),
    ],
)
def test_14_other_entries(cases, tmp_path, column, value, why):
    folder = cases("archives/14/input")
    copy = tmp_path / "input"
    for path in sorted(folder.rglob("*.parquet")):
        target = copy / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    rows = pq.read_table(copy / "Core-S2L2A/metadata.parquet").to_pylist()
    for row, number in zip(rows, (0, 1), strict=True):
        row["parquet_row"] = number
        row["cloud_cover"] = str(row["cloud_cover"])
    rows[1][column] = value
    pq.write_table(pa.Table.from_pylist(rows), copy / "Core-S2L2A/metadata.parquet")
    source = MajorTom(str(copy), ALL)
    refs = {ref.cell_id: ref for ref in source.cells()}
    assert set(source.read(refs["100U_1R"]).products) == set(ALL)
    assert refs["100U_1R"].listed["s2_l2a"].cloud_cover == 1.0
    odd = refs["101U_1R" if column != "grid_cell" else "s2_l2a row 1"]
    assert "s2_l2a" not in odd.modalities
    assert [(m, fault.why) for m, fault in odd.faults] == [("s2_l2a", f"row 1: {why}")]
    np.testing.assert_equal(len(refs), 3 if column == "grid_cell" else 2)
