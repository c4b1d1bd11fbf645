"""Mistakes that people make at the command line, each of which is one line and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

Words = Sequence[str]


@dataclass(frozen=True)
class Places:
    """What the mistakes are made beside.

    Attributes:
        dataset: a whole dataset of ingest.
        empty: an empty folder.
        file: a file where a folder should be.
        foreign: a folder with a file of somebody else.
        new: nothing yet.
        weights: exported weights.
    """

    dataset: Path
    empty: Path
    file: Path
    foreign: Path
    new: Path
    weights: Path

    @classmethod
    def below(cls, folder: Path) -> Places:
        """All in one folder."""
        return cls(**{field.name: folder / field.name for field in fields(cls)})

    def prepare(self) -> None:
        """Makes what is to be there."""
        self.empty.mkdir(parents=True, exist_ok=True)
        self.foreign.mkdir(exist_ok=True)
        for file in (self.file, self.foreign / "notes.txt", self.weights):
            file.write_text("somebody else's")
        command = [
            *("ingest", "--source", "synthetic", "--input", "synthetic:cells=1,seed=0,px=264"),
            *("--output", str(self.dataset), "--tile-size", "132", "--modalities", "s1,s2_l2a"),
            # Without Ray: a cell is not worth its start.
            *("--set", "ingest.workers=0"),
        ]
        subprocess.run([sys.executable, "-m", "terrafm", *command], check=True, timeout=600)


@dataclass(frozen=True)
class Mistake:
    """A mistake.

    Attributes:
        name: what is wrong.
        words: arguments of `terrafm`.
        said: a part of the line.
    """

    name: str
    words: Callable[[Places], Words]
    said: str


def _ingest(
    source: str = "synthetic", archive: str = "synthetic:cells=1,seed=0,px=264", *more: str
) -> Callable[[Places], Words]:
    def words(at: Places) -> Words:
        values = {"EMPTY": str(at.empty), "NEW": str(at.new), "FILE": str(at.file)}
        filled = [values.get(word, word) for word in (archive, *more)]
        size = [] if "--tile-size" in more else ["--tile-size", "132"]
        output = [] if "--output" in more else ["--output", str(at.new / "tiles")]
        return ["ingest", "--source", source, "--input", filled[0], *output, *size, *filled[1:]]

    return words


def _pretrain(*settings: str, data: str = "", output: str = "") -> Callable[[Places], Words]:
    settings = ("data.modalities=[s1]", *settings)

    def words(at: Places) -> Words:
        where = getattr(at, output) if output else at.new / "run"
        chosen = data and (getattr(at, data) if hasattr(at, data) else data)
        sets = [word for setting in settings for word in ("--set", setting)]
        return [
            *("pretrain", "--config", "demo", "--data", str(chosen or at.dataset)),
            *("--output", str(where), *sets),
        ]

    return words


def _evaluate(verb: str, weights: str = "", data: str = "") -> Callable[[Places], Words]:
    return lambda at: [
        *("evaluate", verb, "--weights", weights or str(at.weights)),
        *("--data", data or str(at.dataset)),
    ]


MISTAKES = (
    Mistake("a verb that is none", lambda _: ["pretrian"], "pretrian"),
    Mistake("an option is missing", lambda _: ["pretrain", "--config", "demo"], "--data"),
    Mistake(
        "a recipe that is none",
        lambda at: ["pretrain", "--config", "dmo", "--data", str(at.dataset), "--output", "r"],
        "no recipe named 'dmo'",
    ),
    Mistake("a key that is none", _pretrain("optim.lr=1"), "optim.lr"),
    Mistake("a value of another kind", _pretrain("train.steps=many"), "train.steps"),
    Mistake("a value out of bounds", _pretrain("loss.alpha=2"), "loss.alpha"),
    Mistake("pretrain: no such dataset", _pretrain(data="/no/such"), "/no/such does not exist"),
    Mistake("pretrain: the dataset is an empty folder", _pretrain(data="empty"), "not a TerraFM"),
    Mistake("pretrain: the dataset is a file", _pretrain(data="file"), "file"),
    Mistake("pretrain: the output is a file", _pretrain(output="file"), "is a file: give a folder"),
    Mistake(
        "pretrain: a sensor that the dataset lacks",
        _pretrain("data.modalities=[s1,s2_l1c]"),
        "has no s2_l1c",
    ),
    Mistake("pretrain: crops larger than tiles", _pretrain("data.global_size=8192"), "8192"),
    Mistake(
        "pretrain: the output holds files of somebody else",
        _pretrain(output="foreign"),
        "is not empty and holds no run",
    ),
    Mistake(
        "pretrain: no such weights to start from",
        _pretrain("model.init=/no/such.safetensors"),
        "/no/such.safetensors",
    ),
    Mistake(
        "pretrain: no such labelled set",
        _pretrain("validation.every_steps=175", "validation.data=/no/such"),
        "/no/such",
    ),
    Mistake("ingest: a source that is none", _ingest("majortom"), "no source named 'majortom'"),
    Mistake("ingest: no such archive", _ingest("geotiff", "/no/such"), "/no/such"),
    Mistake("ingest: an empty archive", _ingest("geotiff", "EMPTY"), "empty"),
    Mistake(
        "ingest: a sensor that is none",
        _ingest("synthetic", "synthetic:cells=1", "--modalities", "s3"),
        "s3",
    ),
    Mistake(
        "ingest: a tile size that fits no grid",
        _ingest("synthetic", "synthetic:cells=1,seed=0,px=264", "--tile-size", "131"),
        "131",
    ),
    Mistake(
        "ingest: no such legend",
        _ingest("synthetic", "synthetic:cells=1,seed=0,px=264", "--legend", "/no/such.yaml"),
        "/no/such.yaml",
    ),
    Mistake(
        "ingest: no such climate raster",
        _ingest("synthetic", "synthetic:cells=1,seed=0,px=264", "--climate", "/no/such.tif"),
        "/no/such.tif",
    ),
    Mistake(
        "ingest: no such land cover",
        _ingest("synthetic", "synthetic:cells=1,seed=0,px=264", "--worldcover", "/no/such"),
        "/no/such",
    ),
    Mistake(
        "ingest: the output is a file",
        _ingest("synthetic", "synthetic:cells=1,seed=0,px=264", "--output", "FILE"),
        "is a file: give a folder",
    ),
    Mistake("inspect: no such dataset", lambda _: ["inspect", "/no/such"], "does not exist"),
    Mistake("verify: no such dataset", lambda _: ["verify", "/no/such"], "does not exist"),
    Mistake(
        "tile: a tile that is none",
        lambda at: ["tile", str(at.dataset), "no-such-tile", "--output", str(at.new / "tiles")],
        "no-such-tile",
    ),
    Mistake("knn: no such weights", _evaluate("knn", weights="/no/such"), "/no/such"),
    Mistake("knn: no such images", _evaluate("knn", data="/no/such"), "/no/such"),
    Mistake("compare: no such images", _evaluate("compare", data="/no/such"), "/no/such"),
    Mistake("retrieval: no such dataset", _evaluate("retrieval", data="/no/such"), "/no/such"),
    Mistake(
        "embed: no such weights",
        lambda at: [
            *("embed", "--weights", "/no/such", "--data", str(at.dataset)),
            *("--output", str(at.new)),
        ],
        "/no/such",
    ),
    Mistake(
        "embed: no such images",
        lambda at: [
            *("embed", "--weights", str(at.weights), "--data", "/no/such"),
            *("--output", str(at.new)),
        ],
        "/no/such",
    ),
    Mistake(
        "search: no such embeddings", lambda _: ["search", "/no/such", "--tile", "a"], "/no/such"
    ),
    Mistake(
        "report: no such folder",
        lambda at: ["report", "/no/such", "--output", str(at.new / "page.html")],
        "/no/such",
    ),
    Mistake(
        "report: a folder of something else",
        lambda at: ["report", str(at.foreign), "--output", str(at.new / "page.html")],
        "none of what a report can be about",
    ),
    Mistake(
        "report: the page has the name of no page",
        lambda at: ["report", str(at.dataset), "--output", str(at.new / "page")],
        "ends in .html",
    ),
    Mistake(
        "export: no such checkpoint",
        lambda at: [
            *("export", "--checkpoint", "/no/such", "--output", str(at.new)),
            *("--format", "released"),
        ],
        "/no/such",
    ),
    Mistake(
        "checkpoint list: no such run", lambda _: ["checkpoint", "list", "/no/such"], "/no/such"
    ),
    Mistake(
        "sweep: no such dataset",
        lambda at: [
            *("sweep", "--config", "sweep_demo", "--data", "/no/such"),
            *("--output", str(at.new)),
        ],
        "/no/such",
    ),
)


def _embed(*more: str, output: str = "new") -> Callable[[Places], Words]:
    return lambda at: [
        *("embed", "--weights", str(at.weights), "--data", str(at.dataset)),
        *("--output", str(getattr(at, output)), *more),
    ]


_SYNTHETIC = ("synthetic", "synthetic:cells=1,seed=0,px=264")

MISTAKES += (
    Mistake(
        "demo: the output is a file",
        lambda at: ["demo", "--output", str(at.file)],
        "is a file: give a folder",
    ),
    Mistake(
        "a configuration file that is none",
        lambda at: [
            "pretrain",
            "--config",
            str(at.new / "run.yaml"),
            "--data",
            str(at.dataset),
            "--output",
            str(at.new / "run"),
        ],
        "run.yaml",
    ),
    Mistake("a setting without a value", _pretrain("train.steps"), "train.steps"),
    Mistake("a section that is none", _pretrain("training.steps=4"), "training"),
    Mistake(
        "an address with a password in it",
        _pretrain(data="s3://KEY:SECRET@bucket/tiles"),
        "password",
    ),
    Mistake("a protocol that is none", _pretrain(data="s4://bucket/tiles"), "s4"),
    Mistake("pretrain: a model that is none", _pretrain("model.name=terrafm_huge"), "terrafm_huge"),
    Mistake("pretrain: fewer than one worker", _pretrain("train.workers=0"), "train.workers"),
    Mistake("ingest: half a bounding box", _ingest("safe", "EMPTY", "--bbox", "1,2,3"), "1,2,3"),
    Mistake("ingest: a time that is none", _ingest("safe", "EMPTY", "--time", "summer"), "summer"),
    Mistake("ingest: a grid that is none", _ingest("safe", "EMPTY", "--grid", "hex"), "hex"),
    Mistake(
        "ingest: no such geometry",
        _ingest("safe", "EMPTY", "--geometry", "/no/such.geojson"),
        "such.geojson",
    ),
    Mistake(
        "ingest: a codec that is none", _ingest(*_SYNTHETIC, "--set", "ingest.codec=zip"), "codec"
    ),
    Mistake("ingest: a class that is none", _ingest("nosuchmodule:Archive"), "nosuchmodule"),
    Mistake("ingest: nothing to append to", _ingest(*_SYNTHETIC, "--append"), "tiles"),
    Mistake("inspect: a file", lambda at: ["inspect", str(at.file)], "file"),
    Mistake("inspect: an empty folder", lambda at: ["inspect", str(at.empty)], "not a TerraFM"),
    Mistake(
        "verify: a version that is none",
        lambda at: ["verify", str(at.dataset), "--version", "7"],
        "version 7",
    ),
    Mistake(
        "tile: the output is a file",
        lambda at: ["tile", str(at.dataset), "any", "--output", str(at.file)],
        "is a file: give a folder",
    ),
    Mistake("evaluate: a protocol that is none", lambda _: ["evaluate", "knnn"], "knnn"),
    Mistake(
        "knn: a readout that is none",
        lambda at: [*_evaluate("knn")(at), "--readout", "max"],
        "max",
    ),
    Mistake(
        "knn: images smaller than a patch",
        lambda at: [*_evaluate("knn")(at), "--size", "8"],
        "--size",
    ),
    Mistake(
        "retrieval: too few tiles",
        lambda at: [*_evaluate("retrieval")(at), "--samples", "1"],
        "samples",
    ),
    Mistake("compare: no such weights", _evaluate("compare", weights="/no/such"), "/no/such"),
    Mistake("embed: the output is a file", _embed(output="file"), "is a file: give a folder"),
    Mistake("embed: a device that is none", _embed("--device", "tpu"), "tpu"),
    Mistake("embed: a batch of none", _embed("--batch", "0"), "batch"),
    Mistake(
        "search: a place that is none",
        lambda at: ["search", str(at.dataset), "--point", "here"],
        "--point here",
    ),
    Mistake(
        "search: a folder of something else",
        lambda at: ["search", str(at.foreign), "--tile", "a"],
        "foreign",
    ),
    Mistake(
        "report: the page is a folder",
        lambda at: ["report", str(at.dataset), "--output", str(at.empty)],
        "ends in .html",
    ),
    Mistake(
        "report: no such pixels",
        lambda at: [
            "report",
            str(at.dataset),
            "--output",
            str(at.new / "page.html"),
            "--data",
            "/no/such",
        ],
        "/no/such",
    ),
    Mistake(
        "export: a format that is none",
        lambda at: [
            "export",
            "--checkpoint",
            str(at.empty),
            "--output",
            str(at.new),
            "--format",
            "keras",
        ],
        "keras",
    ),
    Mistake(
        "export: no such weights",
        lambda at: [
            "export",
            "--checkpoint",
            "/no/such/best.safetensors",
            "--output",
            str(at.new),
            "--format",
            "hf",
        ],
        "/no/such/best.safetensors",
    ),
    Mistake(
        "checkpoint list: an empty folder",
        lambda at: ["checkpoint", "list", str(at.empty)],
        "no complete checkpoint",
    ),
    Mistake(
        "checkpoint verify: no such run",
        lambda at: ["checkpoint", "verify", "/no/such"],
        "/no/such",
    ),
    Mistake(
        "checkpoint average: only one",
        lambda at: ["checkpoint", "average", str(at.empty), "--output", str(at.new)],
        "two checkpoints",
    ),
    Mistake(
        "checkpoint average: no such checkpoints",
        lambda at: ["checkpoint", "average", "/no/such", "/nor/this", "--output", str(at.new)],
        "/no/such",
    ),
    Mistake(
        "sweep: the output is a file",
        lambda at: [
            "sweep",
            "--config",
            "sweep_demo",
            "--data",
            str(at.dataset),
            "--output",
            str(at.file),
            "--set",
            "data.modalities=[s1]",
        ],
        "is a file: give a folder",
    ),
    Mistake(
        "submit: a verb that is none",
        lambda at: ["submit", "--address", "http://127.0.0.1:9", "pretrian"],
        "cannot submit pretrian",
    ),
    Mistake(
        "submit: a verb for this machine",
        lambda at: ["submit", "--address", "http://127.0.0.1:9", "demo"],
        "cannot submit demo",
    ),
    Mistake(
        "submit: no cluster is named", lambda at: ["submit", "verify", str(at.dataset)], "--address"
    ),
    Mistake("jobs: no cluster is named", lambda _: ["jobs", "list"], "--address"),
    Mistake(
        "jobs: an address that is none",
        lambda _: ["jobs", "list", "--address", "ftp://host"],
        "ftp://host",
    ),
    Mistake("cluster: of another kind", lambda _: ["cluster", "up"], "--local"),
    Mistake(
        "cluster: workers of none",
        lambda _: ["cluster", "up", "--local", "--workers", "-1"],
        "at least one worker",
    ),
    Mistake(
        "doctor: an address without a cluster",
        lambda _: ["doctor", "--address", "http://127.0.0.1:9"],
        "add --cluster",
    ),
    Mistake(
        "doctor: nobody answers",
        lambda _: ["doctor", "--cluster", "--address", "http://127.0.0.1:9"],
        "127.0.0.1:9",
    ),
    Mistake("doctor: a store that is none", lambda _: ["doctor", "--store", "s4://bucket"], "s4"),
)
