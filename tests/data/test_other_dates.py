"""Two dates of a place as an augmentation: which tile a view shows, and that its pixels are its."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_stream import CONFIG, assert_equal, options, rows_of

from terrafm.config import load_config
from terrafm.data.samples.crops import draw_views
from terrafm.data.samples.dates import OtherDates
from terrafm.data.samples.loader import BatchBuilder, RankLayout
from terrafm.data.samples.stream import make_batches, stream_batches
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import TerraFMError, UsageError

TWICE = CONFIG.model_copy(update={"other_date": 0.5})
ALWAYS = CONFIG.model_copy(update={"other_date": 1.0})
# Of the small dataset's eleven tiles: three dates, two dates twice, and places seen once.
PLACES = np.array(["lake", "b", "lake", "c", "lake", "d", "e", "d", "h", "h", "k"], dtype=object)


def dated(uri, layout, config=TWICE, **steps):
    setup = options(uri, layout, config=config, **steps)
    # A cached property: as an archive of several dates has it.
    setup["dataset"].__dict__["places"] = PLACES
    return setup


@given(
    st.lists(st.sampled_from("abcdef"), min_size=1, max_size=20),
    st.integers(0, 2**32 - 1),
    st.integers(0, 10**9),
)
def test_another_tile_of_the_place_or_the_only_one(names, seed, start):
    places = np.array(names, dtype=object)
    rows = np.arange(len(places))
    positions = start + rows
    found = OtherDates(places, seed).rows(rows, np.zeros_like(rows), positions)
    for row, other in zip(rows.tolist(), found.tolist(), strict=True):
        assert places[row] == places[other]
        assert (row != other) == (names.count(names[row]) > 1)
    # Of the sample alone: not of its neighbours.
    alone = OtherDates(places, seed).rows(rows[-1:], np.zeros(1, np.int64), positions[-1:])
    assert alone.tolist() == found[-1:].tolist()


def test_each_other_date_comes_equally_often():
    rows, positions = np.zeros(3000, np.int64), np.arange(3000)
    found = OtherDates(np.array(list("aaaa"), object), 3).rows(rows, rows, positions)
    # Binomial(3000, 1/3): five deviations are 129.
    assert np.abs(np.bincount(found, minlength=4) - [0, 1000, 1000, 1000]).max() < 129


def test_each_view_draws_its_date_and_the_sensors_that_it_has_then():
    n = 4000
    available = np.tile([[True, False]], (n, 1))
    elsewhen = np.tile([[False, True]], (n, 1))
    elsewhen[::4] = False
    config = CONFIG.model_copy(update={"other_date": 0.25})
    of_sample = {"seed": 1, "epochs": np.zeros(n, np.int64), "positions": np.arange(n), "units": 16}
    views = draw_views(
        config, ("s1", "s2_l2a"), available=available, elsewhen=elsewhen, **of_sample
    )
    assert not views.other_date[::4].any()
    share = np.delete(views.other_date, np.s_[::4], axis=0).mean(axis=0)
    # 3,000 samples: five deviations are 0.04.
    assert np.abs(share - 0.25).max() < 0.04
    np.testing.assert_array_equal(views.drawn[..., 1], views.other_date)
    np.testing.assert_array_equal(views.drawn[..., 0], ~views.other_date)
    # All else is as it was drawn without dates.
    plain = draw_views(CONFIG, ("s1", "s2_l2a"), available=available, **of_sample)
    for name in ("box", "flip", "turns", "drop_path_key"):
        np.testing.assert_array_equal(getattr(views, name), getattr(plain, name))
    assert not plain.other_date.any()


def test_crops_are_those_of_the_tile_of_the_other_date(small_dataset):
    """With every view of another date: what the plan's tile is swapped for, crop by crop."""
    layout = RankLayout(8, 1, 0, 8)
    setup = dated(small_dataset, layout, ALWAYS, stop_step=1)
    dataset = setup["dataset"]
    builder = BatchBuilder(
        dataset, setup["plan"], ALWAYS, seed=5, layout=layout, high_frequency=(10,)
    )
    found = builder.instructions(0, 1)
    plain = BatchBuilder(
        Dataset.open(small_dataset), setup["plan"], CONFIG, seed=5, layout=layout,
        high_frequency=(10,),
    )  # fmt: skip
    # The instructions of a run without dates, with the other tiles in the place of the plan's.
    own = plain.instructions(0, 1)
    others = dataset.locations([dataset.row_of(t) for t in found["other_date.tile_id"].to_pylist()])
    swapped = own
    for name in others.column_names:
        swapped = swapped.set_column(swapped.column_names.index(name), name, others[name])
    assert found.select(own.column_names).equals(own)
    assert swapped["tile_id"].to_pylist() != own["tile_id"].to_pylist()
    (expected,) = plain.samples.make(swapped)
    (made,) = builder.samples.make(found)
    np.testing.assert_array_equal(made.pixels, expected.pixels)


