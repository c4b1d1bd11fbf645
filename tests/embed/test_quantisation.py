"""A byte a number: how far from float32, and what of it the folder says."""

import json
import shutil
from itertools import pairwise

import duckdb
import geopandas
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from terrafm.embed.choices import Quantise
from terrafm.embed.job import embed
from terrafm.embed.quantisation import LEAST_COSINE, NO_NUMBER, Range, Scales
from terrafm.embed.request import EmbedOptions
from terrafm.embed.schema import read_manifest
from terrafm.eval.datasets.registry import open_labelled
from terrafm.eval.features.job import EncoderFeatures, extract_features, untrained_spec
from terrafm.eval.features.readouts import Readout
from terrafm.eval.metrics import single_label_scores
from terrafm.eval.probes.knn import nearest, vote
from terrafm.search.embeddings import Embeddings
from terrafm.search.similar import find_similar
from terrafm.search.spread import Spread

ROWS = st.integers(1, 20)
NUMBERS = st.floats(-1e6, 1e6, width=32) | st.just(np.nan) | st.just(np.inf)


def scales_of(vectors):
    return Scales.over(Range.of(vectors))


@given(arrays.arrays(np.float32, st.tuples(ROWS, st.integers(1, 5)), elements=NUMBERS))
def test_no_value_is_further_than_half_a_step(vectors):
    scales = scales_of(vectors)
    numbers = scales.encode(vectors)
    values = scales.decode(numbers)
    finite = np.isfinite(vectors)
    np.testing.assert_array_equal(numbers == NO_NUMBER, ~finite)
    np.testing.assert_array_equal(np.isnan(values), ~finite)
    rounding = np.abs(np.where(finite, vectors, 0)).max(0) * 1e-6
    limit = np.broadcast_to(np.array(scales.scale) * 0.501 + rounding, vectors.shape)
    assert (np.abs(values - vectors)[finite] <= limit[finite]).all()


@given(st.lists(ROWS, min_size=1, max_size=4), st.integers(0, 2**32 - 1))
def test_ranges_of_parts_are_that_of_all(rows, seed):
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, 3)).astype(np.float32) for n in rows]
    assert Range.joined([Range.of(part) for part in parts]) == Range.of(np.concatenate(parts))


def test_a_dimension_that_does_not_vary_is_exact():
    vectors = np.full((4, 2), 3.25, np.float32)
    scales = scales_of(vectors)
    np.testing.assert_array_equal(scales.decode(scales.encode(vectors)), vectors)


@pytest.fixture(scope="module")
def both(small_dataset, tiny_weights, tmp_path_factory):
    """The small dataset embedded as float32 and as int8."""
    folder = tmp_path_factory.mktemp("both")
    for name, quantise in (("float32", None), ("int8", Quantise.INT8)):
        options = EmbedOptions(modalities=["s2_l2a"], workers=0, quantise=quantise)
        embed(tiny_weights, small_dataset, folder / name, options)
    return folder / "float32", folder / "int8"


def vectors_of(folder):
    return np.concatenate([vectors for _, vectors in Embeddings(folder).vectors()])


def test_the_direction_stays_and_the_folder_says_how_well(both):
    exact, small = both
    one, other = vectors_of(exact).astype(np.float64), vectors_of(small).astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (one * other).sum(1) / norms
    assert cosines.min() >= LEAST_COSINE
    stated = read_manifest(small).quantisation
    assert stated.least_cosine == pytest.approx(cosines.min(), abs=1e-7)
    assert stated.mean_cosine == pytest.approx(cosines.mean(), abs=1e-7)
    (part,) = read_manifest(small).parts
    assert pq.read_schema(small / "tiles" / part.name).field("embedding").type.value_type == "int8"


def test_neighbours_are_those_of_float32(both):
    for tile in ("tile_00", "tile_05", "tile_10"):
        one, other = (find_similar(folder, tile, count=10)["neighbours"] for folder in both)
        by_id = {row["tile_id"]: row["similarity"] for row in other}
        for row in one:
            assert by_id[row["tile_id"]] == pytest.approx(row["similarity"], abs=1e-3)
        # Whose similarities differ by more than the error are in the same order.
        far = [a for a, b in pairwise(one) if a["similarity"] - b["similarity"] > 2e-3]
        order = [row["tile_id"] for row in other]
        for row in far:
            rank = row["rank"]
            assert set(order[:rank]) == {r["tile_id"] for r in one[:rank]}


def test_the_command_says_the_error(run, small_dataset, tiny_weights, tmp_path):
    code, text, errors = run(
        "embed", "--weights", tiny_weights, "--data", small_dataset, "--output", tmp_path / "out",
        "--workers", "0", "--quantise", "int8",
    )  # fmt: skip
    assert code == 0, errors
    assert "int8: cosine to float32 0.9999" in text
    assert len(text.splitlines()[-1]) <= 80


