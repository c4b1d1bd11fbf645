"""Does a pretraining here make a better encoder, whichever cities are held out?

    python benchmarks/rotation.py [--folds 5] [--seeds 0 1 2] [--json]

learning.py scores five cities, which are five draws: how alike their two dates are decides what
any encoder can gain there. Here every city of the archive is held out once: the cities are dealt
to as many groups as there are folds, and for each group the recipe is trained on all others, beside
SimCLR's loss on the same crops, and scored as in learning.py. The queries of all groups are put
together; intervals by bootstrap over whole cities. Beside the other date stands the same date,
shifted alike: what is found where nothing has changed. Cities without radar at both dates are left
out. Four of the cities were looked at while the recipe was chosen; the figures without them are
printed too.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from common import Figure, note, parse, parser, report
from harness import cities
from harness.found_again import SAME, FoundAgain, normalisation_of
from harness.oscd import OscdCities
from harness.plain_training import Training
from harness.trainings import train_all
from numpy.typing import NDArray

from terrafm.config import load_config
from terrafm.eval.features.readouts import Readout
from terrafm.eval.retrieval.ranks import Ranks
from terrafm.eval.retrieval.scores import DEPTHS, SHIFTED, UNTRAINED, WEIGHTS, Bootstrap, score
from terrafm.models.weights import load_encoder

RECIPE = "real_cpu"
CHOSEN_ON = ("cupertino", "hongkong", "pisa", "rennes")
"""Cities on which the recipe and its readout were chosen (docs/log.md)."""

DATES, RADAR = "s2_l1c>later", "s1>s2_l1c"
TASKS = (DATES, f"s2_l1c>{SAME}", RADAR)
METRICS = ("recall1", "recall10")
OURS, CONTRASTIVE = "ours", "contrastive"
OBJECTIVES = {OURS: "distillation", CONTRASTIVE: "contrastive"}
Rows = dict[str, list[Ranks]]


def main() -> None:
    """Ingests, trains, scores, prints."""
    arguments = parse(_options())
    archive = arguments.real / "oscd"
    if not archive.is_dir():
        raise SystemExit(f"no cities: {archive} does not exist (--real)")
    work = arguments.work / "rotation"
    folds = _folds(archive, arguments.folds)
    trainings = {
        number: _trainings(arguments, fold, number, archive, work)
        for number, fold in enumerate(folds)
    }
    train_all([t for fold in trainings.values() for t in fold], work, arguments.jobs)
    pooled: dict[str, dict[str, list[Rows]]] = {}
    places: dict[str, list[NDArray[np.str_]]] = {}
    for number, fold in enumerate(folds):
        note(f"scores {', '.join(fold)}")
        found = _fold(trainings[number], ",".join(fold), number, archive, work, arguments.readout)
        for task, (queries, rows) in found.items():
            places.setdefault(task, []).append(queries)
            for contestant, table in rows.items():
                pooled.setdefault(task, {}).setdefault(contestant, []).append(table)
    figures = []
    for task, contestants in pooled.items():
        names = np.concatenate(places[task])
        for contestant, tables in contestants.items():
            figures += _figures(contestant, task, _put_together(tables), names)
    report(figures, arguments, "Onera cities, each held out once, L1C and S1 VV")


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__, rounds=1)
    options.add_argument("--folds", type=int, default=5, help="groups of cities (%(default)s)")
    options.add_argument("--recipe", default=RECIPE, help="recipe or YAML file (%(default)s)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--steps", type=int, help="of each training, in place of the recipe's")
    options.add_argument("--only", nargs="+", choices=list(OBJECTIVES), default=list(OBJECTIVES))
    options.add_argument("--jobs", type=int, default=2, help="trainings at once (%(default)s)")
    options.add_argument("--readout", type=Readout, default=Readout.MEAN_STD, choices=list(Readout))
    return options


def _folds(archive: Path, count: int) -> list[list[str]]:
    """Names of the cities that have radar at both dates, dealt to groups.

    Those of one name before the underscore may share ground, and stay together.
    """
    dates: dict[str, int] = {}
    for cell in OscdCities(str(archive), ("s1", "s2_l1c")).cells():
        name = cell.cell_id.rpartition("_")[0]
        dates[name] = dates.get(name, 0) + ("s1" in cell.modalities)
    complete = [name for name, with_radar in sorted(dates.items()) if with_radar == 2]
    grounds = sorted({name.partition("_")[0] for name in complete})
    return [
        [name for name in complete if name.partition("_")[0] in grounds[start::count]]
        for start in range(count)
    ]


def _trainings(
    arguments: argparse.Namespace, fold: Sequence[str], number: int, archive: Path, work: Path
) -> list[Training]:
    steps = 2 if arguments.quick else arguments.steps or load_config(arguments.recipe).train.steps
    data = cities.ingest(f"{archive}?without={','.join(fold)}", work / f"without-{number}")
    return [
        Training(
            f"{name}, fold {number}",
            data,
            arguments.recipe,
            (f"train.steps={steps}",),
            seed,
            OBJECTIVES[name],
            steps,
        )
        for seed in arguments.seeds
        for name in arguments.only
    ]


def _fold(
    trainings: Sequence[Training],
    held_out: str,
    number: int,
    archive: Path,
    work: Path,
    readout: Readout,
) -> dict[str, tuple[NDArray[np.str_], dict[str, Rows]]]:
    """Task -> cities of its queries, and contestant -> rows: its own and the baselines'."""
    uri = cities.ingest(f"{archive}?cities={held_out}", work / f"cities-{number}")
    encoders = {
        training: load_encoder(str(next(training.folder(work).glob("step_*.safetensors"))))
        for training in trainings
    }
    contract = next(iter(encoders.values())).contract
    assert contract is not None
    table = FoundAgain(
        uri,
        contract.model,
        tuple(contract.modalities),
        # All of a group were trained on the same tiles.
        normalisation_of(contract),
        size=contract.image_size,
        readout=readout,
    )
    ranks = {training: table.ranks([encoder]) for training, encoder in encoders.items()}
    found = {}
    for task in (name for name in TASKS if name in table.tasks):
        baselines = table.baselines(task, SHIFTED)
        rows: dict[str, Rows] = {}
        for training in trainings:
            contestant = training.name.partition(",")[0]
            own = rows.setdefault(contestant, {WEIGHTS: [], **baselines})
            own[WEIGHTS] += ranks[training][task, SHIFTED]
        queried = np.array([name.partition("_")[0] for name in table.names(task)])
        found[task] = (queried, rows)
    return found


