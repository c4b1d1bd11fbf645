"""The most similar of a stream are those of a comparison with everything at once."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics.pairwise import cosine_similarity

from terrafm.errors import TerraFMError
from terrafm.search.nearest import Nearest


def at_once(query, ids, vectors, count):
    """Ids and similarities by scikit-learn, of all that have a direction."""
    rows = [i for i, vector in enumerate(vectors) if np.isfinite(vector).all() and vector.any()]
    if not rows:
        return []
    similarity = cosine_similarity(vectors[rows].astype(float), query[None].astype(float))[:, 0]
    pairs = [(-round(s, 9), ids[row]) for row, s in zip(rows, similarity.tolist(), strict=True)]
    return [(name, -negative) for negative, name in sorted(pairs)[:count]]


def streamed(query, ids, vectors, count, cuts=()):
    nearest = Nearest(query, count)
    for part in np.split(np.arange(len(ids)), sorted(cuts)):
        nearest.add([ids[row] for row in part], vectors[part])
    assert nearest.seen == len(ids)
    return nearest


@st.composite
def searches(draw):
    """Few whole numbers: many vectors are parallel, equal, or zero."""
    dim, rows = draw(st.integers(1, 5)), draw(st.integers(0, 40))
    numbers = st.integers(-3, 3).map(float)
    vectors = draw(arrays(np.float32, (rows, dim), elements=numbers))
    query = draw(arrays(np.float32, (dim,), elements=numbers).filter(np.any))
    ids = [f"tile_{i}" for i in draw(st.permutations(range(rows)))]
    cuts = draw(st.lists(st.integers(0, rows), max_size=6))
    return query, ids, vectors, draw(st.integers(1, 45)), cuts


@settings(max_examples=200)
@given(searches())
def test_any_batches_give_what_all_at_once_give(search):
    query, ids, vectors, count, cuts = search
    nearest = streamed(query, ids, vectors, count, cuts)
    expected = at_once(query, ids, vectors, count)
    best = nearest.best()
    assert [n.tile_id for n in best] == [name for name, _ in expected]
    assert [n.similarity for n in best] == pytest.approx([s for _, s in expected], abs=1e-9)
    assert nearest.without_direction == sum(not vector.any() for vector in vectors)


def test_real_embeddings_are_as_exact_as_float32_is():
    generator = np.random.default_rng(0)
    vectors = generator.normal(3, 1, (5000, 192)).astype(np.float32)
    ids = [f"tile_{i:04d}" for i in range(5000)]
    best = streamed(vectors[7], ids, vectors, 20, range(0, 5000, 300)).best()
    expected = at_once(vectors[7], ids, vectors, 20)
    assert best[0].tile_id == "tile_0007"
    assert best[0].similarity == 1
    assert [(n.tile_id, n.similarity) for n in best] == [
        (name, pytest.approx(s, abs=2e-9)) for name, s in expected
    ]


def test_copies_of_one_vector_are_in_the_order_of_their_ids():
    vectors = np.tile(np.random.default_rng(1).normal(size=192).astype(np.float32), (999, 1))
    ids = [f"tile_{i:03d}" for i in reversed(range(999))]
    best = streamed(vectors[0], ids, vectors, 5, [10, 11, 500]).best()
    assert [n.tile_id for n in best] == [f"tile_{i:03d}" for i in range(5)]


def test_what_is_not_finite_is_left_out_and_counted():
    vectors = np.array([[1, 0], [np.nan, 1], [np.inf, 1], [0, 0], [1, 1]], np.float32)
    nearest = streamed(np.array([1.0, 0.0]), list("abcde"), vectors, 9)
    assert [n.tile_id for n in nearest.best()] == ["a", "e"]
    assert nearest.without_direction == 3


@pytest.mark.parametrize("query", [[0.0, 0.0], [np.nan, 1.0], [np.inf, 0.0]])
def test_a_query_without_a_direction_is_refused(query):
    with pytest.raises(TerraFMError, match="has no direction"):
        Nearest(np.array(query), 3)
