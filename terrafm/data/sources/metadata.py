"""metadata.parquet of Major-TOM: which product lies where, each column checked once.

A row with an entry that cannot be used is set aside with its file, row and column, and the others
go on. Only where no row can be used is the whole file refused.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from terrafm.config.yaml_text import shortened
from terrafm.data.archive import BadCellError
from terrafm.data.sources.folders import is_file, names_if_listed
from terrafm.errors import UsageError
from terrafm.storage import is_local, join
from terrafm.storage.faults import explain, is_passing, patiently
from terrafm.storage.parquet import open_parquet

_REQUIRED = ("grid_cell", "product_id", "parquet_url", "parquet_row")
_OPTIONAL = ("timestamp", "cloud_cover", "nodata", "centre_lon", "centre_lat")
# What a text says that has no number.
_NOTHING = {"", "nan", "none", "null", "na", "n/a"}
# Where metadata.parquet may send a reader, beside the archive's own host: not to files of this
# machine, nor to what its network only answers from inside.
_PUBLISHED = ("https://", "s3://", "hf://")
# Whole numbers count from 1970; which unit fits is told by their size: the years 1980 to 2100.
_FIRST_SECOND, _LAST_SECOND = 315_532_800, 4_102_444_800
_UNITS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True)
class BadRow:
    """A row of metadata.parquet that cannot be used.

    Attributes:
        cell: grid cell of the row, "" where that is what is wrong.
        fault: which row, which column and why.
    """

    cell: str
    fault: BadCellError


def read_metadata(folder: str) -> tuple[pd.DataFrame, list[BadRow]]:
    """Reads metadata.parquet of one sensor, only the columns that matter.

    Returns:
        One row per usable product: grid_cell, product_id, parquet_row, uri, time (UTC),
        cloud_cover, nodata, longitude and latitude of the cell's centre; NaN and NaT where the
        file does not say. And the rows that cannot be used.

    Raises:
        UsageError: the file is damaged, empty, lacks a column, or no row can be used.
        StoreFailedError: the store fails for too long.
    """
    uri = join(folder, "metadata.parquet")
    raw = _read(uri)
    checked = _Checked(raw, uri)
    frame = pd.DataFrame(
        {
            "grid_cell": checked.text("grid_cell"),
            "product_id": checked.text("product_id"),
            "url": checked.text("parquet_url").str.replace("\\", "/"),
            "parquet_row": checked.row_number("parquet_row"),
            "cloud_cover": checked.number("cloud_cover"),
            "nodata": checked.number("nodata"),
            "longitude": _degrees(raw, "centre_lon", 360),
            "latitude": _degrees(raw, "centre_lat", 90),
        }
    )
    usable = checked.problems == ""
    bad = checked.bad_rows(frame["grid_cell"])
    if not usable.any():
        raise UsageError(f"no row of {uri} can be used; the first: {bad[0].fault.why}")
    frame = frame[usable].reset_index(drop=True)
    frame["time"] = _times(raw.get("timestamp"), usable, frame["product_id"])
    urls = sorted(frame["url"].unique())
    parts = _parts(folder, urls[0])
    frame["uri"] = frame.pop("url").map({url: _locate(url, folder, parts) for url in urls})
    frame["parquet_row"] = frame["parquet_row"].astype("int64")
    return frame, bad


def _read(uri: str) -> pd.DataFrame:
    try:
        file = patiently(lambda: open_parquet(uri), uri)
        names = file.schema_arrow.names
        absent = [name for name in _REQUIRED if name not in names]
        if absent:
            raise UsageError(f"{uri} has no column {', '.join(absent)}")
        wanted = [name for name in (*_REQUIRED, *_OPTIONAL) if name in names]
        table = patiently(lambda: file.read(columns=wanted), uri)
        file.close()
        frame = pd.DataFrame(table.to_pandas())
    except (OSError, pa.ArrowException) as error:
        if is_passing(error):
            raise explain(error, "read", uri) from None
        detail = " ".join(str(error).split())[:200]
        raise UsageError(f"cannot read {uri} (damaged or cut short?): {detail}") from None
    if not len(frame):
        raise UsageError(f"{uri} lists no product")
    # An index that pandas wrote into the file is no number of a row.
    return frame.reset_index(drop=True)


class _Checked:
    """Columns as what they should be; the first thing that is wrong with each row is kept.

    Attributes:
        problems: (N,) what is wrong, "" where nothing is.
    """

    def __init__(self, raw: pd.DataFrame, uri: str) -> None:
        self._raw, self._uri = raw, uri
        self.problems = pd.Series("", index=raw.index, dtype=object)

    def text(self, name: str) -> "pd.Series[str]":
        """(N,) text with anything in it."""
        values = self._raw[name]
        good = values.map(lambda value: isinstance(value, str) and bool(value.strip()))
        self._note(name, ~good.astype(bool), "a text")
        return values.where(good, "").astype(str)

    def number(self, name: str) -> "pd.Series[float]":
        """(N,) finite number, NaN where there is none."""
        if name not in self._raw:
            return pd.Series(np.nan, index=self._raw.index)
        values = self._raw[name]
        nothing = values.isna() | values.map(
            lambda value: isinstance(value, str) and value.strip().lower() in _NOTHING
        ).astype(bool)
        numbers = _numbers(values.where(~nothing))
        self._note(name, ~nothing & ~_finite(numbers), "a number")
        return numbers

    def row_number(self, name: str) -> "pd.Series[float]":
        """(N,) whole number from 0."""
        numbers = _numbers(self._raw[name])
        good = _finite(numbers) & (numbers >= 0) & (numbers % 1 == 0) & (numbers < 2**53)
        self._note(name, ~good, "the number of a row")
        return numbers

    def bad_rows(self, cells: "pd.Series[str]") -> list[BadRow]:
        """The rows with a problem, in their order."""
        return [
            BadRow(cell, BadCellError(self._uri, f"row {row}: {why}"))
            for row, (cell, why) in enumerate(zip(cells, self.problems, strict=True))
            if why
        ]

    def _note(self, name: str, wrong: "pd.Series[bool]", wanted: str) -> None:
        for row in self.problems.index[wrong & (self.problems == "")]:
            value = self._raw[name][row]
            value = value.item() if isinstance(value, np.generic) else value
            missing = value is None or (np.ndim(value) == 0 and bool(pd.isna(value)))
            what = "is missing" if missing else f"is {shortened(value)}, not {wanted}"
            self.problems[row] = f"{name} {what}"


def _numbers(values: "pd.Series[Any]") -> "pd.Series[float]":
    if values.map(np.ndim).any():
        # pandas refuses lists and structs, whatever it is told to do with errors.
        values = values.where(values.map(np.ndim) == 0)
    return pd.to_numeric(values, errors="coerce").astype(float)


def _finite(numbers: "pd.Series[float]") -> "pd.Series[bool]":
    return numbers.abs() < np.inf


def _degrees(raw: pd.DataFrame, name: str, most: int) -> "pd.Series[float]":
    """Only for a word before the work: what is no place is not known."""
    if name not in raw:
        return pd.Series(np.nan, index=raw.index)
    numbers = _numbers(raw[name])
    return numbers.where(numbers.abs() <= most)


def _times(
    stamps: "pd.Series[Any] | None", usable: "pd.Series[bool]", names: "pd.Series[str]"
) -> "pd.Series[pd.Timestamp]":
    """Acquisition times: the timestamp where its form is plain, else from the product's name.

    Args:
        stamps: (M,) of all rows, in whatever form.
        usable: (M,) which rows are wanted.
        names: (N,) products of these.
    """
    sensing = _read_times(names.str.extract(r"_(\d{8}T\d{6})", expand=False), format="ISO8601")
    if stamps is None:
        return sensing
    stamps = stamps[usable].reset_index(drop=True)
    return _plain_times(stamps).fillna(sensing).fillna(_written_times(stamps))


def _plain_times(stamps: "pd.Series[Any]") -> "pd.Series[pd.Timestamp]":
    """Times, dates, texts of ISO 8601, and numbers since 1970 in any unit."""
    if not pd.api.types.is_numeric_dtype(stamps):
        return _read_times(stamps, format="ISO8601")
    numbers = stamps.astype(float)
    times = pd.Series(pd.NaT, index=stamps.index, dtype="datetime64[us, UTC]")
    for unit, parts in _UNITS.items():
        fits = numbers.between(_FIRST_SECOND * parts, _LAST_SECOND * parts)
        if fits.any():
            times.loc[fits] = _read_times(stamps[fits].astype("int64"), unit=unit)
    # 20190301 and 20190301100031 are dates in digits.
    digits = stamps.where(times.isna()).astype("Int64").astype("string")
    for form, length in (("%Y%m%d", 8), ("%Y%m%d%H%M%S", 14)):
        of_length = digits.where(digits.str.len() == length)
        times = times.fillna(_read_times(of_length, format=form))
    return times


def _written_times(stamps: "pd.Series[Any]") -> "pd.Series[pd.Timestamp]":
    """Texts of other forms, unless it depends on the country which number is the day."""
    if pd.api.types.is_numeric_dtype(stamps):
        return pd.Series(pd.NaT, index=stamps.index, dtype="datetime64[us, UTC]")
    one, other = (_read_times(stamps, format="mixed", dayfirst=first) for first in (True, False))
    return one.where((one == other) | other.isna()).fillna(other.where(one.isna()))


def _read_times(values: "pd.Series[Any]", **form: Any) -> "pd.Series[pd.Timestamp]":
    read = pd.to_datetime(values, utc=True, errors="coerce", **form)
    return read.astype("datetime64[us, UTC]")


def _parts(folder: str, url: str) -> set[str] | None:
    """Names of the archive's own image files; None where it cannot list but has the first."""
    images = join(folder, "images")
    names = set(names_if_listed(images))
    first = _file_name(url)
    if not names and not is_local(folder) and is_file(join(images, first)):
        return None
    return names


def _locate(url: str, folder: str, parts: set[str] | None) -> str:
    # metadata.parquet names files where they were published; a copy in the archive is preferred.
    name = _file_name(url)
    scheme, _, rest = folder.partition("://")
    own = f"{scheme}://{rest.partition('/')[0]}/"
    if parts is None or name in parts or not url.startswith((*_PUBLISHED, own)):
        return join(folder, "images", name)
    return url


def _file_name(url: str) -> str:
    # The Hub's own links end with "?download=true".
    name = url.rpartition("/")[2]
    return name.partition("?")[0] if "://" in url else name