def _put_together(tables: Sequence[Rows]) -> Rows:
    """The queries of all groups one after the other; each was ranked within its own group."""
    return {
        name: [
            Ranks(
                *(
                    np.concatenate([getattr(table[name][at], field) for table in tables])
                    for field in ("before", "equal", "candidates")
                )
            )
            for at in range(len(tables[0][name]))
        ]
        for name in tables[0]
    }


def _figures(contestant: str, task: str, rows: Rows, names: NDArray[np.str_]) -> list[Figure]:
    figures = []
    for metric in METRICS:
        for row, several in rows.items():
            if row == WEIGHTS or contestant == OURS:
                title = f"{contestant if row == WEIGHTS else row}: {task}, {metric}"
                figures.append(Figure(title, _percent(several, metric), None, "higher", "%"))
        if task == RADAR:
            ratio = _percent(rows[WEIGHTS], metric) / _percent(rows[UNTRAINED], metric)
            figures.append(
                Figure(f"{contestant}: {task}, {metric} over untrained", ratio, None, "higher", "x")
            )
    chosen = np.isin(names, CHOSEN_ON)
    for label, kept in (("all cities", np.ones_like(chosen)), ("without those four", ~chosen)):
        numbers = np.unique(names[kept], return_inverse=True)[1]
        gain = score(_some(rows, kept), Bootstrap.of(numbers))["gain"]
        for metric in METRICS:
            title = f"{contestant}: {task}, {metric}, gain over {gain[metric]['over']}, {label}"
            figures.append(Figure(title, 100 * gain[metric]["value"], None, "higher", "points"))
            figures.append(
                Figure(f"{title}, lower end", 100 * gain[metric]["low"], None, "higher", "points")
            )
    if contestant == OURS and task != RADAR:
        for city in np.unique(names).tolist():
            here = _some(rows, names == city)
            for row in (WEIGHTS, UNTRAINED):
                title = f"{city}, {(names == city).sum()} queries, {row}: {task}, recall10"
                figures.append(Figure(title, _percent(here[row], METRICS[1]), None, "higher", "%"))
    return figures


def _some(rows: Mapping[str, Sequence[Ranks]], kept: NDArray[np.bool_]) -> Rows:
    return {
        name: [Ranks(r.before[kept], r.equal[kept], r.candidates[kept]) for r in several]
        for name, several in rows.items()
    }


def _percent(several: Sequence[Ranks], metric: str) -> float:
    return 100 * float(np.mean([ranks.hits(DEPTHS[metric]).mean() for ranks in several]))


if __name__ == "__main__":
    main()
