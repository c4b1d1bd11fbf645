"""Folders of runs of every kind, written by the code that writes them in a run."""

import json
import math

import numpy as np
import pytest

from terrafm.config import load_config
from terrafm.embed.rows import part_bytes
from terrafm.embed.schema import MANIFEST, TILES, EmbeddingManifest, PartFile
from terrafm.embed.source import DatasetTiles
from terrafm.storage import append_json_line, join, write_bytes, write_json_lines
from terrafm.train.step.collapse import CollapseAlarm

BEGIN = 1_790_000_000.0


class RunFolder:
    """A run's folder that grows by events and lines; time passes as the caller says.

    Args:
        path: of the folder.
        settings: over those of the recipe `demo`.
    """

    def __init__(self, path, *settings):
        self.path, self.now, self.step = path, BEGIN, 0
        path.mkdir(parents=True)
        (path / "checkpoints").mkdir()
        self.config = load_config("demo", ["train.steps=1000", *settings])
        command = f"# terrafm pretrain --config {path}/config.yaml --data d --output {path}\n"
        (path / "config.yaml").write_text(command + self.config.to_yaml())
        dataset = {"uri": "/no/such/tiles", "version": 1, "fingerprint": "f" * 64}
        (path / "dataset.json").write_text(json.dumps(dataset))
        self.alarm = CollapseAlarm(self.config.head.num_prototypes, 50)
        self.generator = np.random.default_rng(0)

    def event(self, event, seconds_later=0.0, **facts):
        """Writes an event after some seconds."""
        self.now += seconds_later
        append_json_line(
            str(self.path / "events.jsonl"),
            {"time": round(self.now, 3), "event": event, **facts},
        )
        return self

    def started(self, workers=2, seconds_later=1.0, trains_after=20.0, **more):
        """A worker group that comes to its first step."""
        facts = {
            "cpus": 4.0 * workers,
            "gpus": workers,
            "cluster": {"nodes": 1, "cpus": 16.0, "gpus": 8.0, "accelerators": ["H200"]},
            "versions": {"terrafm": "0.1.0", "torch": "2.15.0"},
            "commit": "0123456789ab",
        }
        self.event("started", seconds_later, workers=workers, step=self.step, **facts | more)
        return self.event("training", trains_after, workers=workers)

    def lines(self, count, every=1, seconds=1.0, loss=None, **values):
        """Writes lines of metrics.jsonl, as many seconds apart."""
        written = []
        for _ in range(count):
            self.step += every
            self.now += seconds
            written.append(self.line(seconds / every, loss) | values)
            written[-1] |= self.alarm.judge(written[-1])
        file = self.path / "metrics.jsonl"
        before = file.read_text() if file.exists() else ""
        file.write_text(before + "".join(json.dumps(line) + "\n" for line in written))
        return self

    def line(self, seconds_per_step, loss=None):
        """Of a healthy run that gets on."""
        share = self.step / 1000
        noise = float(self.generator.normal(0, 0.05))
        tiles = self.config.train.global_batch / seconds_per_step
        return {
            "step": self.step,
            "loss": 3.0 + 3.5 * math.exp(-3 * share) + noise if loss is None else loss,
            "teacher_entropy": 2.5 + 2 * math.exp(-3 * share) + noise,
            "student_entropy": 3.0 + 2 * math.exp(-3 * share) + noise,
            "lr": 5e-4 * (1 - share / 2),
            "weight_decay": 0.04,
            "momentum": 0.99 + 0.01 * min(share, 1),
            "teacher_temp": 0.04,
            "grad_norm": 1.0 + abs(noise),
            "effective_rank": 40 + 20 * min(share, 1),
            "prototype_perplexity": 500 + 100 * min(share, 1),
            "skipped_steps": 0,
            "time": round(self.now, 3),
            "tiles_per_second": tiles,
            "tiles_per_second_per_worker": tiles / 2,
            "data_wait": 0.04,
            "share_prepare": 0.05,
            "share_teacher": 0.2,
            "share_forward": 0.25,
            "share_backward": 0.35,
            "share_optimizer": 0.07,
            "share_checkpoint": 0.02,
            "share_other": 0.02,
            "memory_bytes": 2_000_000_000,
            "mfu": 0.41,
            "bottleneck": "compute",
            "bottleneck_share": 0.07,
        }

    def forget(self, step):
        """Drops lines past a step, as a run does that goes on from there."""
        file = self.path / "metrics.jsonl"
        kept = list(map(json.loads, file.read_text().splitlines()))
        file.write_text("".join(json.dumps(k) + "\n" for k in kept if k["step"] <= step))
        self.step = step
        return self

    def scores(self, *steps, classes=("tree cover", "mangroves", "snow")):
        """Validations at some steps."""
        lines = []
        for number, step in enumerate(steps):
            metrics = {"retrieval/s1-to-s2_l2a/recall10": 0.2 + 0.1 * number}
            for choice in ("s1", "s2_l2a", "fused"):
                metrics[f"knn20/{choice}/accuracy"] = 0.3 + 0.1 * number
                metrics[f"knn20/{choice}/tail_accuracy"] = 0.1 + 0.1 * number
                metrics[f"effective_rank/{choice}"] = 20.0
            rows = {name: {"n": 20, "knn20": 0.3, "knn5": 0.2} for name in classes}
            lines.append(
                {
                    "step": step,
                    "checkpoint": f"checkpoints/step_{step:08d}",
                    "samples": 60,
                    "metrics": metrics,
                    "per_class": dict.fromkeys(("s1", "s2_l2a", "fused"), rows),
                    "tail": [classes[-1]],
                    "retrieval": {"tasks": {"s1-to-s2_l2a": {"n": 60, "candidates": 60}}},
                }
            )
        write_json_lines(str(self.path / "validation.jsonl"), lines)
        best = {"step": steps[-1], "metric": "knn20/s2_l2a/accuracy", "mode": "max", "value": 0.5}
        (self.path / "checkpoints" / "best.json").write_text(json.dumps(best))
        return self


