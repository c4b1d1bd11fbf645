"""metadata.parquet of Major-TOM as strangers bring it."""

import datetime

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm.data.sources.metadata import read_metadata
from terrafm.data.sources.pairing import pair_products
from terrafm.errors import UsageError

NAME = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T145118"
WHEN = pd.Timestamp("2022-07-06T08:56:11Z")
SECONDS = int(WHEN.timestamp())


def row(**changes):
    return {
        "grid_cell": "0U_1R",
        "product_id": NAME,
        "timestamp": "2022-07-06 08:56:11",
        "cloud_cover": 1.0,
        "nodata": 0.0,
        "parquet_url": "images/part_00001.parquet",
        "parquet_row": 0,
    } | changes


@pytest.fixture
def read(tmp_path):
    """Rows, and columns in place of theirs -> what is read."""

    def run(*rows, **columns):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images/part_00001.parquet").touch()
        table = pa.Table.from_pylist([row(**one) for one in rows])
        for name, values in columns.items():
            table = table.set_column(table.column_names.index(name), name, pa.array(*values))
        pq.write_table(table, tmp_path / "metadata.parquet")
        return read_metadata(str(tmp_path))

    return run


@pytest.mark.parametrize("name", ["unnamed", NAME.replace("20220706T085611", "20191111T111111")])
@pytest.mark.parametrize(
    "column",
    [
        ([SECONDS * 10**9], pa.timestamp("ns")),
        ([SECONDS * 10**6], pa.timestamp("us", "UTC")),
        ([SECONDS * 10**3], pa.timestamp("ms")),
        ([SECONDS], pa.timestamp("s", "Europe/Berlin")),
        ([SECONDS], pa.int64()),
        ([SECONDS * 10**3], pa.int64()),
        ([SECONDS * 10**6], pa.int64()),
        ([SECONDS * 10**9], pa.int64()),
        ([SECONDS * 1000.0], pa.float64()),
        ([20220706085611], pa.int64()),
        (["2022-07-06 08:56:11"],),
        (["2022-07-06T08:56:11Z"],),
        (["2022-07-06T10:56:11.000+02:00"],),
        (["20220706T085611"],),
    ],
    ids=str,
)
def test_times_of_every_form(read, column, name):
    frame, bad = read({"product_id": name}, timestamp=column)
    assert frame["time"].tolist() == [WHEN]
    assert not bad


@pytest.mark.parametrize(
    ("column", "day"),
    [
        (([datetime.date(2022, 7, 6)], pa.date32()), "2022-07-06"),
        (([20220706], pa.int32()), "2022-07-06"),
        ((["2022/07/06"],), "2022-07-06"),
        ((["6 July 2022"],), "2022-07-06"),
        ((["25/07/2022 08:56"],), "2022-07-25"),
        # The seventh of June, or the sixth of July?
        ((["06/07/2022"],), None),
        ((["unknown"],), None),
        (([12345], pa.int64()), None),
        (([None], pa.string()), None),
        (([None], pa.timestamp("ms")), None),
    ],
    ids=str,
)
def test_dates_and_what_is_none(read, column, day):
    frame, _ = read({"product_id": "unnamed"}, timestamp=column)
    (time,) = frame["time"]
    assert (None if pd.isna(time) else time.date().isoformat()) == day
    # Where the timestamp does not say it plainly, the product's name does.
    frame, _ = read({}, timestamp=column)
    assert frame["time"][0].date().isoformat() == "2022-07-06"


