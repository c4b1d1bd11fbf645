"""`terrafm report`: on a disk and in a store, once and again and again."""

import json

import pytest

from terrafm.config import load_config
from terrafm.report import writing
from terrafm.report.kinds import Wanted, find_targets
from terrafm.storage import exists, join, read_bytes, write_bytes
from terrafm.storage.lease_record import Holder


def test_a_page_is_written_whole(run, run_folder, tmp_path):
    folder = run_folder().started().lines(30)
    code, out, errors = run("report", folder.path, "--output", tmp_path / "new" / "page.html")
    assert (code, errors) == (0, "")
    assert "wrote" in out
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new" / "page.html").read_text().startswith("<!doctype html>")


def test_runs_datasets_and_embeddings_share_a_page(
    run, run_folder, small_dataset, embedded, tmp_path
):
    one, two = run_folder("one").started().lines(5), run_folder("two").started().lines(5)
    code, _, _ = run(
        "report", one.path, two.path, small_dataset, embedded, "--output", tmp_path / "p.html"
    )
    assert code == 0
    page = (tmp_path / "p.html").read_text()
    title = "2 runs, 1 dataset, 1 embedding folder: one, two, dataset, embedded"
    assert f"<h1>{title}</h1>" in page
    for title in ("Verdict", "Quick-looks", "How they spread"):
        assert f">{title}</h2>" in page


def test_a_run_in_a_store_is_read_and_its_page_written_there(run, run_folder, s3_bucket):
    folder = run_folder().started().lines(30).scores(10, 30)
    uri = join(s3_bucket, "run")
    for path in folder.path.rglob("*"):
        if path.is_file():
            write_bytes(f"{uri}/{path.relative_to(folder.path)}", path.read_bytes())
    code, _, errors = run("report", uri, "--output", join(s3_bucket, "page.html"))
    assert (code, errors) == (0, "")
    assert b"kNN accuracy" in read_bytes(join(s3_bucket, "page.html"))


def test_watching_writes_again_until_the_run_ends(run_folder, tmp_path):
    folder = run_folder().started().lines(10)
    lease = folder.path / ".lease"
    lease.write_bytes(Holder.here("terrafm pretrain").content(1))
    output, pages = tmp_path / "page.html", []

    def pause(seconds):
        assert seconds == 30
        pages.append(output.read_text())
        folder.lines(10)
        if len(pages) == 2:
            lease.unlink()

    targets, wanted = find_targets([str(folder.path)]), Wanted(load_config(None, []))
    sizes = []
    writing.watch(targets, wanted, str(output), 30, sizes.append, pause)
    assert len(sizes) == 3
    # Where scripts run, the page follows by one of them, which can be stopped.
    assert '<noscript><meta http-equiv="refresh" content="30"></noscript>' in pages[0]
    assert 'data-seconds="30"' in pages[0]
    last = output.read_text()
    assert 'http-equiv="refresh"' not in last
    assert "data-seconds" not in last
    assert "30 of 1,000 steps" in last


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["/no/such"], "does not exist"),
        (["EMPTY"], "is none of what a report can be about"),
        (["FILE"], "is none of what a report can be about"),
        (["RUN/checkpoints"], "give the run's folder"),
        (["RUN", "RUN/"], "was given twice"),
        (["RUN", "--output", "page"], "ends in .html"),
        (["RUN", "--output", "DIR.html"], "is a folder"),
        (["RUN"] * 17, "room for 16 folders"),
        (["RUN", "--set", "data.no_such=1"], "data.no_such"),
    ],
)
def test_mistakes_are_one_line(refused, run_folder, tmp_path, names, said):
    folder = run_folder().started().lines(5)
    (tmp_path / "empty").mkdir()
    (tmp_path / "d.html").mkdir()
    (tmp_path / "file").write_text("x")
    places = {name: tmp_path / name.lower() for name in ("EMPTY", "FILE")}
    places["DIR.html"] = tmp_path / "d.html"
    words = [str(places.get(name, name)).replace("RUN", str(folder.path)) for name in names]
    output = [] if "--output" in words else ["--output", str(tmp_path / "page.html")]
    assert said in refused("report", *words, *output)
    assert not exists(str(tmp_path / "page.html"))


def test_a_dataset_that_is_damaged_is_one_line(refused, tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "manifest.json").write_text(json.dumps({"no": "manifest"}))
    message = refused("report", tmp_path / "d", "--output", tmp_path / "p.html")
    assert "manifest" in message
