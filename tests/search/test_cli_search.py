"""`terrafm search`: what it prints and writes, and what it refuses."""

import json

import pytest


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Where the contact sheet is written by default."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_table_and_a_contact_sheet(run, embeddings, here):
    code, out, errors = run("search", embeddings, "--tile", "tile_03", "-k", "3", "--quiet")
    assert (code, errors) == (0, "")
    lines = out.splitlines()
    assert lines[0].startswith("tile_03  ")
    assert [line.split()[0] for line in lines if line.strip()[:1].isdigit()] == ["1", "2", "3"]
    assert lines[-1] == "wrote contact_sheet.png"
    assert (here / "contact_sheet.png").stat().st_size > 10_000


def test_json_is_one_object(run, embeddings, here):
    code, out, _ = run(
        "search", embeddings, "--point", "15.05,0.09", "-k", "2", "--json", "--output", "a/b.png"
    )
    assert code == 0
    result = json.loads(out)
    assert len(result["neighbours"]) == 2
    assert result["contact_sheet"] == "a/b.png"
    assert [path.name for path in here.rglob("*.png")] == ["b.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile", "tile_3"], "no tile 'tile_3'; the nearest ids are tile_03"),
        (["--tile", "tile_03", "-k", "0"], "must be at least 1, not 0"),
        ([], "either a tile or a point"),
        (["--point", "-170.5,0"], "km away"),
        (["--point", "200,0"], "longitude must lie between -180 and 180"),
        (["--point", "15"], "--point 15 is not a longitude and a latitude"),
        (["--point", "a,b"], "--point a,b is not a longitude and a latitude"),
    ],
)
def test_bad_input_is_one_line(refused, embeddings, here, arguments, message):
    assert message in refused("search", embeddings, *arguments)
    assert list(here.iterdir()) == []


def test_without_pixels_the_table_is_there(run, refused, embeddings, write, vectors, here):
    import shutil
    from pathlib import Path

    folder = here / "e"
    shutil.copytree(embeddings, folder)
    manifest = folder / "embedding.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(fields | {"data": str(here / "moved")}))
    code, out, errors = run("search", folder, "--tile", "tile_03", "-k", "2")
    assert code == 0
    assert "tile_03" in out
    assert errors.count("\n") == 1
    assert "moved does not exist; --data URI says where the pixels lie now" in errors
    # Whoever asked for the picture is told that there is none by the exit code.
    assert "moved does not exist" in refused(
        "search", folder, "--tile", "tile_03", "--output", "sheet.png"
    )
    assert list(here.glob("*.png")) == []
    code, out, _ = run("search", folder, "--tile", "tile_03", "--data", fields["data"])
    assert code == 0
    assert Path("contact_sheet.png").exists()
