"""More mistakes at the command line: a value that an option does not take, for every verb."""

from __future__ import annotations

from dataclasses import fields

from harness.mistakes import Mistake, Places, Words

_EMBED = "embed --weights {weights} --data {dataset} --output {new}"
_KNN = "evaluate knn --weights {weights} --data {dataset}"
_RETRIEVAL = "evaluate retrieval --weights {weights} --data {dataset}"
_COMPARE = "evaluate compare --weights {weights} --data {dataset}"
_TABLE = "evaluate table --weights {weights} --data {dataset}"
_RUN = "pretrain --config demo --data {dataset} --output {new}/run --set data.modalities=[s1]"
_SWEEP = "sweep --config sweep_demo --data {dataset} --output {new}/sweep"

# Command -> a part of the line. A name in braces is a place of `Places`.
_TABLE = {
    "ingest --source stac --input {empty} --output {new}/tiles --sign here": "'here'",
    "ingest --source safe --input {empty} --output {new}/tiles --sign planetary-computer": "--sign",
    "inspect {dataset} --set data.resample_exponent=2": "data.resample_exponent",
    "inspect {dataset} --version 1": "--version",
    "tile {dataset} any --output {new} --tile 9": "--tile",
    f"{_RUN} --set train.trackers=[neptune]": "train.trackers",
    f"{_RUN} --set train.trackers=[mlflow,mlflow+weights]": "train.trackers",
    f"{_RUN} --set train.trackers=[tensorboard+weights]": "train.trackers",
    f"{_RUN} --set distil.teacher=/no/such.safetensors": "/no/such.safetensors",
    f"{_RUN} --set model.frozen=[head]": "model.frozen",
    f"{_RUN} --steps 20": "--steps",
    "export --checkpoint {weights} --output {new} --format hf --model pupil": "pupil",
    f"{_EMBED} --size 8": "--size",
    f"{_EMBED} --window 0": "--window",
    f"{_EMBED} --overlap -1": "--overlap",
    f"{_EMBED} --quantise int4": "int4",
    f"{_EMBED} --dense-format netcdf": "netcdf",
    f"{_EMBED} --readout max": "max",
    f"{_EMBED} --normalise data": "--normalise",
    f"{_EMBED} --workers -1": "--workers",
    "search {dataset} --tile a -k 0": "at least 1",
    "search {dataset} --tile a --output {empty}": "holds no embeddings",
    "search {dataset} --tile a --data /no/such": "holds no embeddings",
    "search {dataset} --tile a --point 1,2": "either a tile or a point",
    "search {dataset}": "either a tile or a point",
    "search {dataset} --point 200,95": "longitude",
    "report {dataset} --output {new}/page.html --watch 1": "--watch",
    "report {dataset} --output {new}/page.html --set data.nothing=1": "data.nothing",
    f"{_KNN} --workers -1": "--workers",
    f"{_RETRIEVAL} --readout max": "max",
    f"{_RETRIEVAL} --normalise data": "--normalise",
    f"{_RETRIEVAL} --size 8": "--size",
    f"{_RETRIEVAL} --batch 0": "--batch",
    f"{_RETRIEVAL} --seed -1": "--seed",
    f"{_RETRIEVAL} --resamples 0": "--resamples",
    f"{_COMPARE} --normalise data": "--normalise",
    f"{_COMPARE} --readout max": "max",
    f"{_COMPARE} --size 8": "--size",
    f"{_COMPARE} --batch 0": "--batch",
    f"{_COMPARE} --seed one": "--seed",
    f"{_COMPARE} --resamples 0": "--resamples",
    f"{_TABLE} --normalise data": "--normalise",
    f"{_TABLE} --readout max": "max",
    f"{_TABLE} --size 8": "--size",
    f"{_TABLE} --batch 0": "--batch",
    f"{_TABLE} --seed one": "--seed",
    f"{_TABLE} --resamples 0": "--resamples",
    f"{_TABLE} --output {{dataset}}": "is a folder",
    f"{_TABLE} --data /no/such": "/no/such",
    f"{_COMPARE} --workers 0": "--workers",
    f"{_COMPARE} --epochs 0": "--epochs",
    f"{_SWEEP} --set tune.search=bayes": "tune.search",
    f"{_SWEEP} --set tune.trials=0": "tune.trials",
    "checkpoint verify {empty}": "no complete checkpoint",
    "checkpoint verify {file}": "no complete checkpoint",
    "cluster up --local --cpus 0": "one CPU",
    "cluster status --local": "--local",
    "cluster down now": "now",
    "jobs status job --address ftp://host": "ftp://host",
    "jobs logs job --address ftp://host": "ftp://host",
    "jobs stop job --address ftp://host": "ftp://host",
    "jobs stop": "JOB",
}


def _words(command: str, at: Places) -> Words:
    places = {field.name: str(getattr(at, field.name)) for field in fields(at)}
    return [word.format(**places) for word in command.split()]


OPTION_MISTAKES = tuple(
    Mistake(command, lambda at, command=command: _words(command, at), said)  # type: ignore[misc]
    for command, said in _TABLE.items()
)