def test_a_sample_of_two_dates_is_the_same_in_any_layout(small_dataset):
    reference = {}
    for batch in make_batches(**dated(small_dataset, RankLayout(8, 1, 0, 8))):
        reference |= dict(rows_of(batch))
    seen = {}
    for rank in range(3):
        for batch in make_batches(**dated(small_dataset, RankLayout(8, 3, rank, 2))):
            seen |= {key: crops for key, crops in rows_of(batch) if key[2] == 1}
    assert seen == reference
    without = {}
    for batch in make_batches(**options(small_dataset, RankLayout(8, 1, 0, 8))):
        without |= dict(rows_of(batch))
    differ = {key for key in reference if reference[key] != without[key]}
    once = {key for key, crops in reference.items() if crops[1] in ("tile_01", "tile_03")}
    assert once
    assert differ
    # A place of one date is untouched.
    assert not differ & once


def test_the_stream_of_two_dates_equals_batches_in_process(local_ray, small_dataset):
    setup = dated(small_dataset, RankLayout(8, 1, 0, 4))
    for first, second in zip(stream_batches(**setup, cpus=1), make_batches(**setup), strict=True):
        assert_equal(first, second)


@pytest.mark.parametrize("damaged", ["tile_id", "other_date.tile_id"])
def test_a_damaged_tile_of_either_date_is_named_or_left_out(small_dataset, damaged):
    layout = RankLayout(8, 1, 0, 8)
    for policy in ("fatal", "quarantine"):
        config = ALWAYS.model_copy(update={"other_date": 0.7, "on_damage": policy})
        setup = dated(small_dataset, layout, config, stop_step=1)
        builder = BatchBuilder(
            setup["dataset"], setup["plan"], config, seed=5, layout=layout, high_frequency=(10,)
        )
        rows = builder.instructions(0, 1)
        prefix = damaged.removesuffix("tile_id")
        for group in setup["dataset"].groups:
            name = f"{prefix}{group.name}.checksum"
            changed = pa.array([value ^ 1 for value in rows[name].to_pylist()], rows[name].type)
            rows = rows.set_column(rows.column_names.index(name), name, changed)
        if policy == "fatal":
            with pytest.raises(TerraFMError, match="does not match its checksum"):
                builder.samples.make(rows)
            continue
        (part,) = builder.samples.make(rows)
        views = builder.samples.views(rows)
        read = (views.other_date == bool(prefix)).any(axis=1)
        assert sorted(part.damage) == np.flatnonzero(read).tolist()
        batch = builder.batch(rows, [part])
        np.testing.assert_array_equal(batch.samples.weight.numpy() == 0, read)


def test_on_the_device_it_is_refused_and_says_what_to_do():
    with pytest.raises(UsageError, match=r"data\.other_date .* set data\.crop_on to workers"):
        load_config("demo", ["data.other_date=0.5", "data.crop_on=device"])
