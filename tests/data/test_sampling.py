import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terrafm.data.samples.plan import (
    Plan,
    high_frequency_classes,
    resampled_counts,
)
from terrafm.errors import UsageError

GOLDEN_EPOCH = [2, 0, 1, 4, 5, 3]
GOLDEN_HASH = "c79ee18454a6617e09723eddcb8d6820b051ba63753b1383639d15f12bc0f6c5"
WORLDCOVER = (10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 100)


def tiles(sizes, seed=0):
    codes = np.repeat(np.array(WORLDCOVER)[: len(sizes)], sizes).astype(np.int32)
    return np.random.default_rng(seed).permutation(codes)


@st.composite
def plans(draw):
    """Class sizes, exponent, epoch length and cap that fit together."""
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=8))
    exponent = draw(st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
    cap = draw(st.none() | st.sampled_from([1, 1.5, 2, 3, 10]))
    room = 400 if cap is None else sum(math.floor(cap * n) for n in sizes)
    length = draw(st.none() | st.integers(1, min(400, room)))
    return sizes, {"exponent": exponent, "cap": cap}, length


def reference_counts(sizes, exponent, length, cap):
    """Largest remainder over exact fractions, water-filled; exponents 0 and 1 only."""
    weights = [Fraction(1) if exponent else Fraction(n) for n in sizes]
    room = [length if cap is None else math.floor(Fraction(cap) * n) for n in sizes]
    capped = set()
    while True:
        left = length - sum(room[i] for i in capped)
        total = sum(w for i, w in enumerate(weights) if i not in capped)
        targets = [
            Fraction(room[i]) if i in capped else left * w / total for i, w in enumerate(weights)
        ]
        over = {i for i, t in enumerate(targets) if t > room[i]}
        if not over:
            break
        capped |= over
    counts = [math.floor(t) for t in targets]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - targets[i], i))
    for i in by_remainder[: length - sum(counts)]:
        counts[i] += 1
    return counts


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([30, 10, 60], (30,)),
        ([40, 10, 40, 10], (10, 30)),
        ([7], ()),
        ([5, 5, 5], ()),
        ([1, 1, 2], (30,)),
    ],
)
def test_high_frequency_classes(sizes, expected):
    assert high_frequency_classes(tiles(sizes)) == expected


def test_high_frequency_override():
    land_cover = tiles([30, 10, 60])
    assert high_frequency_classes(land_cover, (20, 10, 95)) == (10, 20)
    assert high_frequency_classes(land_cover, ()) == ()
    with pytest.raises(UsageError, match=r"loss.high_frequency_classes \[95\]"):
        high_frequency_classes(land_cover, (95,))


@given(plans(), st.sampled_from([0.0, 1.0]))
def test_counts_equal_exact_arithmetic(setup, exponent):
    sizes, options, length = setup
    # With a cap below 1 copy of every tile the default length does not fit.
    length = sum(sizes) if length is None else length
    counts = resampled_counts(tiles(sizes), exponent=exponent, length=length, cap=options["cap"])
    assert list(counts) == list(WORLDCOVER[: len(sizes)])
    assert list(counts.values()) == reference_counts(sizes, exponent, length, options["cap"])


def test_counts_by_hand():
    # Shares 0.81, 0.16, 0.03 at g = 0.5: weights 9 : 4 : sqrt(3).
    land_cover = tiles([81, 16, 3])
    total = 9 + 4 + math.sqrt(3)
    exact = [100 * 9 / total, 100 * 4 / total, 100 * math.sqrt(3) / total]
    assert [round(x, 1) for x in exact] == [61.1, 27.2, 11.8]
    assert resampled_counts(land_cover, exponent=0.5) == {10: 61, 20: 27, 30: 12}
    # Three copies at most: 12 -> 9, the three go 9 : 4 to the others.
    assert resampled_counts(land_cover, exponent=0.5, cap=3) == {10: 63, 20: 28, 30: 9}
    # Equal remainders go to the lower codes.
    assert resampled_counts(tiles([5, 5, 5]), exponent=1, length=4) == {10: 2, 20: 1, 30: 1}


@pytest.mark.parametrize("cap", [1, 2, 2.5])
def test_an_epoch_longer_than_the_cap_allows_is_an_error(cap):
    land_cover = tiles([4, 6])
    length = int(cap * 4) + int(cap * 6)
    assert resampled_counts(land_cover, exponent=1, length=length, cap=cap) == {
        10: int(cap * 4),
        20: int(cap * 6),
    }
    with pytest.raises(UsageError, match="raise the cap or shorten the epoch"):
        Plan(land_cover, seed=0, exponent=1, epoch_length=length + 1, cap=cap)


