"""What a job prints commands no terminal."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafm.jobs.shown import Shown, clean

HARMLESS = "step 5\tloss 3.2\r\n\x1b[31mred\x1b[0m \x1b[1;38;5;12mblue\x1b[m \x1b[2Ké 中 "


@pytest.mark.parametrize(
    "hostile",
    [
        "\x1b[2J", "\x1b[1A", "\x1b[10;1H", "\x1b[6n", "\x1b[?1049h", "\x1b[c", "\x1b[>0q",
        "\x1b]0;title\x07", "\x1b]52;c;aGk=\x1b\\", "\x1b]8;;http://a\x07", "\x1bP$q\"p\x1b\\",
        "\x1b_Ga\x1b\\", "\x1bc", "\x1b7", "\x1b(0", "\x9b2J",
        "\x9d0;t\x9c", "\x07", "\x08", "\x00",
        "\x1b]0;two\nlines\x07",
    ],
)  # fmt: skip
def test_what_commands_a_terminal_is_left_out(hostile):
    shown = clean(f"{HARMLESS}{hostile}after")
    assert shown.startswith(HARMLESS)
    assert "\x1b" not in shown.removeprefix(HARMLESS)
    assert shown.endswith("after")


@given(
    st.lists(st.sampled_from([HARMLESS, "\x1b[2J", "\x1b]0;t\x07", "\x1b", "a", "\x1bP", "\x1b\\"]))
)
def test_pieces_give_what_the_whole_gives(parts):
    text = "".join(parts) + "end\n"
    cuts = sorted(random.Random(0).sample(range(len(text)), min(3, len(text))))
    shown = Shown()
    ends = [*cuts, len(text)]
    pieces = "".join(shown(text[a:b]) for a, b in zip([0, *cuts], ends, strict=True))
    whole = Shown()
    assert pieces == whole(text)


def test_a_sequence_that_never_ends_hides_nothing_for_long():
    shown = Shown()
    out = shown("before \x1b]0;") + "".join(shown("x" * 100) for _ in range(60))
    assert out.startswith("before ")
    assert out.count("x") > 1000