def test_forms_may_differ_from_row_to_row(read):
    stamps = ["2022-07-06 08:56:11", "2022-07-06T10:56:11+02:00", None, "x"]
    frame, _ = read(*[{"timestamp": stamp} for stamp in stamps])
    assert frame["time"].tolist() == [WHEN] * 4


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"grid_cell": None}, "grid_cell is missing"),
        ({"grid_cell": " "}, "grid_cell is ' ', not a text"),
        ({"product_id": None}, "product_id is missing"),
        ({"parquet_url": None}, "parquet_url is missing"),
        ({"parquet_row": None}, "parquet_row is missing"),
        ({"parquet_row": -1}, "parquet_row is -1"),
        ({"parquet_row": 1.5}, "parquet_row is 1.5"),
        ({"parquet_row": "second"}, "parquet_row is 'second', not the number of a row"),
        ({"cloud_cover": "unknown"}, "cloud_cover is 'unknown', not a number"),
        ({"cloud_cover": float("inf")}, "cloud_cover is inf, not a number"),
        ({"nodata": "12 %"}, "nodata is '12 %', not a number"),
    ],
)
def test_a_bad_row_is_set_aside(read, changes, why):
    (name, value), *_ = changes.items()
    # A column has one type.
    good = {name: str(row()[name])} if isinstance(value, str) else {}
    rows = good, {"grid_cell": "0U_2R", **changes}, {"grid_cell": "0U_3R", **good}
    if name == "grid_cell":
        rows = {}, changes, {"grid_cell": "0U_3R"}
    frame, bad = read(*rows)
    assert frame["grid_cell"].tolist() == ["0U_1R", "0U_3R"]
    assert len(bad) == 1
    assert bad[0].fault.where.endswith("metadata.parquet")
    assert bad[0].fault.why.startswith(f"row 1: {why}")
    refs, _ = pair_products({"s2_l2a": frame}, {"s2_l2a": bad})
    assert [ref.cell_id for ref in refs] == [
        "0U_1R",
        "0U_3R",
        "s2_l2a row 1" if "grid_cell" in changes else "0U_2R",
    ]
    assert (refs[2].modalities, [m for m, _ in refs[2].faults]) == ((), ["s2_l2a"])


@pytest.mark.parametrize(
    ("name", "column", "why"),
    [
        ("parquet_row", (["a", "b"],), "row 0: parquet_row is 'a', not the number of a row"),
        ("grid_cell", ([1, 2],), "row 0: grid_cell is 1, not a text"),
        ("grid_cell", ([b"a", b"b"],), "row 0: grid_cell is b'a', not a text"),
        ("cloud_cover", (["low", "high"],), "row 0: cloud_cover is 'low', not a number"),
        ("parquet_url", ([None, None], pa.string()), "row 0: parquet_url is missing"),
        ("cloud_cover", ([[1.0], [2.0]],), "row 0: cloud_cover is"),
    ],
)
def test_a_bad_column_is_one_line(read, name, column, why):
    with pytest.raises(UsageError, match=r"no row of .*metadata.parquet can be used") as caught:
        read({}, {}, **{name: column})
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "read_as"),
    [
        ("cloud_cover", "12.5", 12.5),
        ("cloud_cover", None, None),
        ("cloud_cover", "nan", None),
        ("cloud_cover", "", None),
        ("parquet_row", "7", 7),
        ("parquet_row", 7.0, 7),
    ],
)
def test_numbers_as_text(read, name, value, read_as):
    frame, bad = read({name: value})
    assert not bad
    assert frame[name].tolist() == [read_as] or (read_as is None and frame[name].isna().all())
    (ref,), _ = pair_products({"s2_l2a": frame})
    if name == "cloud_cover":
        assert ref.listed["s2_l2a"].cloud_cover == read_as


@pytest.mark.parametrize(
    "url",
    [
        "images/part_00001.parquet",
        "images\\part_00001.parquet",
        "C:\\Users\\me\\Core-S2L2A\\images\\part_00001.parquet",
        "https://huggingface.co/datasets/x/resolve/main/images/part_00001.parquet?download=true",
    ],
)
def test_the_archives_own_copy_is_found_whatever_the_url(read, tmp_path, url):
    frame, _ = read({"parquet_url": url})
    assert frame["uri"].tolist() == [f"{tmp_path}/images/part_00001.parquet"]


def test_a_good_row_takes_the_place_of_a_bad_one(read):
    frame, bad = read({"parquet_row": None}, {})
    (ref,), _ = pair_products({"s2_l2a": frame}, {"s2_l2a": bad})
    assert ref.modalities == ("s2_l2a",)
    assert [fault.why for _, fault in ref.faults] == ["row 0: parquet_row is missing"]