@pytest.fixture
def run_folder(tmp_path):
    """Makes a run's folder."""
    return lambda name="run", *settings: RunFolder(tmp_path / name, *settings)


@pytest.fixture
def troubled(run_folder):
    """A run that lost a worker, was killed twice, grew, was not finite once, and finished."""
    run = run_folder("troubled").started(workers=2).lines(300)
    run.event("lost", 1.0, reason="the process of rank 1 died", step=300, seconds=0.5)
    run.event("resumed", step=280, steps=20, seconds=20.0).forget(280)
    run.started(workers=1).lines(100)
    run.event("stopping", reason="there is room for 4 workers")
    run.event("stopped", 2.0, step=380, reason="there is room for 4 workers")
    run.started(workers=4).lines(70)
    # Killed: no event says so.
    run.forget(440).started(workers=4, seconds_later=600.0).lines(100)
    run.forget(520).started(workers=4, seconds_later=60.0).lines(480)
    (run.path / "nonfinite.jsonl").write_text(json.dumps({"step": 610, "rank": 0}) + "\n")
    run.event("finished", 1.0, step=1000)
    return run.scores(250, 500, 1000)


@pytest.fixture
def collapsed(run_folder):
    """A run whose teacher sends all images to a few prototypes."""
    run = run_folder("collapsed").started().lines(200)
    return run.lines(100, teacher_entropy=0.4, prototype_perplexity=5.0, effective_rank=3.0)


@pytest.fixture(scope="session")
def embedded(small_dataset, tmp_path_factory):
    """URI of the small dataset's embeddings, which are random numbers."""
    tiles = DatasetTiles(small_dataset)
    places = [tiles.place(row) for row in range(len(tiles))]
    vectors = np.random.default_rng(1).normal(size=(len(places), 8)).astype(np.float32)
    content = part_bytes(places, [("s1",)] * len(places), vectors, ("model", tiles.fingerprint))
    folder = str(tmp_path_factory.mktemp("report") / "embedded")
    write_bytes(join(folder, TILES, "part-00000.parquet"), content)
    part = PartFile(name="part-00000.parquet", rows=len(places), bytes=len(content), sha256="")
    manifest = EmbeddingManifest(
        rows=len(places), skipped=0, dim=8, readout="cls", model="terrafm_tiny", weights="w",
        model_fingerprint="model", data=small_dataset, data_kind="dataset",
        data_fingerprint=tiles.fingerprint, modalities=("s1",), normalisation={}, options={},
        legend={}, parts=(part,), versions={},
    )  # fmt: skip
    write_bytes(join(folder, MANIFEST), manifest.to_json().encode())
    return folder
