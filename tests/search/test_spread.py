"""Vectors of means and deviations are compared as scikit-learn standardises them."""

import json

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import StandardScaler

from terrafm.embed.source import DatasetTiles
from terrafm.errors import TerraFMError
from terrafm.search.similar import find_similar
from terrafm.search.spread import Spread


def spread_of(vectors, cuts=()):
    spread = Spread(vectors.shape[1])
    for part in np.split(vectors, sorted(cuts)):
        spread.add(part)
    return spread


@settings(max_examples=60)
@given(
    st.integers(0, 10**6),
    st.integers(2, 60),
    st.lists(st.integers(0, 60), max_size=5),
    st.sampled_from([0.0, 1e4]),
)
def test_any_batches_are_standardised_as_all_at_once_are(seed, rows, cuts, far):
    rng = np.random.default_rng(seed)
    vectors = (far + rng.normal(size=(rows, 4)) * [1, 100, 3, 10]).astype(np.float32)
    # What float32 cannot tell apart counts as constant.
    assume((vectors.std(0) > 1e-5 * np.abs(vectors).max(0)).all())
    found = spread_of(vectors, cuts).standardise(vectors)
    expected = StandardScaler().fit_transform(vectors.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_dimension_that_does_not_vary_says_nothing():
    vectors = np.hstack([np.full((7, 1), 0.1), np.arange(7)[:, None]]).astype(np.float32)
    found = spread_of(vectors, [2, 3]).standardise(vectors)
    assert (found[:, 0] == 0).all()
    assert found[:, 1].std() == pytest.approx(1)


def test_what_is_not_finite_changes_no_other_vector_and_stays_so():
    vectors = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    broken = vectors.copy()
    broken[4, 1], broken[5, 2] = np.nan, np.inf
    kept = np.delete(vectors, [4, 5], 0)
    found = spread_of(broken, [5]).standardise(broken)
    expected = StandardScaler().fit_transform(kept.astype(np.float64))
    np.testing.assert_allclose(np.delete(found, [4, 5], 0), expected, atol=1e-6)
    assert not np.isfinite(found[[4, 5]]).all(1).any()


@pytest.fixture
def folder_of(write, small_dataset, tmp_path):
    """Writes vectors as embeddings of the small dataset; returns the URI."""
    tiles = DatasetTiles(small_dataset)
    places = [tiles.place(row) for row in range(len(tiles))]

    def make(vectors, readout):
        options = {"data": small_dataset, "fingerprint": tiles.fingerprint, "readout": readout}
        return write(str(tmp_path / readout), places, vectors, **options)

    return make


@pytest.fixture
def moments():
    """(11, 8): four means far from 0 and with a wide spread, four narrow deviations."""
    rng = np.random.default_rng(5)
    wide, narrow = rng.normal(5, 2, (11, 4)), rng.normal(-3, 0.1, (11, 4))
    return np.hstack([wide, narrow]).astype(np.float32)


def test_means_and_deviations_are_standardised_over_the_folder(folder_of, moments):
    standard = StandardScaler().fit_transform(moments.astype(np.float64))
    expected, plain = cosine_similarity(standard), cosine_similarity(moments.astype(np.float64))
    uri, other = folder_of(moments, "mean+std"), folder_of(moments, "mean")
    orders = []
    for folder, similarity in ((uri, expected), (other, plain)):
        result = find_similar(folder, "tile_03", count=10)
        order = [row for row in np.argsort(-similarity[3]).tolist() if row != 3]
        assert [tile["tile_id"] for tile in result["neighbours"]] == [
            f"tile_{row:02d}" for row in order
        ]
        assert [tile["similarity"] for tile in result["neighbours"]] == pytest.approx(
            similarity[3][order].tolist(), abs=1e-6
        )
        orders.append(order)
    # It matters: unscaled, the wide ones alone would decide.
    assert orders[0] != orders[1]


def test_the_command_says_which_readout_was_compared(folder_of, moments, run, tmp_path):
    uri = folder_of(moments, "mean+std")
    words = ("search", uri, "--tile", "tile_03", "--output", tmp_path / "sheet.png")
    code, text, errors = run(*words)
    assert code == 0, errors
    assert "readout mean+std" in " ".join(text.split())
    code, text, _ = run(*words, "--json")
    assert code == 0
    assert json.loads(text)["readout"] == "mean+std"


def test_rows_that_are_all_equal_have_no_direction(folder_of, moments):
    same = np.tile(moments[:1], (11, 1))
    assert find_similar(folder_of(same, "mean"), "tile_03", count=1)["tiles"] == 10
    with pytest.raises(TerraFMError, match="has no direction"):
        find_similar(folder_of(same, "mean+std"), "tile_03")
