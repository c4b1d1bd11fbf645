"""The contact sheet shows the tiles that were found, in their order."""

import json
import shutil

import numpy as np
import pytest
from matplotlib.image import imread

from terrafm.data.shards.dataset import Dataset
from terrafm.embed.schema import read_manifest
from terrafm.errors import UsageError
from terrafm.search.contact_sheet import draw_contact_sheet
from terrafm.search.preview import Preview
from terrafm.search.previews import open_previews
from terrafm.search.similar import find_similar

DOTS = 130


class Greys:
    """Pictures of one grey each, darker from rank to rank; the query is the brightest."""

    def preview(self, tile):
        if tile["tile_id"] == "nothing":
            return None
        level = 1 - tile.get("rank", 0) / 20
        return Preview("s2_l2a", np.full((30, 30, 3), level, np.float32))


def tile(name, rank=None):
    found = {
        "tile_id": name, "longitude": 15.0, "latitude": 45.0, "land_cover": 10,
        "land_cover_name": "Tree cover", "times": {"s1": None, "s2_l1c": None, "s2_l2a": None},
    }  # fmt: skip
    return found if rank is None else found | {"rank": rank, "similarity": 0.9, "distance_km": 3.0}


def sheet(count, path, names="tile_{}".format, model="terrafm_tiny"):
    result = {
        "model": model, "tiles": count, "query": tile("the query"),
        "neighbours": [tile(names(rank), rank) for rank in range(1, count + 1)],
    }  # fmt: skip
    draw_contact_sheet(result, Greys(), str(path))
    return imread(path)[..., :3]


def level(image, left, top):
    """Brightness of a spot, inches from the top left."""
    return float(image[round(top * DOTS), round(left * DOTS)].mean())


def test_neighbours_stand_beside_and_below_the_query_by_rank(tmp_path):
    image = sheet(16, tmp_path / "sheet.png")
    columns, rows = [1.2 + 2.07 * i for i in range(5)], [1.6 + 2.57 * i for i in range(4)]
    spots = [(column, row) for row in rows[:2] for column in columns[2:]]
    spots += [(column, row) for row in rows[2:] for column in columns]
    levels = [level(image, 2.2, 2.6), *(level(image, *spot) for spot in spots)]
    assert levels == sorted(levels, reverse=True)
    assert len(set(levels)) == 17


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5, 7, 12])
def test_any_number_of_neighbours_fits(tmp_path, count):
    image = sheet(count, tmp_path / "sheet.png")
    edges = np.concatenate([image[:10].ravel(), image[-4:].ravel(), image[:, :10].ravel(),
                            image[:, -10:].ravel()])  # fmt: skip
    assert (edges == 1).all()
    assert (image.mean(-1) < 0.99).sum() > count * 240**2


def test_of_hundreds_the_first_are_drawn(tmp_path):
    image = sheet(300, tmp_path / "sheet.png", names=lambda rank: "nothing")
    assert image.shape[0] < 60 * DOTS


def test_names_and_looks_may_be_odd(tmp_path):
    sheet(3, tmp_path / "sheet.png", names=lambda rank: "$\\frac{a}_" + "x" * 90)
    assert (sheet(2, tmp_path / "sheet.png", names=lambda rank: "nothing") < 0.9).any()


def test_a_model_may_be_named_as_a_formula_is(tmp_path):
    assert sheet(3, tmp_path / "sheet.png", model="$\\frac$").size


def test_the_same_search_gives_the_same_file(embeddings, tmp_path):
    result = find_similar(embeddings, "tile_03", count=3)
    tiles = [result["query"], *result["neighbours"]]
    for name in ("a.png", "b.png"):
        previews = open_previews(read_manifest(embeddings), None, tiles)
        draw_contact_sheet(result, previews, str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_look_is_natural_colour_of_the_dataset_else_radar(embeddings, make_dataset, tmp_path):
    manifest = read_manifest(embeddings)
    dataset = Dataset.open(manifest.data)
    preview = open_previews(manifest, None, [tile("tile_03")]).preview(tile("tile_03"))
    pixels = dataset.read_tile(3)["s2_l2a_10m"]
    bands = next(g.bands for g in dataset.groups if g.name == "s2_l2a_10m")
    assert preview.modality == "s2_l2a"
    for colour, band in enumerate(("B04", "B03", "B02")):
        expected = pixels[bands.index(band)] * np.float32(1e-4)
        np.testing.assert_allclose(preview.image[..., colour], expected, rtol=1e-6)
    radar = tmp_path / "radar"
    shutil.copytree(manifest.data, radar)
    for name in ("manifest.json", "manifest-1.json"):
        fields = json.loads((radar / name).read_text())
        fields["groups"] = [g for g in fields["groups"] if g["modality"] == "s1"]
        (radar / name).write_text(json.dumps(fields))
    preview = open_previews(manifest, str(radar), [tile("tile_03")]).preview(tile("tile_03"))
    assert preview.modality == "s1"
    s1 = dataset.read_tile(3)["s1_10m"] * np.float32(0.01)
    np.testing.assert_allclose(preview.image[..., 2], s1[0] - s1[1], atol=1e-4)


def test_pixels_that_are_gone_are_one_line(embeddings, make_dataset, tmp_path):
    manifest = read_manifest(embeddings).model_copy(update={"data": str(tmp_path / "gone")})
    with pytest.raises(UsageError, match=r"no pictures .*gone does not exist; --data URI says"):
        open_previews(manifest, None, [])
    other = make_dataset(tmp_path / "other", seed=5)
    with pytest.raises(UsageError, match="no version with fingerprint"):
        open_previews(manifest, other, [])
