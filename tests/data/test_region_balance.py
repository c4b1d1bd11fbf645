"""Regions balanced within the classes: exact counts, and everything else that a plan promises."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.data.land.regions import region_codes
from terrafm.data.samples.loader import RankLayout
from terrafm.data.samples.plan import Plan, region_counts, resampled_counts
from terrafm.errors import UsageError

GOLDEN_EPOCHS = [[2, 5, 3, 4, 0, 3, 4, 1], [4, 2, 3, 4, 1, 5, 0, 3]]
CODES = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)


@st.composite
def archives(draw):
    """Class and region of each tile, in any order."""
    cells = draw(
        st.dictionaries(
            st.tuples(st.sampled_from(CODES[:5]), st.integers(0, 71)),
            st.integers(1, 25),
            min_size=1,
            max_size=12,
        )
    )
    pairs = np.repeat(np.array(list(cells)), list(cells.values()), axis=0)
    pairs = np.random.default_rng(draw(st.integers(0, 99))).permutation(pairs)
    return pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32)


@st.composite
def plans(draw):
    """Arguments of a plan that fit together."""
    land_cover, regions = draw(archives())
    cap = draw(st.none() | st.sampled_from([1, 1.5, 2, 7]))
    sizes = np.unique(land_cover, return_counts=True)[1]
    room = 300 if cap is None else int(np.floor(cap * sizes).sum())
    return {
        "land_cover": land_cover,
        "regions": regions,
        "seed": draw(st.integers(0, 2**32)),
        "exponent": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "region_exponent": draw(st.sampled_from([0.25, 0.5, 1.0])),
        "cap": cap,
        "epoch_length": draw(st.none() | st.integers(1, min(300, room))),
    }


@given(plans(), st.integers(0, 3))
def test_an_epoch_has_exactly_the_counts_of_classes_and_regions(arguments, epoch):
    plan = Plan(**arguments)
    land_cover, regions, cap = (arguments[k] for k in ("land_cover", "regions", "cap"))
    rows = plan.epoch(epoch)
    assert len(rows) == plan.length
    # The classes' counts are those of a plan without regions.
    by_class = resampled_counts(
        land_cover, exponent=arguments["exponent"], length=plan.length, cap=cap
    )
    assert Counter(land_cover[rows].tolist()) == Counter({k: n for k, n in by_class.items() if n})
    copies = np.bincount(rows, minlength=len(land_cover))
    for code, count in by_class.items():
        own = land_cover == code
        sizes = np.bincount(regions[own], minlength=72)
        expected = region_counts(sizes, count, exponent=arguments["region_exponent"], cap=cap)
        assert expected.sum() == count
        for region in np.flatnonzero(sizes):
            tiles = copies[own & (regions == region)]
            assert tiles.sum() == expected[region]
            assert set(tiles.tolist()) <= {
                expected[region] // len(tiles),
                -(-expected[region] // len(tiles)),
            }
    if cap is not None:
        assert copies.max() <= math.ceil(cap)


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=20).filter(any),
    st.integers(0, 2000),
    st.sampled_from([0.0, 0.3, 1.0]),
)
def test_region_counts_are_the_nearest_integers_to_their_shares(sizes, count, exponent):
    counts = region_counts(np.array(sizes), count, exponent=exponent)
    weights = [n ** (1 - exponent) if n else 0.0 for n in sizes]
    for found, weight in zip(counts.tolist(), weights, strict=True):
        assert abs(found - count * weight / sum(weights)) < 1 + 1e-9
        assert weight or not found
    assert counts.sum() == count


def test_region_counts_by_hand():
    # Shares 16 : 4 : 1 at h = 0.5: weights 4 : 2 : 1.
    sizes = np.array([16, 0, 4, 1])
    assert region_counts(sizes, 70, exponent=0.5).tolist() == [40, 0, 20, 10]
    assert region_counts(sizes, 63, exponent=0.0).tolist() == [48, 0, 12, 3]
    assert region_counts(sizes, 30, exponent=1.0).tolist() == [10, 0, 10, 10]
    # Two copies at most: 8 and 2; the rest goes to the largest.
    assert region_counts(sizes, 30, exponent=1.0, cap=2).tolist() == [20, 0, 8, 2]
    # One and a half: 24, 6 and 1.5, of which a class of 21 has 31 in all.
    assert region_counts(sizes, 31, exponent=1.0, cap=1.5).sum() == 31


@given(plans(), st.data())
def test_any_cursor_continues_the_same_sequence(arguments, data):
    plan, other = Plan(**arguments), Plan(**arguments)
    stop = 2 * plan.length + 3
    whole = plan.samples(0, stop)
    cursor = data.draw(st.integers(0, stop))
    for expected, found in zip(whole, other.samples(cursor, stop), strict=True):
        np.testing.assert_array_equal(found, expected[cursor:])
    assert plan.hash == other.hash


@settings(max_examples=30)
@given(plans(), st.integers(1, 40), st.integers(1, 16))
def test_any_number_of_consumers_sees_the_same_global_batches(arguments, global_batch, micro):
    plan = Plan(**arguments)
    for step in range(3):
        batches = []
        for world in (1, 2, 5):
            rows = []
            for rank in range(world):
                layout = RankLayout(global_batch, world, rank, micro)
                indices, weights = layout.rows(step)
                rows += plan.lookup(indices[weights > 0])[2].tolist()
            batches.append(Counter(rows))
        assert batches[0] == batches[1] == batches[2]
        first = step * global_batch
        assert batches[0] == Counter(plan.samples(first, first + global_batch)[2].tolist())


@given(plans())
def test_without_an_exponent_regions_play_no_part(arguments):
    plain = {k: v for k, v in arguments.items() if k not in ("regions", "region_exponent")}
    one, other = Plan(**plain), Plan(**(arguments | {"region_exponent": 0.0}))
    assert one.hash == other.hash
    np.testing.assert_array_equal(one.epoch(1), other.epoch(1))


def test_the_hash_covers_regions_and_their_exponent():
    land_cover = np.repeat(np.array(CODES[:2], np.int32), 30)
    regions = np.tile(np.arange(3, dtype=np.int32), 20)
    base = {"land_cover": land_cover, "seed": 0, "exponent": 0.5}
    hashes = {
        Plan(**base).hash,
        Plan(**base, regions=regions, region_exponent=0.5).hash,
        Plan(**base, regions=regions, region_exponent=0.6).hash,
        Plan(**base, regions=regions[::-1], region_exponent=0.5).hash,
    }
    assert len(hashes) == 4
    assert Plan(**base, regions=regions.astype(np.int64), region_exponent=0.5).hash in hashes


def test_two_epochs_differ_and_copies_stay_apart():
    land_cover = np.full(1010, 10, np.int32)
    regions = np.repeat(np.array([3, 50], np.int32), [1000, 10])
    plan = Plan(
        land_cover, seed=1, exponent=0.5, regions=regions, region_exponent=1.0, epoch_length=2000
    )
    assert (plan.epoch(0) != plan.epoch(1)).any()
    rows = plan.epoch(0)
    assert np.bincount(regions[rows])[[3, 50]].tolist() == [1000, 1000]
    for row in range(1000, 1010):
        gaps = np.diff(np.flatnonzero(rows == row))
        # A hundred copies: 20 samples apart on average, at least 10 but for what lies between.
        assert gaps.min() > 10 - 5 * math.sqrt(10) / 2
        assert gaps.mean() == pytest.approx(20, rel=0.1)


def test_regions_are_needed_only_to_balance_them():
    land_cover = np.full(4, 10, np.int32)
    for regions in (None, np.zeros(3, np.int32)):
        with pytest.raises(
            UsageError, match=r"data\.region_exponent needs the region of every tile"
        ):
            Plan(land_cover, seed=0, exponent=0.5, regions=regions, region_exponent=0.5)
    Plan(land_cover, seed=0, exponent=0.5)


def test_regions_of_a_dataset_reach_its_plan(small_dataset):
    from terrafm.config import load_config
    from terrafm.train.worker.setup import TrainingSetup

    settings_of = ["head.num_prototypes=32", "data.region_exponent=0.5"]
    setup = TrainingSetup.open(load_config("demo", settings_of), small_dataset)
    dataset = setup.dataset
    expected = region_codes(dataset.latitude, dataset.longitude)
    np.testing.assert_array_equal(dataset.regions, expected)
    assert setup.plan.hash != TrainingSetup.open(load_config("demo"), small_dataset).plan.hash
    assert setup.plan.hash == (
        Plan(
            dataset.land_cover,
            seed=setup.config.train.seed,
            exponent=setup.config.data.resample_exponent,
            epoch_length=setup.config.data.epoch_length,
            cap=setup.config.data.resample_cap,
            regions=expected,
            region_exponent=0.5,
        ).hash
    )


def test_the_order_is_the_same_on_every_machine():
    land_cover = np.array([10, 10, 10, 20, 10, 20], np.int32)
    regions = np.array([7, 7, 7, 7, 30, 31], np.int32)
    plan = Plan(
        land_cover, seed=7, exponent=0.5, regions=regions, region_exponent=1.0, epoch_length=8
    )
    epochs = [plan.epoch(e).tolist() for e in range(2)]
    assert epochs == GOLDEN_EPOCHS
    assert all(a != b for a, b in itertools.pairwise(epochs))