def test_another_form_of_the_same_folder_is_refused(both, refused, small_dataset, tiny_weights):
    line = refused(
        "embed", "--weights", tiny_weights, "--data", small_dataset, "--output", both[0],
        "--modality", "s2_l2a", "--workers", "0", "--quantise", "int8",
    )  # fmt: skip
    assert "was begun with another quantise (null, not int8)" in line


def test_an_unknown_quantisation_is_one_line(run, both, refused, tmp_path, small_dataset):
    code, _, errors = run(
        "embed", "--weights", "w", "--data", small_dataset, "--output", tmp_path / "out",
        "--quantise", "int4",
    )  # fmt: skip
    assert code == 2
    assert "'int4' is not" in errors


def changed(folder, tmp_path, change):
    """A copy of a folder whose manifest is another."""
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "embedding.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    return tmp_path / "copy"


@pytest.mark.parametrize(
    ("change", "message", "code"),
    [
        (lambda m: m.pop("quantisation"),
         "its embeddings are int8, and embedding.json has no quantisation", 1),
        (lambda m: m["quantisation"].update(method="product"),
         "quantisation.method: Input should be 'linear'", 2),
        (lambda m: m["quantisation"].pop("scale"), "quantisation.scale: Field required", 2),
        (lambda m: m["quantisation"]["scale"].pop(), "95 scales but 96 offsets", 2),
        (lambda m: m["quantisation"]["scale"].__setitem__(0, 0.0), "quantisation.scale.0", 2),
    ],
)  # fmt: skip
def test_a_folder_that_does_not_say_its_scales_is_one_line(
    both, refused, tmp_path, change, message, code
):
    folder = changed(both[1], tmp_path, change)
    line = refused("search", folder, "--tile", "tile_00", code=code)
    assert message in line
    assert "restore it or embed again" in line


@pytest.fixture(scope="module")
def eurosat(shared_folder):
    return open_labelled(str(shared_folder / "realdata" / "eurosat_ms"))


@pytest.mark.parametrize("readout", list(Readout))
def test_the_classes_that_neighbours_vote_for_stay_within_their_interval(eurosat, readout):
    """kNN of real images by an encoder: float32 beside int8."""
    spec = untrained_spec("terrafm_small", 0)
    sensors = ((eurosat.modalities[0],),)
    extractor = EncoderFeatures((spec,), sensors, eurosat.statistics(), 64, 25, readout=readout)
    features = extract_features(extractor, eurosat, torch.device("cpu"))
    features = features.reshape(len(eurosat.names), -1)
    scales = scales_of(features)
    accuracies = {}
    for name, vectors in (("float32", features), ("int8", scales.decode(scales.encode(features)))):
        spread = Spread(vectors.shape[1])
        spread.add(vectors)
        made = spread.standardise(vectors) if readout is Readout.MEAN_STD else vectors
        unit = (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float32)
        found = nearest(unit, 5, eurosat.groups)
        voted = vote(*found, eurosat.labels, len(eurosat.classes), None)
        scores = single_label_scores(voted, eurosat.labels, len(eurosat.classes), eurosat.groups)
        accuracies[name] = scores["accuracy"]
    exact, small = accuracies["float32"], accuracies["int8"]
    assert exact.low < exact.high
    assert exact.low <= small.value <= exact.high
    # As real embeddings keep their direction, without what an average would hide.
    assert scales.cosines(features).min() >= LEAST_COSINE


def test_geopandas_and_duckdb_open_bytes_too(both):
    exact, small = both
    frame = geopandas.read_parquet(small / "tiles" / "part-00000.parquet")
    assert frame.geometry.is_valid.all()
    assert {len(row) for row in frame["embedding"]} == {96}
    scales = read_manifest(small).quantisation
    with duckdb.connect() as connection:
        described = connection.execute(f"describe select * from '{small}/tiles/*.parquet'")
        kinds = {name: kind for name, kind, *_ in described.fetchall()}
        found = connection.execute(
            f"""
            select s.tile_id, list_cosine_similarity(e.embedding, list_transform(
                s.embedding, lambda n, i: (n * $scale[i] + $offset[i])::float))
            from '{small}/tiles/*.parquet' s join '{exact}/tiles/*.parquet' e using (tile_id)
            """,
            {"scale": list(scales.scale), "offset": list(scales.offset)},
        ).fetchall()
    assert kinds["embedding"] == "TINYINT[]"
    assert len(found) == 11
    assert min(cosine for _, cosine in found) >= LEAST_COSINE