def test_no_tiles_is_an_error():
    with pytest.raises(UsageError, match="without tiles"):
        Plan(np.array([], dtype=np.int32), seed=0, exponent=0.5)


@given(plans(), st.integers(0, 2**63 - 1), st.integers(0, 5))
def test_an_epoch_holds_exactly_the_planned_copies(setup, seed, epoch):
    sizes, options, length = setup
    land_cover = tiles(sizes)
    plan = Plan(land_cover, seed=seed, epoch_length=length, **options)
    rows = plan.epoch(epoch)
    length = len(land_cover) if length is None else length
    assert plan.length == length
    assert len(rows) == length
    copies = np.bincount(rows, minlength=len(land_cover))
    for code, count in plan.counts.items():
        own = copies[land_cover == code]
        assert own.sum() == count
        assert set(own.tolist()) <= {count // len(own), -(-count // len(own))}
        if options["cap"] is not None:
            assert count <= options["cap"] * len(own)


def test_without_resampling_an_epoch_is_a_permutation():
    plan = Plan(tiles([50, 7, 20]), seed=3, exponent=0)
    assert sorted(plan.epoch(4).tolist()) == list(range(77))


@given(plans(), st.integers(0, 1000), st.data())
def test_samples_do_not_depend_on_how_they_are_cut(setup, seed, data):
    sizes, options, length = setup
    plan = Plan(tiles(sizes), seed=seed, epoch_length=length, **options)
    stop = 3 * plan.length + 1
    whole = plan.samples(0, stop)
    cuts = sorted(data.draw(st.sets(st.integers(0, stop), max_size=6)) | {0, stop})
    # Another plan object, asked in another order: the answer is a pure function.
    other = Plan(tiles(sizes), seed=seed, epoch_length=length, **options)
    pieces = [other.samples(a, b) for a, b in reversed(list(itertools.pairwise(cuts)))]
    for expected, *parts in zip(whole, *reversed(pieces), strict=True):
        np.testing.assert_array_equal(np.concatenate(parts), expected)
    epochs, positions, rows = whole
    np.testing.assert_array_equal(epochs * plan.length + positions, np.arange(stop))
    for epoch in range(3):
        np.testing.assert_array_equal(rows[epochs == epoch], plan.epoch(epoch))
    assert other.hash == plan.hash


def test_order_depends_on_seed_and_epoch_and_is_shuffled():
    land_cover = tiles([300, 200])
    plan = Plan(land_cover, seed=0, exponent=0.5)
    assert (plan.epoch(0) != plan.epoch(1)).any()
    assert (plan.epoch(0) != Plan(land_cover, seed=1, exponent=0.5).epoch(0)).any()
    # Classes are spread over the epoch: each quarter has its share within 5 standard deviations.
    quarters = land_cover[plan.epoch(0)].reshape(4, -1) == 10
    share = plan.counts[10] / plan.length
    deviation = math.sqrt(share * (1 - share) / quarters.shape[1])
    assert np.abs(quarters.mean(axis=1) - share).max() < 5 * deviation


def test_order_is_the_same_on_every_machine():
    plan = Plan(np.array([10, 10, 10, 20, 30, 30], dtype=np.int64), seed=7, exponent=0.5)
    assert plan.epoch(0).tolist() == GOLDEN_EPOCH
    assert plan.hash == GOLDEN_HASH


def test_hash_tells_plans_apart():
    land_cover = tiles([30, 20])
    base = {"seed": 0, "exponent": 0.5, "epoch_length": 40, "cap": 2.0}
    hashes = {Plan(land_cover, **base).hash, Plan(land_cover[::-1], **base).hash}
    for change in ({"seed": 1}, {"exponent": 0.6}, {"epoch_length": 41}, {"cap": 3.0}):
        hashes.add(Plan(land_cover, **(base | change)).hash)
    assert len(hashes) == 6
    assert Plan(land_cover.astype(np.int64), **base).hash == Plan(land_cover, **base).hash


def test_copies_of_a_tile_are_spread_apart():
    # 40 tiles of a rare class appear about 100 times each in an epoch of 8,040.
    plan = Plan(tiles([8000, 40]), seed=0, exponent=1)
    rows = plan.epoch(0)
    order = np.argsort(rows, kind="stable")
    gaps = np.diff(order)[np.diff(rows[order]) == 0]
    copies = np.bincount(rows).max()
    # Half of the even distance L / k is guaranteed in time; ranks wobble around it.
    assert gaps.min() > 0.25 * plan.length / copies
    batches = rows[: 8000 // 64 * 64].reshape(-1, 64)
    assert all(len(np.unique(b)) >= 60 for b in batches)


@settings(max_examples=20)
@given(st.integers(0, 1000))
def test_distance_of_copies(seed):
    plan = Plan(tiles([900, 100], seed), seed=seed, exponent=1)
    rows = plan.epoch(0)
    rare = np.flatnonzero(plan._land_cover == 20)
    copies = plan.counts[20] // len(rare)
    for row in rare.tolist():
        gaps = np.diff(np.flatnonzero(rows == row))
        # L / (2 k) less five standard deviations of the number of samples in between.
        expected = plan.length / (2 * (copies + 1))
        assert gaps.min() > expected - 5 * math.sqrt(expected)


@given(plans(), st.data())
def test_tiles_that_are_not_kept_are_as_if_they_were_not_there(plan, data):
    sizes, settings, length = plan
    codes = tiles(sizes)
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes))))
    rest = codes[kept]
    if not len(rest) or (length and settings["cap"] and length > settings["cap"] * len(rest) // 2):
        return
    found = Plan(codes, seed=3, kept=kept, epoch_length=length, **settings)
    alone = Plan(rest, seed=3, epoch_length=length, **settings)
    assert found.length == alone.length
    assert found.counts == alone.counts
    rows = found.epoch(0)
    assert kept[rows].all()
    assert np.unique(codes[rows], return_counts=True)[1].sum() == found.length
    assert found.hash != Plan(codes, seed=3, epoch_length=length or len(codes), exponent=0.0).hash


def test_a_share_of_the_water_is_sampled_the_same_tiles_every_time(small_dataset):
    from terrafm.data.shards.dataset import Dataset

    dataset = Dataset.open(small_dataset)
    assert dataset.sampled(1.0) is None
    none, half = dataset.sampled(0.0), dataset.sampled(0.5)
    water = dataset.land_cover == 80
    assert (none == ~water).all()
    assert half[~water].all()
    assert (half == Dataset.open(small_dataset).sampled(0.5)).all()


WATER = 80


@pytest.fixture(scope="module")
def mostly_water(make_dataset, tmp_path_factory):
    """60 % water, 30 % and 10 % of two other classes."""
    folder = tmp_path_factory.mktemp("water") / "dataset"
    return make_dataset(folder, classes=(WATER,) * 30 + (10,) * 15 + (30,) * 5)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        (["data.water_keep=1"], [WATER]),
        (["data.water_keep=0.02"], [10]),
        (["data.water_keep=0.1"], [10]),
        (["data.water_keep=0"], [10]),
        # What only resamples changes no f_c.
        (["data.water_keep=0.1", "data.resample_exponent=1"], [10]),
        (["data.water_keep=0.1", "data.region_exponent=0.5", "data.epoch_length=7"], [10]),
        (["data.water_keep=0.1", "loss.high_frequency_classes=[80, 30]"], [30, WATER]),
    ],
)
def test_the_rule_of_frequent_classes_counts_the_tiles_of_the_epoch(mostly_water, rules, expected):
    from terrafm.config import load_config
    from terrafm.data.inspect import inspect
    from terrafm.train.worker.setup import TrainingSetup

    config = load_config("demo", rules)
    setup = TrainingSetup.open(config, mostly_water)
    assert list(setup.high_frequency) == expected
    told = inspect(mostly_water, config)
    assert told["high_frequency_classes"] == expected
    assert told["resampled_class_counts"] == setup.plan.counts
    kept = setup.dataset.sampled(config.data.water_keep)
    if kept is not None:
        # The threshold is on the mean share of the classes that are left.
        assert len(setup.plan.sampled) == kept.sum() < 30


def test_a_class_of_which_no_tile_is_sampled_can_not_be_asked_for(mostly_water):
    from terrafm.config import load_config
    from terrafm.train.worker.setup import TrainingSetup

    rules = ["data.water_keep=0", "loss.high_frequency_classes=[80]"]
    with pytest.raises(UsageError, match=r"no tile that is sampled .* there are \[10, 30\]"):
        _ = TrainingSetup.open(load_config("demo", rules), mostly_water).high_frequency
