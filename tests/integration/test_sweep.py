"""A sweep on a real Ray: what comes out."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml
from commands import terrafm
from sweeps import ALPHA, STEPS, command, table

from terrafm.config import load_config

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_points_and_seeds_make_a_table_a_best_point_and_a_report(small_dataset, tmp_path):
    output = tmp_path / "sweep"
    done = terrafm(
        *command(small_dataset, output, ALPHA, "tune.trials=2", "tune.seeds=2"), timeout=600
    )
    rows = table(output)
    assert rows["state"].tolist() == ["finished"] * 4
    assert sorted(zip(rows["point"], rows["seed"], strict=True)) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert rows.groupby("point")["loss.alpha"].nunique().tolist() == [1, 1]
    assert (rows["steps"] == STEPS).all()
    for row in rows.itertuples():
        saved = yaml.safe_load(Path(row.run, "config.yaml").read_text())
        assert saved["loss"]["alpha"] == json.loads(rows.loc[row.Index, "loss.alpha"])
        assert saved["train"]["seed"] == row.seed
    means = rows.groupby("point")["balanced_accuracy"].mean()
    best = load_config(str(output / "best.yaml"))
    expected = json.loads(rows[rows["point"] == means.idxmax()]["loss.alpha"].iloc[0])
    assert best.loss.alpha == expected
    assert (output / "report.html").stat().st_size > 10_000
    assert "best point" in done.stdout
    # Nothing is left to do, and the table stays as it is.
    again = terrafm(
        *command(small_dataset, output, ALPHA, "tune.trials=2", "tune.seeds=2"), "--resume"
    )
    assert again.stdout.splitlines()[-4:] == done.stdout.splitlines()[-4:]
    pd.testing.assert_frame_equal(table(output), rows)
