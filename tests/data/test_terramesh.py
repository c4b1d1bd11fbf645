"""TerraMesh and SSL4EO-S12 v1.1 give the pixels of their samples, out of the shards."""

import json
import pickle

import numpy as np
import pytest
import zarr_shards
from zarr_shards import CORNER, L1C, L2A, packed, pixels, sample, write_archive, write_shard

from terrafm.config import IngestConfig
from terrafm.data.archive import BadCellError
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.terramesh import TerraMesh
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES
from terrafm.storage import upload

ALL = tuple(MODALITIES)


def test_samples_of_all_folders_are_one_cell(tmp_path):
    written = write_archive(tmp_path)
    source = TerraMesh(str(tmp_path), ALL)
    refs = source.cells()
    assert [ref.cell_id for ref in refs] == [f"majortom_val_{n:07d}" for n in range(3)]
    layout = source.layout()
    assert (layout.gsd, layout.shape, layout.land_cover) == (10, (24, 24), True)
    assert layout.band_gsd["s2_l2a"] == (10,) * 12
    cell = pickle.loads(pickle.dumps(source)).read(refs[1])
    assert (cell.crs, cell.transform[2], cell.transform[5]) == ("EPSG:32633", CORNER[0] + 240,
                                                                CORNER[1])  # fmt: skip
    for modality, folder, bands in (("s2_l2a", "S2L2A", L2A), ("s2_l1c", "S2L1C", L1C)):
        product = cell.products[modality]
        for number, band in enumerate(bands):
            read = product.cirrus if band == "B10" else product.bands[band]
            np.testing.assert_array_equal(read, written[folder, 1][0, number])
    np.testing.assert_array_equal(cell.products["s1"].bands["VH"], written["S1RTC", 1][0, 1])
    np.testing.assert_array_equal(cell.land_cover, written["LULC", 1][0, 0])
    assert cell.products["s2_l2a"].time == "2022-07-06T08:56:11+00:00"
    assert cell.products["s1"].origin == {"file": "S1RTC_FILE_0"}
    assert cell.products["s2_l2a"].cloud_cover == 0.0


def test_the_cloud_mask_becomes_the_cloud_of_the_product(tmp_path):
    mask = np.zeros((24, 24), np.uint8)
    mask[:6], mask[6:12], mask[12:18] = 3, 4, 6
    content = sample("S2L2A", pixels("S2L2A"), clouds=mask)
    write_shard(tmp_path / "S2L2A/majortom_shard_000001.tar", {"majortom_val_0000001": content})
    source = TerraMesh(str(tmp_path), ALL)
    product = source.read(source.cells()[0]).products["s2_l2a"]
    # Half of the pixels are cloud, a quarter is not known.
    assert product.cloud_cover == pytest.approx(100 * 12 / 18, abs=0.01)


def test_both_splits_and_both_kinds_of_radar_are_read(tmp_path):
    write_archive(tmp_path / "train", 2, name="majortom_train_{:07d}")
    write_archive(tmp_path / "val", 1, shard="ssl4eos12_shard_000009.tar",
                  folders=("S1GRD", "S2L2A"), name="ssl4eos12_val_{:07d}")  # fmt: skip
    source = TerraMesh(str(tmp_path), ALL)
    refs = source.cells()
    assert [(ref.cell_id, ref.modalities) for ref in refs] == [
        ("majortom_train_0000000", ("s2_l2a", "s2_l1c", "s1")),
        ("majortom_train_0000001", ("s2_l2a", "s2_l1c", "s1")),
        ("ssl4eos12_val_0000000", ("s2_l2a", "s1")),
    ]
    assert set(source.read(refs[2]).products) == {"s2_l2a", "s1"}
    assert TerraMesh(str(tmp_path / "val"), ("s1",)).cells()[0].modalities == ("s1",)


def test_four_dates_of_a_place_are_cells_of_that_place(tmp_path):
    written = write_archive(tmp_path, 2, shard="ssl4eos12_shard_000001.tar", dates=4,
                            folders=("S1GRD", "S2L2A"), name="{:07d}")  # fmt: skip
    source = TerraMesh(str(tmp_path), ALL)
    refs = source.cells()
    assert [ref.cell_id for ref in refs] == [f"{p:07d}_{t}" for t in range(4) for p in range(2)]
    cell = source.read(refs[5])
    assert cell.place == "0000001"
    assert cell.products["s1"].time[:10] == "2023-01-02"
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B04"],
                                  written["S2L2A", 1][2, 3])  # fmt: skip


