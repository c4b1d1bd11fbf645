import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm.data.archive import BadCellError
from terrafm.data.sources.major_tom import MajorTom
from terrafm.errors import UsageError
from terrafm.modalities import MODALITIES

ALL = tuple(MODALITIES)


def s2_name(level, time, baseline="N0400", tile="T33NZA"):
    return f"S2A_MSIL{level}_{time}_{baseline}_R007_{tile}_20230101T000000"


def s1_name(time):
    return f"S1A_IW_GRDH_1SDV_{time}_{time}_043000_052000_rtc"


def product(bands, cell="0U_1R", name="", time="2022-07-06 08:56:11", **more):
    return {"grid_cell": cell, "product_id": name, "timestamp": time, **more}, bands


def read(archive, cell, modalities=ALL):
    source = MajorTom(str(archive), modalities)
    ref = next(ref for ref in source.cells() if ref.cell_id == cell)
    # As a reading task gets it.
    return pickle.loads(pickle.dumps(source)).read(ref)


@pytest.fixture
def archive(major_tom_archive, product_bands):
    """Two cells with all sensors, the second with bands of other values."""

    def rows(modality, name):
        return [
            product(product_bands(modality, 1500), "0U_1R", name),
            product(product_bands(modality, 2500), "0U_2R", name),
        ]

    return major_tom_archive(
        {
            "Core-S2L2A": rows("s2_l2a", s2_name("2A", "20220706T085611")),
            "Core-S2L1C": rows("s2_l1c", s2_name("1C", "20220706T085611")),
            "Core-S1RTC": rows("s1", s1_name("20220705T165959")),
        }
    )


def test_cells_are_read_at_native_resolution(archive):
    source = MajorTom(str(archive), ALL)
    layout = source.layout()
    assert (layout.gsd, layout.shape, layout.land_cover) == (10, (96, 96), False)
    assert layout.band_gsd["s1"] == (10, 10)
    assert layout.band_gsd["s2_l1c"] == MODALITIES["s2_l1c"].gsd
    cell = read(archive, "0U_2R")
    assert set(cell.products) == set(ALL)
    assert not cell.faults
    l2a = cell.products["s2_l2a"]
    assert [l2a.bands[b].shape[0] for b in ("B02", "B05", "B01")] == [96, 48, 16]
    assert all((band == 2500).all() for band in l2a.bands.values())
    # It is read whatever the name says: it may contradict it.
    assert (cell.products["s2_l1c"].cirrus == 2500).all()
    assert l2a.product_id == s2_name("2A", "20220706T085611")
    assert l2a.time.startswith("2022-07-06T08:56:11")


def test_cirrus_is_read_where_the_name_does_not_tell_the_baseline(major_tom_archive, product_bands):
    archive = major_tom_archive({"S2L1C": [product(product_bands("s2_l1c"), name="unnamed")]})
    assert read(archive, "0U_1R").products["s2_l1c"].cirrus.shape == (16, 16)


def test_real_cell(realdata, major_tom_archive):
    folder = next((realdata / "major_tom/S2L2A/0U/0U_199R").iterdir())
    bands = {path.stem: path.read_bytes() for path in folder.glob("*.tif")}
    archive = major_tom_archive({"Core-S2L2A": [product(bands, "0U_199R", folder.name)]})
    cell = read(archive, "0U_199R")
    assert (cell.crs, cell.shape) == ("EPSG:32633", (1068, 1068))
    shapes = {b: p.shape for b, p in cell.products["s2_l2a"].bands.items()}
    assert (shapes["B08"], shapes["B8A"], shapes["B09"]) == ((1068,) * 2, (534,) * 2, (178,) * 2)


def test_products_of_a_cell_are_paired(major_tom_archive, product_bands):
    s1, l1c, l2a = (product_bands(m) for m in ALL)
    times = ["20220101T100000", "20220110T100000", "20220120T100000"]
    archive = major_tom_archive(
        {
            "Core-S2L2A": [
                product(l2a, name=s2_name("2A", times[0]), time=times[0], cloud_cover=40.0),
                product(l2a, name=s2_name("2A", times[1]), time=times[1], cloud_cover=5.0),
                product(l2a, name=s2_name("2A", times[2]), time=times[2], cloud_cover=5.0),
                product(l2a, "0U_2R", s2_name("2A", times[2]), times[2], nodata=0.5),
                product(l2a, "0U_2R", s2_name("2A", times[0]), times[0], nodata=0.1),
            ],
            "Core-S2L1C": [
                product(l1c, name=s2_name("1C", times[1]), time="2022-01-10T10:00:00Z"),
                product(l1c, name=s2_name("1C", times[2]), time="2022-01-20 10:00:00.000"),
                product(l1c, "0U_9R", s2_name("1C", times[0]), "unknown"),
            ],
            "Core-S1RTC": [
                product(s1, name=s1_name("20220112T000000"), time="2022/01/12 00:00"),
                product(s1, name=s1_name("20220123T000000"), time=None),
            ],
        }
    )
    source = MajorTom(str(archive), ALL)
    chosen = {
        ref.cell_id: {m: row.product_id for m, row in ref.location.items()}
        for ref in source.cells()
    }
    # Least cloud, then the latest; then what is nearest in time.
    assert chosen["0U_1R"] == {
        "s2_l2a": s2_name("2A", times[2]),
        "s2_l1c": s2_name("1C", times[2]),
        "s1": s1_name("20220123T000000"),
    }
    assert chosen["0U_2R"] == {"s2_l2a": s2_name("2A", times[0])}
    assert chosen["0U_9R"] == {"s2_l1c": s2_name("1C", times[0])}
    notes = source.layout().notes
    assert notes["repeated_cells"] == {"s2_l2a": 2, "s2_l1c": 1, "s1": 1}
    assert notes["pairing"]["s1"] == {
        "cells": 1,
        "within_1_days": 0,
        "within_4_days": 1,
        "within_7_days": 1,
        "within_30_days": 1,
    }
    assert notes["pairing"]["s2_l1c"]["within_1_days"] == 1


