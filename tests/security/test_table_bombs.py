"""Tables of a few bytes: what is read of them stays under the stated limits, wherever they lie."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from terrafm.storage import open_file
from terrafm.storage.parquet import TableFile, read_arrow, read_parquet

N = 4_000_000
ERRORS = "OSError, pa.ArrowException"


def nulls(path):
    """Rows of nothing: of a run of them the length is stored."""
    table = pa.table({name: pa.nulls(N, pa.int64()) for name in "abcdefgh"})
    with pq.ParquetWriter(path, table.schema, compression="zstd") as writer:
        for _ in range(10):
            writer.write_table(table, row_group_size=N)


def repeated(path):
    """One text of 20 kB, a million times."""
    once = pa.DictionaryArray.from_arrays(np.zeros(N // 4, np.int32), pa.array(["x" * 20_000]))
    pq.write_table(pa.table({"a": once}), path, store_schema=False)


def nested(path):
    """As `repeated`, in lists."""
    texts = pa.array(["x" * 2000]).take(pa.array(np.zeros(N // 4, np.int32)))
    lists = pa.ListArray.from_arrays(pa.array(np.arange(0, N // 4 + 1, 10, np.int32)), texts)
    pq.write_table(pa.table({"a": lists}), path, store_schema=False)


def zeros(path):
    """One value, compressed to a twenty-thousandth."""
    value = pa.array([bytes(1200 << 20)])
    pq.write_table(pa.table({"a": value}), path, compression="zstd", use_dictionary=False)


def understated(path):
    """As `zeros`, in a file whose footer says that it is small."""
    zeros(path)
    content = path.read_bytes()
    said = pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size
    path.write_bytes(content.replace(varint(said), varint(77_000, len(varint(said)))))
    assert pq.read_metadata(path).row_group(0).column(0).total_uncompressed_size == 77_000


def varint(number, length=0):
    """Thrift's zigzag, of a length: it may be longer than it need be."""
    number *= 2
    out = bytearray()
    while number > 127 or len(out) + 1 < length:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def prefixed(path):
    """Each text is the one before it."""
    pq.write_table(
        pa.table({"a": ["x" * 20_000] * 100_000}), path, use_dictionary=False,
        column_encoding={"a": "DELTA_BYTE_ARRAY"}, compression="zstd",
    )  # fmt: skip


def footer(path):
    """A footer of gigabytes, says its length."""
    pq.write_table(pa.table({"a": [1]}), path)
    path.write_bytes(path.read_bytes()[:-8] + (2**32 - 1).to_bytes(4, "little") + b"PAR1")


def parts(path):
    """Hundreds of thousands of parts of columns."""
    table = pa.table({f"c{i}": pa.array([], pa.int8()) for i in range(2000)})
    with pq.ParquetWriter(path, table.schema, store_schema=False) as writer:
        for _ in range(200):
            writer.write_table(table.slice(0, 0))


BOMBS = [nulls, repeated, nested, zeros, understated, prefixed, footer, parts]
READERS = {
    "open_parquet": "open_parquet(path).read()",
    "open_parquet, group": "open_parquet(path).read_row_group(0)",
    "read_parquet": "read_parquet(path)",
    "a file of Python": "TableFile(open(path, 'rb')).read()",
}
IMPORTS = "import pyarrow as pa\nfrom terrafm.storage.parquet import *"


@pytest.mark.parametrize("bomb", BOMBS)
def test_small_tables_take_little_memory(bomb, tmp_path, bounded):
    path = tmp_path / "table.parquet"
    bomb(path)
    limit = 90_000_000 if bomb is parts else 2_000_000
    assert path.stat().st_size < limit
    for call in READERS.values():
        (ended,) = bounded(IMPORTS, call, path, errors=ERRORS, timeout=60)
        assert ended.grown < 1100, (call, ended)
        assert ended.code == 2 or (bomb is nulls and "group" in call), (call, ended)


@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "brotli", "zstd", "lz4"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_every_form_of_an_ordinary_table_is_read(compression, version, tmp_path):
    rng = np.random.default_rng(0)
    rows = 5000
    table = pa.table({
        "id": [f"tile {i}" for i in range(rows)],
        "class.name": pa.array(rng.choice(["land", "sea", None], rows)),
        "number": rng.integers(0, 9, rows),
        "flag": rng.random(rows) < 0.5,
        "vector": pa.FixedSizeListArray.from_arrays(rng.random(rows * 4).astype(np.float32), 4),
        "names": [["a", "b"][: i % 3] for i in range(rows)],
        "box": [{"x": float(i), "name": "c"} for i in range(rows)],
        "time": pa.array(range(rows), pa.timestamp("us", tz="UTC")),
        "codes": pa.array(["land", "sea"] * (rows // 2)).dictionary_encode(),
        "nothing": pa.nulls(rows),
    })  # fmt: skip
    path = tmp_path / "table.parquet"
    pq.write_table(
        table, path, compression=compression, data_page_version=version, row_group_size=1500,
        data_page_size=2000, write_page_checksum=True,
    )  # fmt: skip
    for source in (path, open_file(path), pa.BufferReader(path.read_bytes())):
        file = TableFile(source)
        assert file.read().equals(table)
        assert file.read(columns=["class.name", "box"]).equals(table.select(["class.name", "box"]))
        part = file.read_row_group(1, columns=["names", "id"])
        assert part["id"].to_pylist() == table["id"].to_pylist()[1500:3000]
        file.close()


def test_texts_that_a_dictionary_repeats_are_read_where_they_fit(tmp_path):
    """Where the worst would be too large, what is there is measured and read."""
    rng = np.random.default_rng(0)
    texts = [f"{i:06d} " + "x" * 200 for i in range(4000)]
    column = pa.array(texts).take(pa.array(rng.integers(0, 4000, 400_000)))
    lists = pa.ListArray.from_arrays(np.arange(0, 400_001, 2, dtype=np.int32), column)
    table = pa.table({"text": column[:200_000], "inside": lists})
    pq.write_table(table, tmp_path / "table.parquet")
    assert read_parquet(str(tmp_path / "table.parquet")).equals(table)


def arrow_file(table, **options):
    sink = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_file(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue()


def test_arrow_files_are_read_as_large_as_they_are():
    table = pa.table({"a": ["x", None, "y"], "b": [[1], [], [2, 3]]})
    assert read_arrow(arrow_file(table)).equals(table)
    for compression in ("zstd", "lz4"):
        with pytest.raises(pa.ArrowInvalid, match="compressed"):
            read_arrow(arrow_file(pa.table({"a": [bytes(1 << 20)]}), compression=compression))


def test_arrow_files_whose_offsets_lie_are_refused():
    content = bytearray(arrow_file(pa.table({"a": ["abcdefgh", "ijklmnop"]})))
    offsets = np.array([0, 8, 16], np.int32).tobytes()
    at = content.index(offsets)
    content[at : at + 12] = np.array([0, 8, 1 << 30], np.int32).tobytes()
    with pytest.raises(pa.ArrowInvalid):
        read_arrow(bytes(content))