@pytest.mark.parametrize("chunk", [1, 2])
def test_zarr_files_of_many_places_are_read(chunk, tmp_path):
    """SSL4EO-S12 v1.1 as it was first published, dates in chunks of their own."""
    values = {}
    for folder in ("S2L2A", "S1GRD"):
        values[folder] = np.stack([pixels(folder, place, dates=4) for place in range(2)])
        lon, lat = np.array([zarr_shards.centre(24, (CORNER[0] + 900 * p, CORNER[1]))
                             for p in range(2)]).T  # fmt: skip
        arrays = {
            "band": np.array(zarr_shards.LABELS[folder], "<U3"),
            "sample": np.array(["0080717", "0060573"]),
            "x_": np.stack([CORNER[0] + 900 * p + 5.0 + 10 * np.arange(24) for p in range(2)]),
            "y_": np.stack([CORNER[1] - 5.0 - 10 * np.arange(24)] * 2),
            "time_": np.array([[zarr_shards.TIME] * 4] * 2).astype(np.int64),
            "crs": np.array([32633, 32633]), "center_lon": lon, "center_lat": lat,
            "file_id": np.array([[f"{p}{t}" for t in range(4)] for p in range(2)]),
        }  # fmt: skip
        content = packed_bands(arrays, values[folder], chunk)
        path = tmp_path / "train" / folder / "ssl4eos12_train_seasonal_data_000001.zarr.zip"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    source = TerraMesh(str(tmp_path), ALL)
    refs = source.cells()
    assert [ref.cell_id for ref in refs][:3] == ["0080717_0", "0060573_0", "0080717_1"]
    assert len(refs) == 8
    for ref in refs:
        name, time = ref.cell_id.split("_")
        place = ("0080717", "0060573").index(name)
        cell = source.read(ref)
        assert cell.transform[2] == CORNER[0] + 900 * place
        assert cell.products["s2_l2a"].origin == {"file": f"{place}{time}"}
        for number, band in enumerate(L2A):
            np.testing.assert_array_equal(cell.products["s2_l2a"].bands[band],
                                          values["S2L2A"][place, int(time), number])  # fmt: skip


def packed_bands(arrays, values, chunk):
    """`packed`, whose chunks of bands hold so many places."""
    import zarr

    chunks = (chunk, 1, *values.shape[2:])
    original = zarr.Group.create_array

    def create(group, name, **options):
        if name == "bands":
            options["chunks"] = chunks
        return original(group, name, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zarr.Group, "create_array", create)
        return packed({**arrays, "bands": values}, {"time_": {}})


def test_shards_become_tiles_by_their_own_legend(tmp_path):
    written = write_archive(tmp_path / "in", 2, side=24)
    report = ingest(
        "terramesh", str(tmp_path / "in"), str(tmp_path / "out"), tile_size=24,
        config=IngestConfig(workers=0, ocean_drop=0.0),
    )  # fmt: skip
    assert report.tiles == 2
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.available.all()
    row = dataset.row_of(next(i for i in dataset.tile_ids if i.startswith("majortom_val_0000001")))
    tile = dataset.read_tile(row)
    np.testing.assert_array_equal(tile["s2_l2a_10m"][3], written["S2L2A", 1][0, 3])
    # dB in hundredths.
    expected = np.rint(written["S1RTC", 1][0, 0].astype(np.float32) * 100)
    np.testing.assert_allclose(tile["s1_10m"][0], expected, atol=1)
    counts = {code: int((written["LULC", 1] == raw).sum())
              for raw, code in {1: 80, 2: 10, 5: 50, 9: 30}.items()}  # fmt: skip
    assert dataset.histogram(row) == counts
    assert dataset.legend[30] == "rangeland"
    notes = dataset.tile(row)["products"]["s2_l2a"]
    assert notes["origin"] == {"file": "S2L2A_FILE_0"}
    assert notes["time"] == "2022-07-06T08:56:11+00:00"


def test_a_store_is_read_by_ranges(s3_bucket, tmp_path):
    written = write_archive(tmp_path, 2, folders=("S2L2A",))
    uri = f"{s3_bucket}/mesh/S2L2A/majortom_shard_000001.tar"
    upload(tmp_path / "S2L2A/majortom_shard_000001.tar", uri)
    source = TerraMesh(f"{s3_bucket}/mesh", ALL)
    cell = source.read(source.cells()[1])
    np.testing.assert_array_equal(cell.products["s2_l2a"].bands["B12"],
                                  written["S2L2A", 1][0, 11])  # fmt: skip


