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
