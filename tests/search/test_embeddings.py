"""The reading side of a folder of embeddings."""

import shutil

import pyarrow.parquet as pq
import pytest

from terrafm.errors import TerraFMError
from terrafm.search.embeddings import Embeddings


@pytest.mark.parametrize("name", ["tile_id", "embedding"])
def test_a_part_that_could_run_code_is_refused(name, embeddings, tmp_path, hostile, proof):
    folder = shutil.copytree(embeddings, tmp_path / "embeddings")
    (part, *_) = sorted(folder.rglob("part-*.parquet"))
    table = pq.read_table(part)
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, hostile(table.num_rows)), part)
    with pytest.raises(TerraFMError, match=rf"{part.name}: column {name}.*run code"):
        list(Embeddings(folder).vectors())
    assert not proof.exists()
