"""Retrieval against naive loops, and cases whose outcome is known beforehand."""

import json
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from terrafm.errors import TerraFMError, UsageError
from terrafm.eval.datasets.shard_tiles import ShardTiles
from terrafm.eval.features.extraction import untrained_like
from terrafm.eval.features.readouts import Readout
from terrafm.eval.retrieval import evaluate
from terrafm.eval.retrieval.evaluate import RetrievalOptions, evaluate_retrieval, render
from terrafm.eval.retrieval.ranks import Ranks, centred, partner_ranks, standardised
from terrafm.eval.retrieval.scores import Bootstrap, plain_metrics, score
from terrafm.eval.retrieval.tasks import draw_places, make_tasks
from terrafm.eval.retrieval.views import sensor_views
from terrafm.modalities import MODALITIES
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, save_safetensors


def naive(queries, gallery, partners, query_places, gallery_places):
    """The rank of each partner, one query at a time, equal ones in the middle."""
    ranks = []
    for i, query in enumerate(queries):
        own = float(np.dot(query, gallery[partners[i]]))
        rank = 1.0
        for j, candidate in enumerate(gallery):
            if gallery_places[j] != query_places[i]:
                similarity = float(np.dot(query, candidate))
                if abs(similarity - own) < 1e-9:
                    rank += 0.5
                elif similarity > own:
                    rank += 1
        ranks.append(rank)
    return ranks


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), n=st.integers(2, 40), d=st.integers(1, 5))
def test_ranks_equal_a_naive_loop(seed, n, d):
    rng = np.random.default_rng(seed)
    gallery = rng.standard_normal((n, d))
    gallery[n // 2 :: 3] = gallery[0]
    partners = rng.permutation(n)[: max(1, n // 2)]
    queries = rng.standard_normal((len(partners), d))
    places = rng.integers(max(2, n // 2), size=n)
    found = partner_ranks(queries, gallery, partners, places[partners], places)
    expected = naive(queries, gallery, partners, places[partners], places)
    assert found.middle().tolist() == expected
    others = [int((places != places[p]).sum()) + 1 for p in partners]
    assert found.candidates.tolist() == others


def test_equal_candidates_rank_as_chance_does():
    flat = np.zeros((20, 3))
    numbers = np.arange(20)
    found = partner_ranks(flat, flat, numbers, numbers, numbers)
    assert plain_metrics(found) == plain_metrics(found.chance())
    assert plain_metrics(found) == {
        "recall1": pytest.approx(1 / 20),
        "recall5": pytest.approx(5 / 20),
        "recall10": pytest.approx(10 / 20),
        "median_rank": 10.5,
    }


def test_another_date_of_the_own_place_is_neither_right_nor_wrong():
    query = np.array([[1.0, 0.0]])
    gallery = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    places = np.array([0, 0, 1])
    found = partner_ranks(query, gallery, np.array([1]), np.array([0]), places)
    assert found.middle().tolist() == [1.0]
    assert found.candidates.tolist() == [2]


def test_each_side_has_its_own_mean():
    # Two sensors that see the same, one of them brighter: uncentred, every tile looks like the
    # brightest one.
    rng = np.random.default_rng(0)
    one = rng.standard_normal((30, 8))
    other = one + 100.0
    numbers = np.arange(30)
    found = partner_ranks(centred(one), centred(other), numbers, numbers, numbers)
    assert found.middle().tolist() == [1.0] * 30
    scaled = one * np.array([1000.0, *[1.0] * 7])
    scaled[:, 0] = rng.permutation(scaled[:, 0])
    assert (
        partner_ranks(centred(one), centred(scaled), numbers, numbers, numbers).before > 0
    ).any()
    same = partner_ranks(standardised(one), standardised(scaled), numbers, numbers, numbers)
    assert (same.before == 0).mean() > 0.8


def test_a_dimension_that_does_not_vary_says_nothing():
    rows = np.hstack([np.full((5, 1), 0.1), np.arange(5)[:, None]]).astype(np.float32)
    assert (standardised(rows)[:, 0] == 0).all()
    assert np.isfinite(standardised(np.zeros((4, 2)))).all()


def test_tasks_are_all_ordered_pairs_and_first_to_last_dates():
    available = {
        "s1": np.array([1, 0, 1, 1], bool),
        "s2_l1c": np.array([1, 1, 1, 0], bool),
    }
    places = np.array([0, 1, 0, 2])
    times = {"s1": ["2021", "2020", "2020", "2020"], "s2_l1c": ["2018", "2020", "2020", ""]}
    tasks = {task.name: task for task in make_tasks(available, places, times)}
    assert set(tasks) == {"s1>s2_l1c", "s2_l1c>s1"}
    across = tasks["s1>s2_l1c"]
    assert across.query_rows.tolist() == [0, 2]
    assert across.gallery_rows.tolist() == [0, 1, 2]
    assert across.gallery_rows[across.partners].tolist() == [0, 2]
    # One place with two dates has nothing to be told from.
    more = {name: np.append(has, [True, True]) for name, has in available.items()}
    later = {name: [*text, "2022", "2021"] for name, text in times.items()}
    tasks = {t.name: t for t in make_tasks(more, np.append(places, [1, 1]), later)}
    assert tasks["s1>later"].query_rows.tolist() == [2, 5]
    assert tasks["s1>later"].gallery_rows.tolist() == [0, 4]
    assert tasks["s2_l1c>later"].query_rows.tolist() == [0, 1]
    assert tasks["s2_l1c>later"].gallery_rows.tolist() == [2, 4]


def test_places_are_drawn_whole_and_always_the_same():
    places = np.repeat(np.arange(50), 2)
    rows = draw_places(places, 21)
    assert 21 <= len(rows) <= 22
    assert set(np.bincount(places[rows])) == {0, 2}
    assert rows.tolist() == draw_places(places, 21).tolist()
    assert draw_places(places, 100).tolist() == list(range(100))


def ranks_of(before, candidates=100):
    before = np.asarray(before)
    return Ranks(before, np.zeros_like(before), np.full_like(before, candidates))


def test_scores_and_paired_gains_equal_a_naive_bootstrap():
    rng = np.random.default_rng(1)
    places = rng.integers(12, size=30)
    rows = {
        "chance": [ranks_of(np.zeros(30, int)).chance()],
        "untrained": [ranks_of(rng.integers(15, size=30)) for _ in range(3)],
        "weights": [ranks_of(rng.integers(8, size=30))],
    }
    bootstrap = Bootstrap.of(places, 200, 3)
    found = score(rows, bootstrap)

    def naive_draw(several, drawn, metric):
        values = []
        for ranks in several:
            middle = ranks.middle()[drawn]
            depth = {"recall1": 1, "recall5": 5, "recall10": 10}.get(metric)
            values.append(np.median(middle) if depth is None else (middle <= depth).mean())
        return float(np.mean(values))

    drawn = [row[row >= 0] for row in bootstrap.rows]
    assert all(set(places[d]) <= set(places) for d in drawn)
    for metric in ("recall1", "recall5", "recall10", "median_rank"):
        sign = -1 if metric == "median_rank" else 1
        mine = [naive_draw(rows["weights"], d, metric) for d in drawn]
        best = [naive_draw(rows["untrained"], d, metric) for d in drawn]
        shown = found["rows"]["weights"][metric]
        assert [shown["low"], shown["high"]] == pytest.approx(np.quantile(mine, [0.025, 0.975]))
        gain = found["gain"][metric]
        assert gain["over"] == "untrained"
        apart = sign * (np.array(mine) - np.array(best))
        assert [gain["low"], gain["high"]] == pytest.approx(np.quantile(apart, [0.025, 0.975]))
        everyone = np.arange(30)
        assert gain["value"] == pytest.approx(
            sign
            * (
                naive_draw(rows["weights"], everyone, metric)
                - naive_draw(rows["untrained"], everyone, metric)
            )
        )
    alone = [plain_metrics(ranks)["recall5"] for ranks in rows["untrained"]]
    assert found["rows"]["untrained"]["recall5"]["spread"] == pytest.approx(np.std(alone, ddof=1))
    assert "spread" not in found["rows"]["weights"]["recall5"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(5)
    statistics = {
        name: {
            "mean": [-11.0 if name == "s1" else 0.2] * m.channels,
            "std": [1.0 if name == "s1" else 0.05] * m.channels,
        }
        for name, m in MODALITIES.items()
    }
    uri = str(tmp_path_factory.mktemp("weights") / "tiny.safetensors")
    contract = WeightsContract.build("terrafm_tiny", statistics, image_size=64)
    save_safetensors(uri, build_encoder("terrafm_tiny").state_dict(), contract)
    return uri


def test_both_cuts_are_two_thirds_of_the_tile(two_dates):
    images = ShardTiles(two_dates)
    encoder = untrained_like("terrafm_tiny")
    normalisation = images.statistics()
    options = {"size": 64, "batch": 4, "device": torch.device("cpu"), "rows": [0, 3]}
    views = sensor_views(
        [encoder], images, ["s2_l2a"], normalisation, readout=Readout.CLS, **options
    )["s2_l2a"]
    tile = images.read(3, ["s2_l2a"])["s2_l2a"][0]
    normed = torch.zeros(12, 96, 96)
    normed[list(tile.channels)] = torch.from_numpy((tile.pixels - 0.2) / 0.05)
    with torch.inference_mode():
        for cut, part in enumerate((normed[:, :64, :64], normed[:, 32:, 32:])):
            expected = encoder({"s2_l2a": part[None]})[0].numpy()
            assert views.features[0][cut, 1] == pytest.approx(expected, abs=1e-4)
            assert views.means[cut, 1] == pytest.approx(part.mean((1, 2)).numpy(), abs=1e-4)
            deviation = part.std((1, 2), correction=0)[1].log()
            assert views.deviations[cut, 1, 1] == pytest.approx(float(deviation), abs=1e-3)


@pytest.mark.parametrize("readout", ["cls", "mean", "mean+std"])
def test_every_pair_of_sensors_and_dates_is_scored_beside_the_baselines(
    two_dates, weights, run, readout
):
    code, printed, errors = run(
        "evaluate", "retrieval", "--weights", weights, "--data", two_dates,
        "--readout", readout, "--resamples", 50, "--json",
    )  # fmt: skip
    assert code == 0, errors
    result = json.loads(printed)
    assert result["image_size"] == 64  # as the weights state
    tasks = {task["task"]: task for task in result["tasks"]}
    sensors = [f"{a}>{b}" for a, b in permutations(MODALITIES, 2)]
    assert list(tasks) == [*sensors, *(f"{name}>later" for name in MODALITIES)]
    assert (tasks["s2_l1c>later"]["n"], tasks["s2_l1c>later"]["candidates"]) == (12, 12)
    assert (tasks["s1>later"]["n"], tasks["s2_l1c>s1"]["n"]) == (11, 23)
    assert tasks["s1>s2_l2a"]["candidates"] == 25
    optical = tasks["s2_l1c>s2_l2a"]
    # The same pixels by two sensors: their spectra are equal at the same spot.
    assert optical["aligned"]["rows"]["mean_spectrum"]["recall1"]["value"] == 1
    for how in ("shifted", "aligned"):
        rows = optical[how]["rows"]
        assert list(rows) == [
            "chance", "mean_spectrum", "mean_and_deviation", "untrained", "weights"
        ]  # fmt: skip
        # Of 25 tiles one is another date of the query's own place, for all but one.
        assert rows["chance"]["recall1"]["value"] == pytest.approx((24 / 24 + 1 / 25) / 25)
        assert rows["untrained"]["recall1"]["spread"] >= 0
        for row in rows.values():
            assert row["recall1"]["low"] <= row["recall1"]["value"] <= row["recall1"]["high"]
            assert row["recall1"]["value"] <= row["recall5"]["value"] <= row["recall10"]["value"]
    # Radar and optical share no band.
    assert list(tasks["s1>s2_l2a"]["shifted"]["rows"]) == ["chance", "untrained", "weights"]
    later = tasks["s2_l1c>later"]
    assert later["shifted"]["rows"]["mean_spectrum"]["recall1"]["value"] >= 0.5
    assert later["aligned"]["rows"]["weights"]["median_rank"]["value"] == 1
    console = Console(width=80)
    with console.capture() as shown:
        console.print(render(result))
    assert "s2_l1c>later" in shown.get()


def test_scores_follow_the_seeds_and_the_draw(two_dates, weights):
    few = RetrievalOptions(modalities=["s2_l2a"], samples=10, resamples=20)
    result = evaluate_retrieval(weights, two_dates, few)
    assert [task["task"] for task in result["tasks"]] == ["s2_l2a>later"]
    assert 10 <= result["tiles"] <= 11
    assert any("of 25 tiles" in note for note in result["notes"])
    assert evaluate_retrieval(weights, two_dates, few) == result


def test_what_cannot_be_retrieved_is_one_line(two_dates, weights, small_dataset, refused, tmp_path):
    ask = partial(refused, "evaluate", "retrieval", "--weights", weights, "--data")
    assert "does not exist" in ask(tmp_path / "nowhere")
    # Every tile has one date, and one sensor was chosen.
    assert "nothing to retrieve" in ask(small_dataset, "--modality", "s1")
    assert "s3" in ask(small_dataset, "--modality", "s3")
    (tmp_path / "classes" / "forest").mkdir(parents=True)
    assert str(tmp_path / "classes") in ask(tmp_path / "classes")


def test_features_that_are_no_numbers_are_refused(two_dates, weights, monkeypatch):
    broken = build_encoder("terrafm_tiny").eval()
    with torch.no_grad():
        broken.norm.weight.fill_(torch.nan)
    monkeypatch.setattr(evaluate, "load_encoder", lambda _: broken)
    with pytest.raises(TerraFMError, match="NaN"):
        evaluate_retrieval(weights, two_dates, RetrievalOptions(size=32, resamples=2))


def test_only_a_dataset_of_ingest_has_places(tmp_path, weights):
    with pytest.raises(UsageError):
        evaluate_retrieval(weights, tmp_path / "missing")
