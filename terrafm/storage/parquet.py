"""Parquet and Arrow files from anyone, read as data and never as code.

A file names the types of its columns, and libraries register types of their own with Arrow, whose
values their code then makes. Ray Data's `ray.data.arrow_pickled_object` unpickles: to list such a
column runs what the file's author wrote. `ray.data.read_parquet` of Ray 2.60 refuses it
(ray-project/ray pull requests 63470 and 64881); with pyarrow, in a process that has imported Ray
Data, nobody does. None of our files needs such a type, so every file that is read goes through
here, and one that has any is refused.
"""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from terrafm.errors import TerraFMError
from terrafm.storage.faults import one_line
from terrafm.storage.files import arrow_filesystem, is_local, read_bytes, resolve


def open_parquet(uri: str) -> pq.ParquetFile:
    """Opens a Parquet file at a URI so that only what is asked for travels: reads its footer.

    Elsewhere than on a disk nothing is read ahead: the footer says where the columns lie, and
    neighbouring ones come in one request.

    Raises:
        OSError, pyarrow.ArrowException: it is missing, damaged, cut short, or could run code.
    """
    if is_local(uri):
        filesystem, path = arrow_filesystem(uri)
        return parquet_file(path, filesystem=filesystem)
    filesystem, path = resolve(uri)
    return parquet_file(filesystem.open(path, "rb", cache_type="none"), pre_buffer=True)


def parquet_file(source: Any, **options: Any) -> pq.ParquetFile:
    """Opens a Parquet file: `pyarrow.parquet.ParquetFile` of the same arguments.

    Raises:
        OSError, pyarrow.ArrowException: it is missing, damaged, cut short, or could run code.
    """
    file = pq.ParquetFile(source, **options)
    refuse_code(file.schema_arrow)
    return file


def read_parquet(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a small Parquet file, which is fetched as a whole.

    Raises:
        TerraFMError: it is missing, damaged, cut short, could run code, or lacks a column.
    """
    try:
        file = parquet_file(pa.BufferReader(read_bytes(uri)))
        absent = sorted(set(columns or ()) - set(file.schema_arrow.names))
        if absent:
            raise pa.ArrowInvalid(f"no column {', '.join(absent)}")
        return file.read(columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise TerraFMError(f"cannot read {uri}: {one_line(error)}") from None


def read_arrow(content: bytes) -> pa.Table:
    """The table of an Arrow file.

    Raises:
        pyarrow.ArrowException: it is damaged, cut short, or could run code.
    """
    file = pa.ipc.open_file(content)
    refuse_code(file.schema)
    return file.read_all()


def refuse_code(schema: pa.Schema) -> None:
    """Refuses columns whose values are made by Python code, however deep they are nested.

    Raises:
        pyarrow.ArrowInvalid: there is one; a `ValueError` as well.
    """
    for field in schema:
        made_by = _python_type(field.type)
        if made_by is not None:
            raise pa.ArrowInvalid(
                f"column {field.name} is of the type {made_by}, which can run code when it is read"
            )


def _python_type(kind: pa.DataType) -> str | None:
    if isinstance(kind, pa.ExtensionType):
        return str(kind.extension_name)
    if isinstance(kind, pa.DictionaryType):
        return _python_type(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _python_type(kind.storage_type)
    inside = (_python_type(kind.field(number).type) for number in range(kind.num_fields))
    return next((name for name in inside if name is not None), None)