def test_a_shard_that_ends_early_keeps_what_it_has(tmp_path):
    write_archive(tmp_path, 3, folders=("S2L2A", "S1RTC"))
    path = tmp_path / "S1RTC/majortom_shard_000001.tar"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    refs = TerraMesh(str(tmp_path), ALL).cells()
    assert refs[0].modalities == ("s2_l2a", "s1")
    assert refs[2].modalities == ("s2_l2a",)
    (fault,) = refs[3].faults
    assert "it ends inside of" in fault[1].why


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"bands": np.zeros((1, 11, 24, 24), np.int16)}, "its 11 bands of s2_l2a are labelled"),
        ({"band": np.array(["B01"] * 12)}, "are labelled B01, B01"),
        ({"bands": np.zeros((12, 24, 24), np.int16)}, "shape (12, 24, 24)"),
        ({"bands": None}, "it has no array bands"),
        ({"crs": np.array(4326)}, "is not a zone of UTM"),
        ({"x": np.arange(24.0) * 20}, "do not lie 10 m from each other"),
        ({"x": np.arange(24.0)}, "do not lie 10 m from each other"),
        ({"y": np.arange(23.0)}, "coordinates of"),
        ({"center_lat": np.array(10.0)}, "km from the centre that it states"),
        ({"center_lon": np.array(np.nan)}, "km from the centre that it states"),
        ({"cloud_mask": np.zeros((1, 3, 3), np.uint8)}, "a cloud mask of (3, 3) pixels"),
    ],
)
def test_a_sample_that_contradicts_itself_is_a_fault(changed, why, tmp_path):
    good = sample("S2L2A", pixels("S2L2A", 1))
    bad = sample("S2L2A", pixels("S2L2A"), **changed)
    write_shard(tmp_path / "S2L2A/majortom_shard_000001.tar", {"a": good, "b": bad})
    source = TerraMesh(str(tmp_path), ALL)
    refs = source.cells()
    assert source.read(refs[0]).products
    with pytest.raises(BadCellError) as caught:
        source.read(refs[1])
    assert why in str(caught.value)
    assert "majortom_shard_000001.tar/b.zarr.zip" in str(caught.value)


def test_sensors_of_different_ground_are_a_fault_of_one(tmp_path):
    write_shard(
        tmp_path / "S2L2A/majortom_shard_000001.tar", {"a": sample("S2L2A", pixels("S2L2A"))}
    )
    moved = sample("S1RTC", pixels("S1RTC"), (CORNER[0] + 10, CORNER[1]))
    write_shard(tmp_path / "S1RTC/majortom_shard_000001.tar", {"a": moved})
    source = TerraMesh(str(tmp_path), ALL)
    cell = source.read(source.cells()[0])
    assert set(cell.products) == {"s2_l2a"}
    assert "corner x" in cell.faults["s1"].why


def test_dead_samples_among_others_go_to_quarantine(tmp_path):
    write_archive(tmp_path / "in", 3, folders=("S2L2A", "LULC"))
    samples = {f"majortom_val_{n:07d}": sample("S2L2A", pixels("S2L2A", n), (CORNER[0] + 240 * n,
               CORNER[1])) for n in range(3)}  # fmt: skip
    samples["majortom_val_0000001"] = b"PK nothing"
    write_shard(tmp_path / "in/S2L2A/majortom_shard_000001.tar", samples)
    report = ingest(
        "terramesh", str(tmp_path / "in"), str(tmp_path / "out"), tile_size=24,
        config=IngestConfig(workers=0, ocean_drop=0.0, max_bad_fraction=0.5),
    )  # fmt: skip
    assert report.tiles == 2
    (line,) = (tmp_path / "out/quarantine.jsonl").read_text().splitlines()
    assert "not a readable zip" in line
    assert json.loads(line)


def test_what_is_no_such_archive_is_one_line(tmp_path, refused):
    command = ("ingest", "--source", "terramesh", "--output", tmp_path / "no", "--input")
    assert "does not exist" in refused(*command, tmp_path / "nothing")
    (tmp_path / "in/S2L2A").mkdir(parents=True)
    assert "holds no TerraMesh" in refused(*command, tmp_path / "in")
    (tmp_path / "in/S2L2A/majortom_shard_000001.tar").write_bytes(b"no tar" * 999)
    said = refused(*command, tmp_path / "in")
    assert "no shard of" in said
    assert "no header of a tar lies at byte 0" in said
    (tmp_path / "in/S2L2A/majortom_shard_000001.tar").write_bytes(b"\0" * 10240)
    with pytest.raises(UsageError, match="they are empty"):
        TerraMesh(str(tmp_path / "in"), ALL).cells()
