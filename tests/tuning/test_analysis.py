"""What a sweep is said to have found, against numbers that are known."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml

from terrafm.config import load_config
from tuning.analysis import differences, find, importance
from tuning.objective import downstream
from tuning.report import analyse
from tuning.trials import write_table

ARMS = {"dino": {"loss.alpha": 1.0}, "dual": {"loss.alpha": 0.8}, "both": {"loss.alpha": 0.4}}


def write_sweep(folder, rows):
    """A sweep's folder with a table and scores at two checkpoints."""
    table = []
    for number, row in enumerate(rows):
        trial = folder / "trials" / f"{number:04d}"
        trial.mkdir(parents=True)
        lines = [
            {"step": step, "of": 60, "run": str(trial), "collapsed": row["state"] == "collapsed"}
            | {name: value * step / 60 for name, value in row["measures"].items()}
            for step in (30, 60)[: 1 if row["state"] == "stopped" else 2]
        ]
        (trial / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        collapsed = row["state"] == "collapsed"
        table.append(
            {
                "trial": number, "point": row["point"], "arm": row.get("arm"),
                "seed": row.get("seed", 0), "state": row["state"], "steps": lines[-1]["step"],
                "of_steps": 60, "seconds": 10.0, "alarm": None,
                **{n: None if collapsed else lines[-1][n] for n in row["measures"]},
                **{key: json.dumps(value) for key, value in row["set"].items()},
                "run": str(trial), "folder": str(trial),
            }
        )  # fmt: skip
    write_table(str(folder), table)


def measures(head, tail):
    return {
        "balanced_accuracy": (head + tail) / 2,
        "head_accuracy": head,
        "tail_accuracy": tail,
        "overall_accuracy": 0.9 * head + 0.1 * tail,
    }


@pytest.fixture
def arms(tmp_path):
    """Three arms of three seeds; the third seed of the last arm collapsed."""
    noise = (0.0, 0.01, 0.02)
    rows = [
        {
            "point": point, "arm": arm, "seed": seed, "set": settings,
            "state": "collapsed" if (arm, seed) == ("both", 2) else "finished",
            "measures": measures(0.8 + noise[seed], 0.3 + 0.1 * point + 2 * noise[seed]),
        }
        for seed in range(3)
        for point, (arm, settings) in enumerate(ARMS.items())
    ]  # fmt: skip
    write_sweep(tmp_path, rows)
    config = load_config("demo", ["tune.seeds=3", f"tune.arms={json.dumps(ARMS)}"])
    return tmp_path, config


def test_the_best_point_is_the_best_mean_over_seeds(arms):
    folder, config = arms
    states, best = analyse(str(folder), config)
    assert states == {"finished": 8, "collapsed": 1}
    assert best["arm"] == "both"
    assert best["trials"] == 2
    assert best["set"] == {"loss.alpha": 0.4}
    # As `terrafm sweep --json` prints them.
    assert json.loads(json.dumps([states, best])) == [states, best]
    tree = yaml.safe_load((folder / "best.yaml").read_text())
    assert tree["loss"]["alpha"] == 0.4
    again = load_config(str(folder / "best.yaml"))
    assert again.loss.alpha == 0.4
    assert again.train == config.train


def test_differences_are_paired_by_seed(arms):
    folder, config = arms
    frame = find(str(folder), config).differences
    dual = frame[(frame.arm == "dual") & (frame.measure == "tail_accuracy")].iloc[0]
    assert dual["n"] == 3
    # The noise of a seed is in both arms, and so not in their difference.
    assert dual["difference"] == pytest.approx(0.1)
    assert dual["low"] == pytest.approx(0.1)
    both = frame[(frame.arm == "both") & (frame.measure == "tail_accuracy")].iloc[0]
    assert both["n"] == 2


def test_the_interval_is_students():
    pairs = np.array([0.01, 0.03, 0.05])
    rows = [
        {"arm": arm, "seed": seed, "tail_accuracy": 0.5 + (pairs[seed] if arm == "b" else 0)}
        for arm in "ab"
        for seed in range(3)
    ]
    row = differences(pd.DataFrame(rows), ["a", "b"]).iloc[0]
    half = 4.302653 * pairs.std(ddof=1) / np.sqrt(3)
    assert (row["low"], row["high"]) == pytest.approx((0.03 - half, 0.03 + half))


def test_trials_that_were_stopped_are_not_compared_with_finished_ones(tmp_path):
    rows = [
        {"point": 0, "state": "stopped", "set": {"loss.alpha": 0.1}, "measures": measures(1, 1)},
        {
            "point": 1,
            "state": "finished",
            "set": {"loss.alpha": 0.2},
            "measures": measures(0.4, 0.4),
        },
    ]
    write_sweep(tmp_path, rows)
    findings = find(str(tmp_path), load_config("demo"))
    assert findings.points["point"].tolist() == [1]
    # What both reached is asked where both were.
    rows.append(rows[0] | {"point": 2, "set": {"loss.alpha": 0.3}})
    write_sweep(tmp_path / "more", rows)
    findings = find(str(tmp_path / "more"), load_config("demo"))
    assert findings.common_step == 30
    assert findings.common_points["point"].tolist() == [0, 1, 2]
    assert findings.common_points["head_accuracy"].tolist() == [0.5, 0.2, 0.5]
    assert findings.best["point"] == 1


def test_importance_finds_the_key_that_matters():
    generator = np.random.default_rng(0)
    alpha, rate = generator.random(24), generator.random(24)
    frame = pd.DataFrame(
        {"loss.alpha": alpha, "optim.base_lr": rate, "balanced_accuracy": 0.5 + 0.3 * alpha}
    )
    found = importance(frame, ("loss.alpha", "optim.base_lr"), "balanced_accuracy")
    assert next(iter(found)) == "loss.alpha"
    mean, spread = found["loss.alpha"]
    assert mean > 0.8
    assert 0 < spread < 0.2
    assert importance(frame.iloc[:4], ("loss.alpha",), "balanced_accuracy") == {}


def test_the_report_stands_alone(arms):
    folder, config = arms
    analyse(str(folder), config)
    page = (folder / "report.html").read_text()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    # All of it may be drawn, and nothing be asked for.
    assert "default-src 'none'" in page
    assert "Balanced accuracy of each trial" in page
    assert {"arms.png", "curves.png"} <= {path.name for path in (folder / "pictures").iterdir()}
    assert "collapsed" in page


def test_head_and_tail_are_means_over_their_classes():
    rows = {"forest": (70, 0.9), "field": (20, 0.5), "town": (9, 0.4), "mangrove": (1, 0.0)}
    result = {
        "n": 100, "knn20": 0.766, "balanced_knn20": 0.45,
        "per_class": {n: {"n": c, "knn20": a, "knn5": 0.0} for n, (c, a) in rows.items()},
    }  # fmt: skip
    found = downstream(result)
    assert found["head_accuracy"] == pytest.approx(0.9)
    assert found["tail_accuracy"] == pytest.approx(0.3)
    assert found["balanced_accuracy"] == 0.45
    equal = {"n": 2, "knn20": 1.0, "balanced_knn20": 1.0}
    equal["per_class"] = {n: {"n": 1, "knn20": 1.0, "knn5": 1.0} for n in "ab"}
    assert "head_accuracy" not in downstream(equal)
