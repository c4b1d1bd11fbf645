import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terrafm.data.archive import Listed
from terrafm.data.land.selection import (
    Limits,
    choose_tiles,
    days_from_anchor,
    drops_water,
    fill_quotas,
    stratum_columns,
)

DAY = "2022-01-{:02d}T10:00:00"


def listed(l2a=None, l1c=None, s1=None, clouds=(None, None)):
    found = {
        "s2_l2a": l2a and Listed(DAY.format(l2a), clouds[0]),
        "s2_l1c": l1c and Listed(DAY.format(l1c), clouds[1]),
        "s1": s1 and Listed(DAY.format(s1)),
    }
    return {modality: product for modality, product in found.items() if product}


def test_days_count_from_the_first_anchor_with_a_time():
    times = {"s1": DAY.format(4), "s2_l2a": "", "s2_l1c": "2022-01-01T10:00:00Z"}
    assert days_from_anchor(times) == {"s1": 3.0, "s2_l1c": 0.0}
    assert days_from_anchor({"s1": "", "s2_l2a": "yesterday"}) == {}


@pytest.mark.parametrize(
    ("limits", "products", "left_out"),
    [
        (Limits(), listed(1, 20, 30), {}),
        (Limits(max_gap_days=7), listed(1, 8, 9), {"s1": "gap"}),
        (Limits(max_gap_days=0), listed(1, 1, 2), {"s1": "gap"}),
        (Limits(max_cloud_cover=20), listed(1, 1, 1, (20, 21)), {"s2_l1c": "clouds"}),
        # Without the cloudy Level-2A, days count from Level-1C.
        (Limits(7, 20), listed(1, 20, 22, (50, 5)), {"s2_l2a": "clouds"}),
        (Limits(7, 20), {"s1": Listed(), "s2_l2a": Listed(DAY.format(1))}, {}),
    ],
)
def test_limits(limits, products, left_out):
    assert limits.left_out(products) == left_out


def test_the_ocean_rule_drops_its_share_whoever_asks():
    names = [f"tile_{i}" for i in range(20_000)]
    dropped = [drops_water(name, 3, 0.98) for name in names]
    assert np.mean(dropped) == pytest.approx(0.98, abs=0.005)
    assert dropped[::-1] == [drops_water(name, 3, 0.98) for name in reversed(names)]
    assert not any(drops_water(name, 3, 0.0) for name in names[:100])
    assert all(drops_water(name, 3, 1.0) for name in names[:100])


sizes_and_total = st.lists(st.integers(0, 60), min_size=1, max_size=12).flatmap(
    lambda sizes: st.tuples(st.just(sizes), st.integers(0, sum(sizes)))
)


@given(sizes_and_total)
def test_quotas_are_as_equal_as_the_strata_allow(case):
    sizes, total = np.array(case[0], np.int64), case[1]
    quotas = fill_quotas(sizes, total)
    assert quotas.sum() == total
    assert (quotas <= sizes).all()
    # Only a stratum that gives all it has may be more than one below the best served.
    assert (quotas[quotas < sizes] >= quotas.max() - 1).all()


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=80),
    st.integers(1, 90),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_the_choice_is_exact_and_does_not_depend_on_the_order(classes, most, seed, random):
    ids = [f"t{i}" for i in range(len(classes))]
    strata = np.array(classes)
    kept = choose_tiles(ids, [strata], most, seed)
    assert kept.sum() == min(most, len(ids))
    _, sizes = np.unique(strata, return_counts=True)
    counts = [int(kept[strata == code].sum()) for code in np.unique(strata)]
    if len(ids) > most:
        assert counts == fill_quotas(sizes, most).tolist()
    order = list(range(len(ids)))
    random.shuffle(order)
    again = choose_tiles([ids[i] for i in order], [strata[order]], most, seed)
    assert {ids[i] for i, k in zip(order, again, strict=True) if k} == {
        name for name, k in zip(ids, kept, strict=True) if k
    }


def test_without_strata_the_choice_is_a_hash():
    ids = [f"t{i}" for i in range(1000)]
    first, second = (choose_tiles(ids, [], 300, seed) for seed in (0, 1))
    assert first.sum() == second.sum() == 300
    assert 60 < (first & second).sum() < 120
    # More room only adds tiles: an archive that grows keeps what it had.
    assert (choose_tiles(ids, [], 400, 0) >= first).all()


def test_strata_are_combinations_of_what_is_spread_over():
    columns = {
        "land_cover": np.array([10, 10, 30]),
        "climate": np.array([1, 2, 1]),
        "latitude": np.array([1.0, 1.0, 50.0]),
        "longitude": np.array([5.0, 5.0, 5.0]),
    }
    cover, region = stratum_columns(("land_cover", "region"), columns)
    assert cover.tolist() == [10, 10, 30]
    assert region.tolist() == [30, 30, 18]
