"""The files that a reader wants, of the parts that a worker wanted.

A part is what is lost with a worker, some hundred rows. Readers want few files of one row group of
about 128 MB each, as the GeoParquet guide advises, and numbers of eight bits need to know all rows
first. So parts wait in `parts/` until every row is embedded; then each file is put together of the
parts that follow each other in the plan. Which those are depends on the plan alone, so that this
too can be killed and done twice.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from terrafm.embed.quantisation import Quantisation, Range, Scales
from terrafm.embed.request import Request
from terrafm.embed.rows import file_bytes
from terrafm.embed.schema import PARTS, TILES, PartFile, part_name
from terrafm.embed.stac import Extent, header
from terrafm.embed.work import ENTRIES, Entry, write_part
from terrafm.ray.parts import Part, Work
from terrafm.storage import join, parse_json, read_bytes, write_bytes
from terrafm.storage.parquet import read_parquet
from terrafm.storage.records import Count, Finite, validated

ROW_GROUP_BYTES = 128 << 20
_BYTES = {"float32": 4, "int8": 1}
# Of the columns beside the embedding, as they lie in memory.
_ROW_BYTES = 300
_PACKED = "packed"


@dataclass(frozen=True)
class Packed:
    """What is kept of a file that is put together.

    Attributes:
        file: where its rows are.
        extent: what they cover, on the ground and in time.
        least_cosine: of a row to its float32; 1 where nothing is quantised.
        cosines: sum of those of all rows.
        compared: how many those are.
    """

    file: PartFile
    extent: Extent
    least_cosine: Finite = 1.0
    cosines: Finite = 0.0
    compared: Count = 0

    def to_json(self) -> str:
        """For a file beside the entries of the parts."""
        file, extent = self.file.model_dump(mode="json"), vars(self.extent)
        return json.dumps({**vars(self), "file": file, "extent": extent})

    @classmethod
    def read(cls, output: str, number: int) -> "Packed | None":
        """That of a file which is finished; None where it is not."""
        try:
            return validated(parse_json(read_bytes(packed_uri(output, number))), cls)
        except (FileNotFoundError, ValueError):
            return None


def packed_uri(output: str, number: int) -> str:
    """Where the entry of a packed file lies."""
    return join(output, ENTRIES, f"{part_name(number)}.{_PACKED}")


def parts_per_file(request: Request) -> int:
    """How many parts of the plan a file is of: of the request alone."""
    row = request.dim * _BYTES["int8" if request.quantise else "float32"] + _ROW_BYTES
    return max(1, round(ROW_GROUP_BYTES / (row * request.rows_per_part)))


@dataclass(frozen=True)
class OpenPacking:
    """Puts files together; a part is a range of the plan's parts.

    Attributes:
        request: what is made.
        output: URI of the folder.
        files: their rows, for each part of the plan; None where it has none.
        scales: of numbers of eight bits; None keeps float32.
    """

    request: Request
    output: str
    files: tuple[PartFile | None, ...]
    scales: Scales | None

    def __call__(self, device: str) -> Work:
        """Nothing is opened before."""
        return self._pack

    def _pack(self, part: Part) -> Packed | None:
        names = [file.name for file in self.files[part.first : part.stop] if file is not None]
        if not names:
            return None
        table = pa.concat_tables([read_parquet(join(self.output, PARTS, name)) for name in names])
        cosines = np.zeros(0)
        if self.scales is not None:
            table, cosines = _quantised(table, self.request.dim, self.scales)
        extent = Extent.of(table)
        emb = header(self.request, self.scales)
        content = file_bytes(table.replace_schema_metadata(), emb)
        file = write_part(self.output, TILES, part_name(part.number), content, table.num_rows)
        packed = Packed(
            file,
            extent,
            least_cosine=float(cosines.min(initial=1.0)),
            cosines=float(cosines.sum()),
            compared=len(cosines),
        )
        write_bytes(packed_uri(self.output, part.number), packed.to_json().encode())
        return packed


def scales_over(entries: Sequence[Entry]) -> Scales:
    """Scales that cover the rows of all parts."""
    return Scales.over(Range.joined([entry.range for entry in entries if entry.range is not None]))


def quantisation_of(scales: Scales, packed: Sequence[Packed]) -> Quantisation:
    """The scales with what they cost, over all files."""
    compared = sum(found.compared for found in packed)
    return Quantisation(
        **scales.model_dump(),
        least_cosine=min(found.least_cosine for found in packed),
        mean_cosine=sum(found.cosines for found in packed) / compared if compared else 1.0,
    )


def _quantised(table: pa.Table, dim: int, scales: Scales) -> tuple[pa.Table, NDArray[np.float64]]:
    """The table with bytes in place of its embeddings, and the rows' cosines to what they were."""
    column = table["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
    numbers = pa.array(scales.encode(vectors).reshape(-1), pa.int8())
    place = table.schema.get_field_index("embedding")
    field = pa.field("embedding", pa.list_(pa.int8(), dim), nullable=False)
    stored = pa.FixedSizeListArray.from_arrays(numbers, dim)
    return table.set_column(place, field, stored), scales.cosines(vectors)
