"""Small sweeps for the tests: seconds of training a trial."""

import json

import pandas as pd

STEPS, EVERY = 12, 4
SETTINGS = [
    f"train.steps={STEPS}",
    f"train.checkpoint_every={EVERY}",
    "train.keep_checkpoints=9",
    "train.global_batch=6",
    "train.log_every=1",
    "head.num_prototypes=32",
    "data.local_crops=2",
    "data.rows_per_block=6",
    "tune.max_concurrent=2",
]
ALPHA = "tune.space={loss.alpha: {uniform: [0, 1]}}"


def command(data, output, *more):
    overrides = [part for setting in (*SETTINGS, *more) for part in ("--set", setting)]
    return ["sweep", "--config", "demo", "--data", data, "--output", output, *overrides]


def table(output):
    return pd.read_parquet(output / "trials.parquet")


def scores(output, trial):
    path = output / "trials" / f"{trial:04d}" / "scores.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
