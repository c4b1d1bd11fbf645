"""Neighbours in a folder of embeddings: which, where, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics.pairwise import cosine_similarity

from terrafm.data.shards.dataset import Dataset
from terrafm.embed.schema import MANIFEST, TILES
from terrafm.embed.source import DatasetTiles
from terrafm.errors import TerraFMError, UsageError
from terrafm.search.embeddings import Embeddings
from terrafm.search.similar import find_similar


def test_neighbours_are_those_of_a_comparison_with_all(embeddings, vectors):
    similarity = cosine_similarity(vectors.astype(float))
    for row in range(len(vectors)):
        result = find_similar(embeddings, f"tile_{row:02d}", count=4)
        order = [other for other in np.argsort(-similarity[row]).tolist() if other != row][:4]
        found = result["neighbours"]
        assert [tile["tile_id"] for tile in found] == [f"tile_{other:02d}" for other in order]
        expected = similarity[row][order].tolist()
        assert [tile["similarity"] for tile in found] == pytest.approx(expected, abs=1e-8)
        assert [tile["rank"] for tile in found] == [1, 2, 3, 4]
        assert result["query"]["tile_id"] == f"tile_{row:02d}"


def test_a_neighbour_is_described_as_its_dataset_does(embeddings, small_dataset):
    result = find_similar(embeddings, "tile_03", count=99)
    dataset = Dataset.open(small_dataset)
    assert len(result["neighbours"]) == result["tiles"] == 10
    for tile in (result["query"], *result["neighbours"]):
        row = dataset.row_of(tile["tile_id"])
        assert tile["land_cover_name"] == f"class {dataset.land_cover[row]}"
        assert tile["times"] == {
            "s1": "2021-01-01T00:00:00Z", "s2_l1c": None, "s2_l2a": "2021-01-01T00:00:00Z",
        }  # fmt: skip
        number = int(tile["tile_id"][-2:])
        # The tiles stand side by side, 960 m apart; a degree of longitude at the equator is 111 km.
        assert tile["longitude"] == pytest.approx(15 + (480 + 960 * number) / 111_276, abs=1e-4)
        if tile is not result["query"]:
            assert tile["distance_km"] == pytest.approx(0.96 * abs(number - 3), rel=0.001)


def test_a_point_is_the_tile_that_covers_it_or_the_nearest_to_it(embeddings):
    result = find_similar(embeddings, "tile_05", count=1)
    longitude, latitude = result["query"]["longitude"], result["query"]["latitude"]
    for east, north in ((0, 0), (0.004, 0.004), (0, 0.006)):
        at = find_similar(embeddings, point=(longitude + east, latitude + north), count=1)
        assert at == result
    with pytest.raises(
        UsageError, match=r"no tile of .* lies at 16,0\.1: the nearest is tile_10, "
    ):
        find_similar(embeddings, point=(16, 0.1))


def test_equal_tiles_are_in_the_order_of_their_ids(write, small_dataset, tmp_path):
    tiles = DatasetTiles(small_dataset)
    order = [7, 3, 10, 0, 5, 1]
    folder = write(
        str(tmp_path / "e"), [tiles.place(row) for row in order], np.ones((6, 5), np.float32),
        data=small_dataset, rows=2,
    )  # fmt: skip
    for query, expected in (("tile_03", ["tile_00", "tile_01", "tile_05"]),
                            ("tile_10", ["tile_00", "tile_01", "tile_03"])):  # fmt: skip
        found = find_similar(folder, query, count=3)["neighbours"]
        assert [tile["tile_id"] for tile in found] == expected
        assert {tile["similarity"] for tile in found} == {1.0}


def test_tiles_without_a_direction_are_counted(write, small_dataset, vectors, tmp_path):
    tiles = DatasetTiles(small_dataset)
    broken = vectors.copy()
    broken[2], broken[9, 3] = 0, np.nan
    places = [tiles.place(row) for row in range(11)]
    folder = write(str(tmp_path / "e"), places, broken, data=small_dataset)
    result = find_similar(folder, "tile_00", count=99)
    assert result["without_direction"] == 2
    assert {"tile_02", "tile_09"}.isdisjoint(tile["tile_id"] for tile in result["neighbours"])
    with pytest.raises(TerraFMError, match="no direction"):
        find_similar(folder, "tile_02")


def test_memory_does_not_grow_with_the_number_of_parts(write, small_dataset, tmp_path):
    (place,) = [DatasetTiles(small_dataset).place(0)]
    many = np.ones((120, 4096), np.float32)
    folder = Embeddings(write(str(tmp_path / "e"), [place] * 120, many, data="", rows=6))
    part = 6 * 4096 * 4
    del many
    before, most = pa.total_allocated_bytes(), 0
    for ids, _ in folder.vectors():
        assert len(ids) == 6
        most = max(most, pa.total_allocated_bytes() - before)
    # A few parts are read ahead, of 120.
    assert part < most < 20 * part


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tile": "tile_3"}, r"no tile 'tile_3'; the nearest ids are tile_03, "),
        ({"tile": "tile_03", "count": 0}, "must be at least 1, not 0"),
        ({}, "either a tile or a point"),
        ({"tile": "tile_03", "point": (15, 0)}, "either a tile or a point"),
        ({"point": (181, 0)}, "longitude must lie between -180 and 180 degrees, not 181"),
        ({"point": (15, -90.5)}, "latitude must lie between -90 and 90 degrees, not -90.5"),
        ({"point": (float("nan"), 0)}, "longitude must lie"),
    ],
)
def test_what_cannot_be_found_is_one_line(embeddings, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        find_similar(embeddings, **arguments)
    assert "\n" not in str(caught.value)


def copied(embeddings, folder):
    for file in Path(embeddings).rglob("*.*"):
        if file.is_file():
            target = folder / file.relative_to(embeddings)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return folder


def test_a_folder_that_is_not_whole_is_one_line(embeddings, tmp_path):
    with pytest.raises(UsageError, match="holds no embeddings"):
        find_similar(tmp_path / "nothing", "tile_03")
    folder = copied(embeddings, tmp_path / "cut")
    part = folder / TILES / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-200])
    with pytest.raises(TerraFMError, match=r"part-00001\.parquet: .*restore it or embed again"):
        find_similar(folder, "tile_03")
    part.unlink()
    with pytest.raises(TerraFMError, match=r"part-00001\.parquet: it is missing"):
        find_similar(folder, "tile_03")
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["parts"][0]["rows"] = 5
    (folder / MANIFEST).write_text(
        json.dumps(manifest | {"rows": 5, "parts": manifest["parts"][:1]})
    )
    with pytest.raises(TerraFMError, match="does not match its manifest: 4 rows, not 5"):
        find_similar(folder, "tile_03")
    (folder / MANIFEST).unlink()
    (folder / "job.json").write_text("{}")
    with pytest.raises(UsageError, match="unfinished"):
        find_similar(folder, "tile_03")


def test_a_folder_in_an_object_store(embeddings, s3_bucket):
    from terrafm.storage import write_bytes

    for file in Path(embeddings).rglob("*.*"):
        if file.is_file():
            write_bytes(f"{s3_bucket}/e/{file.relative_to(embeddings)}", file.read_bytes())
    here, there = find_similar(embeddings, "tile_03"), find_similar(f"{s3_bucket}/e", "tile_03")
    assert there["neighbours"] == here["neighbours"]