def test_pairing_does_not_depend_on_the_order_of_the_rows(major_tom_archive, product_bands):
    bands = product_bands("s2_l2a", size=24)
    rows = [
        product(bands, f"0U_{i % 3}R", s2_name("2A", f"202201{i + 10}T100000"), None)
        for i in range(9)
    ]
    chosen = []
    for name, some in (("a", rows), ("b", rows[::-1])):
        archive = major_tom_archive({"S2L2A": some}, name)
        refs = MajorTom(str(archive), ("s2_l2a",)).cells()
        chosen.append({r.cell_id: r.location["s2_l2a"].product_id for r in refs})
    assert chosen[0] == chosen[1]


def test_only_the_wanted_modalities_are_listed(archive):
    refs = MajorTom(str(archive), ("s1", "s2_l2a")).cells()
    assert {m for ref in refs for m in ref.location} == {"s1", "s2_l2a"}
    single = MajorTom(str(archive / "Core-S1RTC"), ALL).cells()
    assert {m for ref in single for m in ref.location} == {"s1"}


def test_a_parquet_file_cut_short_is_a_fault_of_its_cells(archive):
    part = archive / "Core-S1RTC/images/part_00001.parquet"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    for name in ("0U_1R", "0U_2R"):
        cell = read(archive, name)
        assert set(cell.products) == {"s2_l2a", "s2_l1c"}
        assert "part_00001.parquet row" in cell.faults["s1"].where
        assert "cut short" in cell.faults["s1"].why


def test_a_missing_parquet_file_is_a_fault(archive):
    (archive / "Core-S1RTC/images/part_00001.parquet").rename(archive / "gone")
    metadata = archive / "Core-S1RTC/metadata.parquet"
    table = pq.read_table(metadata)
    column = pa.array(["images/part_00001.parquet"] * 2)
    pq.write_table(
        table.set_column(table.column_names.index("parquet_url"), "parquet_url", column), metadata
    )
    assert "not found" in read(archive, "0U_1R").faults["s1"].why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"skip": ("B05",)}, "no column B05"),
        ({"corner": (500060.0, 5000000.0)}, "corner x 500060.00 m, not 500000.00 m"),
        ({"crs": "EPSG:32634"}, "coordinate system EPSG:32634"),
    ],
)
def test_a_product_that_does_not_fit_is_a_fault(major_tom_archive, product_bands, change, why):
    archive = major_tom_archive(
        {
            "S2L2A": [product(product_bands("s2_l2a", **change), name=s2_name("2A", "x"))],
            "S2L1C": [product(product_bands("s2_l1c"), name=s2_name("1C", "x"))],
            "S1RTC": [product(product_bands("s1"), name=s1_name("x"))],
        }
    )
    cell = read(archive, "0U_1R")
    assert set(cell.products) == {"s1", "s2_l1c"}
    assert why in cell.faults["s2_l2a"].why


def test_damaged_rows_are_faults(major_tom_archive, product_bands):
    whole = product_bands("s2_l2a")
    rows = [
        product(whole | {"B08": whole["B08"][:100]}, "0U_1R", "a"),
        product(whole | {"B08": None}, "0U_2R", "b"),
        product(whole, "0U_3R", "c", grid_cell_in_image="0U_4R"),
        product(whole | {"B08": whole["B05"]}, "0U_5R", "d"),
        product(whole, "0U_6R", "e"),
    ]
    archive = major_tom_archive({"S2L2A": rows})
    for name, why in {
        "0U_1R": "row 0, band B08: not a readable GeoTIFF",
        "0U_2R": "row 1, band B08: no pixels",
        "0U_3R": "row 2: holds cell 0U_4R, metadata says 0U_3R",
        "0U_5R": "row 3, band B08: grid does not match the cell: 20 m, not 10 m",
    }.items():
        with pytest.raises(BadCellError) as caught:
            read(archive, name)
        assert why in str(caught.value)
    assert set(read(archive, "0U_6R").products) == {"s2_l2a"}


def test_archives_that_cannot_be_used(archive, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        MajorTom(str(tmp_path / "missing"), ALL).cells()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no Major-TOM dataset"):
        MajorTom(str(tmp_path / "empty"), ALL).cells()
    metadata = archive / "Core-S2L2A/metadata.parquet"
    table = pq.read_table(metadata)
    pq.write_table(table.drop_columns(["grid_cell"]), metadata)
    with pytest.raises(UsageError, match="has no column grid_cell"):
        MajorTom(str(archive), ALL).cells()
    pq.write_table(table.slice(0, 0), metadata)
    with pytest.raises(UsageError, match="lists no product"):
        MajorTom(str(archive), ALL).cells()
    metadata.write_bytes(metadata.read_bytes()[:50])
    with pytest.raises(UsageError, match=r"cannot read .*metadata.parquet"):
        MajorTom(str(archive), ALL).cells()
