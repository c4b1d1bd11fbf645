"""Names from files and arguments are printed as they are, and never steer the terminal."""

import io
import logging
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from terrafm.api.arguments import telling
from terrafm.terminal import PlainConsole, PlainFormatter, console, errors

TITLE, CLEAR = "\x1b]0;owned\x07", "\x1b[2J"
NAMES = ["a[/b]", "[red]wood[/red]", "[bold]", ":fire:", "\\[red]", "[link=http://x]y[/link]"]
# What markup, and terminals, make something of is rare in any text.
ANY = st.lists(st.one_of(st.text(), st.sampled_from([*NAMES, TITLE, CLEAR, "\x9b2J"])))
ANY = ANY.map("".join)


def shown(renderable, **options):
    """What reaches a terminal that has no colours."""
    file = io.StringIO()
    plain = PlainConsole(file=file, force_terminal=True, color_system=None, width=500)
    plain.print(renderable, highlight=False, **options)
    return file.getvalue()


def letters(text):
    """A text without what is broken or replaced."""
    marks = {c for c in text if unicodedata.category(c) in ("Cc", "Cs")} | {"\ufffd"}
    return "".join(c for c in text if c not in marks and not c.isspace())


def steers(text):
    """The control characters of a text, but for ends of lines."""
    return {c for c in text if unicodedata.category(c) == "Cc"} - {"\n"}


@given(ANY)
def test_any_text_comes_out_whole_and_steers_nothing(text):
    for renderable in (text, Text(text)):
        for soft_wrap in (True, False):
            printed = shown(renderable, soft_wrap=soft_wrap)
            assert letters(printed) == letters(text)
            assert not steers(printed)


@given(ANY, ANY, ANY, ANY)
def test_so_does_any_text_of_a_table(title, head, cell, caption):
    table = Table(title=title, caption=caption, box=None)
    table.add_column(head, overflow="fold")
    table.add_row(cell)
    printed = shown(table)
    assert letters(printed) == "".join(map(letters, (title, head, cell, caption)))
    assert not steers(printed)


def test_a_control_character_is_seen_and_takes_its_place_in_a_table():
    table = Table("name", "size")
    table.add_row(f"a{TITLE}", "1")
    table.add_row("b\rc\x9b2Jd\x7f", "2")
    lines = shown(table).splitlines()
    assert "a\ufffd]0;owned\ufffd" in lines[3]
    assert "b\ufffdc\ufffd2Jd\ufffd" in lines[4]
    assert len({len(line) for line in lines}) == 1


def test_what_no_encoding_holds_is_replaced():
    assert shown("a\udcffb") == "a\ufffdb\n"


@pytest.mark.parametrize("shared", [console, errors])
@pytest.mark.parametrize("name", [*NAMES, "a\ufffd]0;b"])
def test_all_verbs_print_so(shared, name):
    with shared.capture() as printed:
        shared.print(name.replace("\ufffd", "\x1b"), highlight=False)
    assert printed.get() == f"{name}\n"


def test_a_terminal_still_gets_colours_and_a_hidden_cursor():
    file = io.StringIO()
    terminal = PlainConsole(file=file, force_terminal=True, color_system="standard")
    terminal.print(Text("bad", style="red"))
    terminal.show_cursor(False)
    assert file.getvalue() == "\x1b[31mbad\x1b[0m\n\x1b[?25l"


def test_what_is_being_done_is_told_in_its_own_words(monkeypatch):
    file = io.StringIO()
    terminal = PlainConsole(file=file, force_terminal=True, color_system=None, width=200)
    monkeypatch.setattr("terrafm.api.arguments.console", terminal)
    with telling(True, "computing features") as tell:
        tell(f"features of /w[/b]/[red]:fire:{TITLE}")
    assert "features of /w[/b]/[red]:fire:\ufffd]0;owned" in file.getvalue()


def test_log_lines_steer_nothing():
    record = logging.LogRecord("terrafm", logging.WARNING, "", 1, "tile %s", (TITLE,), None)
    told = PlainFormatter("terrafm: %(message)s").format(record)
    assert told == "terrafm: tile \ufffd]0;owned\ufffd"


def test_warnings_of_a_verb_steer_nothing(run, monkeypatch, small_dataset):
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])

    def told(*_, **__):
        logging.getLogger("terrafm.data").warning("tile %s is bad", TITLE)
        return []

    monkeypatch.setattr("terrafm.data.shards.tile_export.export_tile", told)
    _, _, told = run("tile", small_dataset, "tile_01", "--output", "x")
    assert told == "terrafm: tile \ufffd]0;owned\ufffd is bad\n"


@pytest.fixture(scope="module")
def odd(make_dataset, tmp_path_factory):
    """A dataset whose path, tiles and classes are named as markup is."""
    folder = tmp_path_factory.mktemp("odd") / "a[/b]" / ":fire:" / "dataset"
    return make_dataset(folder, tile_id="[bold]{:02d}", class_name="[red]wood :{}[/oops]" + CLEAR)


def test_inspect_names_paths_and_classes_as_they_are(run, odd):
    code, out, told = run("inspect", odd, "--quiet")
    assert (code, told) == (0, "")
    assert out.splitlines()[0] == odd
    for name in ("10", "80"):
        assert f"[red]wood :{name}[/oops]\ufffd[2J" in out


def test_verify_names_damaged_tiles_as_they_are(run, odd, tmp_path):
    copy = Path(shutil.copytree(odd, tmp_path / "c[/b]" / "dataset"))
    shard = copy / "shards" / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(bytes(content))
    code, out, told = run("verify", copy)
    assert code == 1
    assert f"of {copy} has 1 faults" in out
    assert f"of {copy} has 1 faults" in told
    assert re.search(r"│ \[bold\]0\d │", out)


def test_a_tile_names_the_files_it_wrote(run, odd, tmp_path):
    target = tmp_path / "[red]out" / "x[/y]"
    code, out, told = run("tile", odd, "[bold]01", "--output", target, "--quiet")
    assert (code, told) == (0, "")
    written = [line.removeprefix("wrote ") for line in out.splitlines()]
    assert sorted(written) == sorted(map(str, target.iterdir()))
    assert all("[bold]01" in line for line in written)


def test_a_refusal_names_the_path_as_it_is(refused, tmp_path):
    assert f"{tmp_path}/:fire:[/b]/none" in refused("inspect", tmp_path / ":fire:[/b]" / "none")


def test_a_refusal_steers_nothing(refused, tmp_path):
    assert f"{tmp_path}/x\ufffd[2J does not exist" in refused("inspect", tmp_path / f"x{CLEAR}")
