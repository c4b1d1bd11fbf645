"""Pages about datasets and embeddings: what they say, and that names in them are only text."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from terrafm.config import load_config
from terrafm.data.shards.dataset import Dataset
from terrafm.report.blocks import Points
from terrafm.report.dataset_page import dataset_sections
from terrafm.report.kinds import Wanted, find_targets
from terrafm.report.page import MOST_BYTES, Page, render
from terrafm.report.reference_statistics import REFERENCE

HOSTILE = "<img src=x onerror=alert(1)>"


def wanted():
    return Wanted(load_config(None, []))


def page_of(*uris):
    targets = find_targets(uris)
    sections = []
    for target in targets:
        sections += target.kind.sections([target], wanted())
    return render(Page("Page", "", sections))


def test_a_dataset_shows_where_what_and_how_it_was_read(small_dataset):
    page = page_of(small_dataset)
    for title in ("Where", "Classes", "Bands", "Quarantine", "Quick-looks"):
        assert re.search(rf"<h2[^>]*>{title}</h2>", page), title
    dataset = Dataset.open(small_dataset)
    for code, count in dataset.class_counts().items():
        assert f"{dataset.legend[code]} ({count})" in page
    assert page.count('class="picture"') == len(dataset.class_counts())
    assert "Natural Earth" in page
    assert all(re.findall(r'<img alt="([^"]*)"', page))
    assert len(page) < MOST_BYTES


def test_faults_are_told_by_cause_with_examples(make_dataset, tmp_path):
    uri = make_dataset(tmp_path / "dataset")
    faults = [
        {"what": f"tile_{n}", "modality": "s1", "where": "w", "quarantined": n < 5,
         "why": f"{90 + n} of 100 pixels are missing"}
        for n in range(9)
    ]  # fmt: skip
    faults.append({"what": HOSTILE, "modality": HOSTILE, "why": HOSTILE, "quarantined": True})
    (tmp_path / "dataset" / "quarantine.jsonl").write_text(
        "".join(json.dumps(f) + "\n" for f in faults) + '{"torn'
    )
    page = page_of(uri)
    row = re.search("<tr[^>]*><th scope=.row.>Sentinel-1</th><td class=.n.>9</td>.*?</tr>", page)
    assert '<td class="n">5</td>' in row[0]
    assert "tile_0: 90 of 100 pixels are missing" in row[0]
    assert "10 faults in the archive, 6 of which cost a tile" in page
    assert HOSTILE not in page


def test_class_names_and_tile_ids_are_text(make_dataset, tmp_path):
    uri = make_dataset(tmp_path / "d", tile_id="<b>{:02d}</b>", class_name="<i>class {}</i>")
    page = page_of(uri)
    assert "<b>00" not in page
    assert "<i>class" not in page
    assert "&lt;i&gt;class 10&lt;/i&gt;" in page


def test_an_unreadable_shard_costs_its_pictures_alone(make_dataset, tmp_path):
    uri = make_dataset(tmp_path / "d")
    for shard in (tmp_path / "d" / "shards").iterdir():
        shard.write_bytes(b"x")
    page = page_of(uri)
    assert "tiles cannot be read" in page
    assert ">Classes</h2>" in page


def test_a_map_stays_bounded_and_holds_all_tiles(make_dataset, tmp_path, monkeypatch):
    uri = make_dataset(tmp_path / "d")
    generator = np.random.default_rng(0)
    count = 60_000
    dataset = Dataset.open(uri)
    codes = list(dataset.class_counts())
    monkeypatch.setattr(Dataset, "longitude", generator.uniform(-180, 180, count))
    monkeypatch.setattr(Dataset, "latitude", generator.uniform(-60, 70, count))
    monkeypatch.setattr(Dataset, "land_cover", generator.choice(codes, count))
    from terrafm.report.dataset_page import _map

    found = _map(dataset)
    assert len(found.points) <= 4000
    assert sum(point[2] for point in found.points) == count


def test_a_map_of_a_region_shows_its_surroundings():
    near = Points("t", [(10.0, 50.0, 1, 0), (11.0, 51.0, 1, 0)], ["a"], "")
    west, north, width, height = near.box
    assert (width, height) == (24.0, 10.0)
    assert west < 10 < 11 < west + width
    assert north < -51 < -50 < north + height
    world = Points("t", [(-150.0, -40.0, 1, 0), (170.0, 60.0, 1, 0)], ["a"], "")
    assert world.box[2] == 360
    edge = Points("t", [(179.9, 0.0, 1, 0)], ["a"], "").box
    assert edge[0] + edge[2] <= 180


def test_references_are_reflectances_and_decibels():
    assert 0.05 < REFERENCE["s2_l2a"]["B02"][0] < 0.2
    assert -25 < REFERENCE["s1"]["VH"][0] < REFERENCE["s1"]["VV"][0] < -5


def test_several_datasets_are_told_apart(make_dataset, tmp_path):
    uris = [make_dataset(tmp_path / name, seed=n) for n, name in enumerate("ab")]
    sections = dataset_sections(find_targets(uris), wanted())
    assert {section.title.partition(":")[0] for section in sections} == {"a", "b"}


def test_embeddings_show_how_they_spread_and_their_neighbours(embedded):
    page = page_of(embedded)
    for title in ("Where", "How they spread", "Nearest neighbours of tiles of rare classes"):
        assert f">{title}</h2>" in page
    assert "11 vectors of 8 numbers" in page
    assert page.count('class="picture"') == 5
    assert "of 5 neighbours are of its class" in page


def test_without_their_pixels_neighbours_are_told_in_words(embedded, tmp_path):
    manifest = json.loads(Path(embedded, "embedding.json").read_text())
    copy = tmp_path / "embedded"
    (copy / "tiles").mkdir(parents=True)
    for part in manifest["parts"]:
        content = Path(embedded, "tiles", part["name"]).read_bytes()
        (copy / "tiles" / part["name"]).write_bytes(content)
    (copy / "embedding.json").write_text(json.dumps(manifest | {"data": "/no/such"}))
    page = page_of(str(copy))
    assert "Without pictures: no pictures of the tiles" in page
    assert "of 5 neighbours are of its class" in page


@pytest.mark.parametrize("kind", ["run", "dataset", "embedding folder"])
def test_folders_are_known_by_what_lies_in_them(kind, run_folder, small_dataset, embedded):
    uris = {"run": str(run_folder().path), "dataset": small_dataset, "embedding folder": embedded}
    assert [target.kind.name for target in find_targets([uris[kind]])] == [kind]
