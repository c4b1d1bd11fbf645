"""The whole road on a small synthetic Earth: archive to tiles to weights to a score."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from terrafm.config import Config, load_config
from terrafm.data.ingest.job import ingest
from terrafm.data.shards.dataset import Dataset
from terrafm.eval.probes.knn import evaluate_knn, render
from terrafm.eval.retrieval.evaluate import RetrievalOptions, evaluate_retrieval
from terrafm.eval.retrieval.scores import (
    CHANCE,
    DEVIATION,
    MEAN_SPECTRUM,
    SHIFTED,
    UNTRAINED,
    WEIGHTS,
)
from terrafm.export import export_checkpoint
from terrafm.pictures.dataset import class_histogram, tile_map
from terrafm.pictures.sample import quicklook
from terrafm.pictures.training import loss_curve
from terrafm.progress import progress_bar, working
from terrafm.ray.runtime import ensure_ray
from terrafm.storage import join, to_json, write_bytes
from terrafm.terminal import PlainConsole
from terrafm.train.driver.pretrain import describe, pretrain

TRAINING_ARCHIVE = "synthetic:cells=192,seed=0,px=264"
HELD_OUT_ARCHIVE = "synthetic:cells=160,seed=2,px=264"
# Small cells of four tiles: many different places for little work.
TILE_SIZE = 132
LOGICAL_CPUS = 4
RETRIEVAL_TILES = 200
HEADLINE = "s1>s2_l2a"
_WITH_BAR = ("pretrain",)


def demo_config(seed: int) -> Config:
    """The recipe as `terrafm demo` runs it: one worker on two threads; two tasks read and crop."""
    return load_config("demo", [f"train.seed={seed}", "train.cpus_per_worker=2"])


@dataclass
class _Stages:
    """What was done, how long it took, and what came out."""

    console: PlainConsole
    rows: list[dict[str, Any]] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[dict[str, Any]]:
        began = time.perf_counter()
        row: dict[str, Any] = {"stage": name, "seconds": 0.0, "result": ""}
        # A stage with a bar of its own shows that: a terminal has room for one.
        with nullcontext() if name in _WITH_BAR else working(self.console, f"  {name} ..."):
            yield row
        row["seconds"] = round(time.perf_counter() - began, 1)
        self.rows.append(row)
        self.console.say(f"  {name:<10} {row['seconds']:>6.1f} s   {row['result']}")

    def table(self) -> Table:
        table = Table(title="TerraFM demo", title_justify="left")
        table.add_column("stage")
        table.add_column("seconds", justify="right")
        table.add_column("result")
        for row in self.rows:
            table.add_row(row["stage"], f"{row['seconds']:.1f}", row["result"])
        total = sum(row["seconds"] for row in self.rows)
        table.add_section()
        table.add_row("all", f"{total:.1f}", "")
        return table


@dataclass(frozen=True)
class DemoResult:
    """What came out.

    Attributes:
        summary: stages with seconds, kNN accuracies (0..1) of the trained encoder, of the same
            encoder untrained, and of mean spectra, with Sentinel-2 L2A alone under `knn`, and for
            each sensor and all fused under `knn_by_modality`.
        tables: the same for the terminal.
    """

    summary: dict[str, Any]
    tables: Group


def run_demo(output: str, console: PlainConsole, *, seed: int = 0) -> DemoResult:
    """Runs every stage once and writes `summary.json` and pictures; a repeat goes on.

    Args:
        output: URI of the demo's folder.
        console: where the stages go.
        seed: of the training run; the two archives are always the same.

    Returns:
        The content of `summary.json`, and tables of it.
    """
    config = demo_config(seed)
    stages = _Stages(console)
    train_uri, held_out_uri = join(output, "data", "train"), join(output, "data", "held-out")
    run_uri, pictures = join(output, "run"), join(output, "pictures")
    with stages.stage("start") as row:
        ensure_ray(LOGICAL_CPUS)
        row["result"] = f"Ray with {LOGICAL_CPUS} logical CPUs on this machine"
    for name, archive, uri in (
        ("ingest", TRAINING_ARCHIVE, train_uri),
        ("held out", HELD_OUT_ARCHIVE, held_out_uri),
    ):
        with stages.stage(name) as row:
            report = ingest("synthetic", archive, uri, tile_size=TILE_SIZE, config=config.ingest)
            row["result"] = f"{report.tiles} tiles of {archive}"
    with stages.stage("pretrain") as row:
        with progress_bar(console, "steps") as advance:
            run = pretrain(config, train_uri, run_uri, progress=advance)
        row["result"] = f"{describe(run).partition(', checkpoint')[0]} in {run_uri}"
    with stages.stage("export") as row:
        written, _ = export_checkpoint(run.checkpoint, join(output, "weights"), "safetensors")
        export_checkpoint(run.checkpoint, join(output, "weights"), "released")
        row["result"] = written[0]
    with stages.stage("evaluate") as row:
        score = evaluate_knn(written[0], held_out_uri, size=config.data.global_size)
        row["result"] = (
            f"kNN on {score['headline']}: {score['knn20']:.1%}, "
            f"untrained {score['untrained']['knn20']:.1%}"
        )
    with stages.stage("retrieve") as row:
        retrieval = _found_again(written[0], held_out_uri)
        recall = retrieval[HEADLINE]
        row["result"] = (
            f"radar finds its own ground in L2A among the first 10: {recall[WEIGHTS]:.1%}, "
            f"chance {recall[CHANCE]:.1%}"
        )
    with stages.stage("pictures") as row:
        dataset = Dataset.open(train_uri)
        tile_map(dataset, join(pictures, "tiles.png"))
        class_histogram(dataset, config, join(pictures, "classes.png"))
        quicklook(dataset, _most_varied(dataset), config, join(pictures, "tile.png"))
        loss_curve(join(run_uri, "metrics.jsonl"), join(pictures, "loss.png"))
        row["result"] = pictures
    summary = {
        "stages": stages.rows,
        "seconds": round(sum(row["seconds"] for row in stages.rows), 1),
        "knn": _scores(score),
        "knn_modality": score["headline"],
        "knn_by_modality": {n: _scores(row) for n, row in score["by_modality"].items()},
        "held_out_tiles": score["n"],
        "retrieval": retrieval,
        "seed": seed,
    }
    write_bytes(join(output, "summary.json"), (to_json(summary, indent=1) + "\n").encode())
    return DemoResult(summary, Group(stages.table(), _retrieval_table(retrieval), render(score)))


def _found_again(weights: str, data: str) -> dict[str, dict[str, float]]:
    """How often a tile's ground is among the first ten by another sensor, for each pair of them.

    Returns:
        "s1>s2_l2a" and its like -> recall@10 (0..1) of the weights, of untrained encoders, of the
        spectra where both sensors have the same bands, and by chance.
    """
    result = evaluate_retrieval(weights, data, RetrievalOptions(samples=RETRIEVAL_TILES))
    return {
        task["task"]: {
            name: metrics["recall10"]["value"] for name, metrics in task[SHIFTED]["rows"].items()
        }
        for task in result["tasks"]
    }


def _retrieval_table(found: dict[str, dict[str, float]]) -> Table:
    table = Table(
        title="A tile's ground by another sensor: among the first 10", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    for title in ("trained", "untrained", "mean and\ndeviation", "mean\nspectrum", "chance"):
        table.add_column(title, justify="right")
    for task, row in found.items():
        names = (WEIGHTS, UNTRAINED, DEVIATION, MEAN_SPECTRUM, CHANCE)
        cells = (f"{row[name]:.1%}" if name in row else "-" for name in names)
        table.add_row(task.replace(">", " to "), *cells)
    return table


def _scores(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    rows = {
        "trained": result,
        "untrained": result["untrained"],
        "mean_spectrum": result["mean_spectrum"],
    }
    return {name: {k: row[k] for k in ("knn20", "knn5")} for name, row in rows.items()}


def _most_varied(dataset: Dataset) -> int:
    """The tile with all modalities whose land cover is most mixed: the one to look at."""
    entropy = np.full(len(dataset), -1.0)
    for row in np.flatnonzero(dataset.available.all(axis=1)).tolist():
        pixels = np.array(list(dataset.histogram(row).values()), dtype=float)
        share = pixels / pixels.sum()
        entropy[row] = -(share * np.log(share)).sum()
    return int(entropy.argmax())
