"""Windows cover every pixel, overlap as asked, and lie inside; patches are taken once each."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.embed.windows import Windows
from terrafm.errors import UsageError


@st.composite
def plain(draw):
    side = draw(st.integers(1, 300))
    return Windows(side, draw(st.integers(0, side - 1)))


@st.composite
def on_a_grid(draw):
    step = draw(st.integers(1, 40))
    patches = draw(st.integers(1, 30))
    return Windows(patches * step, draw(st.integers(0, patches - 1)) * step, step)


@given(windows=plain(), length=st.integers(1, 2000))
def test_every_pixel_is_covered_and_windows_lie_inside(windows, length):
    starts = windows.starts(length)
    covered = set()
    for start in starts:
        covered |= set(range(start, min(start + windows.side, length)))
    assert covered == set(range(length))
    assert starts[0] == 0
    if length > windows.side:
        assert starts[-1] + windows.side == length
        assert all(start >= 0 for start in starts)
    else:
        assert starts == [0]


@given(windows=st.one_of(plain(), on_a_grid()), length=st.integers(1, 2000))
def test_neighbours_overlap_as_asked_and_only_the_last_more(windows, length):
    strides = [b - a for a, b in pairwise(windows.starts(length))]
    wanted = windows.side - windows.overlap
    assert all(stride == wanted for stride in strides[:-1])
    assert all(0 < stride <= wanted for stride in strides[-1:])


@given(windows=on_a_grid(), length=st.integers(1, 2000))
def test_on_a_grid_the_last_window_sticks_out_by_less_than_a_patch(windows, length):
    starts = windows.starts(length)
    assert all(start % windows.step == 0 for start in starts)
    end = starts[-1] + windows.side
    assert end >= length
    if length > windows.side:
        assert end - length < windows.step


@settings(max_examples=60)
@given(windows=on_a_grid(), length=st.integers(1, 400))
def test_every_patch_is_taken_once_from_where_it_is_most_central(windows, length):
    starts = [start // windows.step for start in windows.starts(length)]
    side, patches = windows.side // windows.step, -(-length // windows.step)

    def depth(patch, start):
        """How far a window reaches around a patch; beyond the image there is nothing to miss."""
        before = math.inf if start == 0 else patch - start
        after = math.inf if start + side >= patches else start + side - 1 - patch
        return min(before, after)

    taken = []
    for start, (first, stop) in zip(starts, windows.owned(length), strict=True):
        assert start <= first <= stop <= start + side
        taken += range(first, stop)
        for patch in range(first, stop):
            holding = [s for s in starts if s <= patch < s + side]
            # Of an odd overlap the patch in the middle may go either way.
            assert depth(patch, start) >= max(depth(patch, s) for s in holding) - 1
    assert taken == list(range(patches))


def test_the_default_overlap_is_a_quarter_in_whole_patches():
    assert Windows.choose(224, None, 224, dense=False) == Windows(224, 56, 1)
    assert Windows.choose(224, None, 224, dense=True) == Windows(224, 48, 16)
    # Twice as many pixels as the model sees: a patch is 32 of them.
    assert Windows.choose(448, None, 224, dense=True) == Windows(448, 96, 32)


@pytest.mark.parametrize(
    ("side", "overlap", "dense", "message"),
    [
        (64, 64, False, "must be smaller than the window"),
        (230, None, True, "18.29|16.43"),
        (224, 20, True, "must be a multiple of a patch, 16 pixels"),
    ],
)
def test_impossible_windows(side, overlap, dense, message):
    with pytest.raises(UsageError, match=message):
        Windows.choose(side, overlap, 224, dense)
