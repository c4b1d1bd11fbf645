"""Does a pretraining here make a better encoder? Real pixels, held-out cities, several seeds.

    python benchmarks/learning.py [--held-out FOLDER] [--seeds 0 1 2] [--json]

Trains the recipe in plain processes on cities of the Onera set (Sentinel-2 L1C of two dates,
Sentinel-1 VV), beside SimCLR's contrastive loss on the same crops, batches and steps, and asks on
cities that no training saw: is the ground of a tile found again at its other date, or by its other
sensor? The two sides are cut from different, overlapping parts of a tile. Against the best of five
fresh encoders, the mean spectrum, and the mean with the deviation of the bands; intervals by
bootstrap over places, paired. An embedding is the mean and deviation of the patch tokens, unless
--readout says another.

FOLDER holds cities laid out as `oscd`; by default five of its own, which are never trained on.
Cities without radar at both dates are left out, of trainings and of scores.
With --peers-python (requirements-peers.txt) lightly's DINO is trained beside the recipe's
Level-1C alone; with --ablation what each part of the method brings. With --transfer another
question: is it worth to go on with weights of other cities, or to distil them, where there are few
cities (harness/transfer.py)? What has been trained under --work is not trained again.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import Figure, note, parse, parser, report
from harness import cities, eurosat, transfer
from harness.found_again import FoundAgain, normalisation_of
from harness.plain_training import Training
from harness.trainings import train_all

from terrafm.config import load_config
from terrafm.eval.features.readouts import Readout
from terrafm.eval.retrieval.ranks import Ranks
from terrafm.eval.retrieval.scores import DEPTHS, SHIFTED, UNTRAINED, WEIGHTS
from terrafm.models.contract import WeightsContract
from terrafm.models.encoder import Encoder
from terrafm.models.weights import load_encoder

KEPT = ("beihai", "dubai", "milano", "montpellier", "nantes")
"""Cities of the archive that no choice of the recipe has seen."""

RECIPE = "real_cpu"
DATES, RADAR = "s2_l1c>later", "s1>s2_l1c"
METRICS = ("recall1", "recall10")
AGAINST = (
    ("ours", "contrastive"),
    ("ours, l1c, paper's", "lightly, l1c"),
    ("ours, l1c", "lightly, l1c"),
    # Each part of the method less what it was added to.
    ("l1c, radar", "l1c"),
    ("l1c, radar, fusion", "l1c, radar"),
    ("ours", "l1c, radar, fusion"),
    ("l1c, radar, fusion, alpha 0.4", "l1c, radar, fusion"),
)
_ONE_SENSOR = ("data.modalities=[s2_l1c]",)
_PAPER = ("loss.centering=ema", "loss.koleo_weight=0", "data.other_date=0")
# The method's parts, one after the other, each with all before it.
ABLATION = {
    "l1c": (*_ONE_SENSOR, "loss.alpha=1"),
    "l1c, radar": ("data.fusion=false", "loss.alpha=1"),
    "l1c, radar, fusion": ("loss.alpha=1",),
    # "ours" has the recipe's alpha.
    "l1c, radar, fusion, alpha 0.4": ("loss.alpha=0.4",),
}


def main() -> None:
    """Ingests, trains, scores, prints."""
    arguments = parse(_options())
    archive = arguments.real / "oscd"
    if not archive.is_dir():
        raise SystemExit(f"no cities: {archive} does not exist (--real)")
    if arguments.held_out is not None and not arguments.held_out.is_dir():
        raise SystemExit(f"no cities: {arguments.held_out} does not exist (--held-out)")
    work = arguments.work / "learning"
    kept = ",".join(KEPT)
    if arguments.held_out is None:
        held_out = cities.ingest(f"{archive}?cities={kept}", work / "held-out")
    else:
        # Two folders may have one name.
        whole = str(arguments.held_out.resolve())
        held_out = cities.ingest(
            whole, work / f"held-out-{hashlib.sha256(whole.encode()).hexdigest()}"
        )
    if arguments.transfer:
        figures = _transfer(str(archive), work / "transfer", held_out, arguments)
    else:
        train = cities.ingest(f"{archive}?without={kept}", work / "train")
        trainings = _trainings(arguments, train)
        train_all(trainings, work, arguments.jobs, arguments.peers_python)
        figures = _figures(trainings, work, held_out, arguments)
    report(figures, arguments, "Onera cities, L1C and S1 VV")


def _options() -> argparse.ArgumentParser:
    options = parser(__doc__, rounds=1)
    options.add_argument("--held-out", type=Path, help="cities to score on")
    options.add_argument("--recipe", default=RECIPE, help="recipe or YAML file (%(default)s)")
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--steps", type=int, help="of each training, in place of the recipe's")
    options.add_argument("--only", nargs="+", help="contestants by name, in place of all")
    options.add_argument("--jobs", type=int, default=2, help="trainings at once (%(default)s)")
    options.add_argument("--peers-python", help="interpreter that has lightly")
    options.add_argument("--ablation", action="store_true", help="also the method's parts")
    options.add_argument("--transfer", action="store_true", help="adapt and distil, in place")
    options.add_argument(
        # Chosen on the cities on which the recipe was chosen, not on these.
        "--readout",
        type=Readout,
        default=Readout.MEAN_STD,
        choices=list(Readout),
        help="(%(default)s)",
    )
    return options


def _base(arguments: argparse.Namespace, data: str) -> Training:
    steps = 4 if arguments.quick else arguments.steps or load_config(arguments.recipe).train.steps
    return Training(
        "ours", data, arguments.recipe, (f"train.steps={steps}",), 0, "distillation", steps // 4
    )


def _trainings(arguments: argparse.Namespace, data: str) -> list[Training]:
    base = _base(arguments, data)
    named: dict[str, tuple[str, tuple[str, ...]]] = {
        "ours": ("distillation", ()),
        "contrastive": ("contrastive", ()),
    }
    if arguments.peers_python:
        named["ours, l1c, paper's"] = ("distillation", (*_ONE_SENSOR, *_PAPER, "loss.alpha=1"))
        named["ours, l1c"] = ("distillation", _ONE_SENSOR)
        named["lightly, l1c"] = ("lightly", (*_ONE_SENSOR, "data.other_date=0"))
    if arguments.ablation:
        named |= {name: ("distillation", overrides) for name, overrides in ABLATION.items()}
    chosen = {name: how for name, how in named.items() if name in (arguments.only or named)}
    if missing := set(arguments.only or ()) - set(chosen):
        raise SystemExit(
            f"no contestant {', '.join(sorted(missing))}; there are {', '.join(named)}"
        )
    return [
        replace(
            base,
            name=name,
            objective=objective,
            overrides=(*base.overrides, *overrides),
            seed=seed,
        )
        for seed in arguments.seeds
        for name, (objective, overrides) in chosen.items()
    ]


def _transfer(
    archive: str, work: Path, held_out: str, arguments: argparse.Namespace
) -> list[Figure]:
    """Weights of many cities, put to use on few others, scored on cities of neither."""
    few = ",".join(transfer.FEW)
    many = cities.ingest(f"{archive}?without={few},{','.join(KEPT)}", work / "many")
    base = _base(arguments, cities.ingest(f"{archive}?cities={few}", work / "few"))
    first = transfer.sources(base, many, arguments.seeds)
    train_all(first, work, arguments.jobs)
    trainings = [each for source in first for each in transfer.contestants(base, source, work)]
    train_all(trainings, work, arguments.jobs)
    last, tables, figures = {}, {}, []
    for name in dict.fromkeys(each.name for each in (*first, *trainings)):
        folders = [t.folder(work) for t in (*first, *trainings) if t.name == name]
        newest = [max(folder.glob("step_*.safetensors")) for folder in folders]
        encoders = [load_encoder(str(file)) for file in newest]
        table = _table(tables, encoders[0], held_out, arguments)
        last[name] = table.ranks(encoders)
        note(f"scored {name}")
        for task in (DATES, RADAR):
            figures += [
                Figure(f"{name}: {task}, {metric}", 100 * value, None, "higher", "%")
                for metric in METRICS
                for value in [_mean(last[name][task, SHIFTED], metric)]
            ]
    fresh = next(iter(tables.values()))
    for task in (DATES, RADAR):
        for row, several in fresh.baselines(task, SHIFTED).items():
            figures += [
                Figure(
                    f"{row}: {task}, {metric}", 100 * _mean(several, metric), None, "higher", "%"
                )
                for metric in METRICS
            ]
    tasks = (DATES, RADAR)
    helped = _differences(transfer.AGAINST_SCRATCH, last, fresh, tasks, surely=True)
    return [*figures, *helped, *_differences(transfer.AGAINST_SOURCE, last, fresh, tasks)]


def _table(
    tables: dict[tuple[Any, ...], FoundAgain],
    encoder: Encoder,
    held_out: str,
    arguments: argparse.Namespace,
) -> FoundAgain:
    """For encoders of the same sensors and normalisation, made once."""
    contract = encoder.contract
    assert contract is not None
    key = (*contract.modalities, contract.dataset_fingerprint)
    if key not in tables:
        tables[key] = FoundAgain(
            held_out,
            contract.model,
            tuple(contract.modalities),
            normalisation_of(contract),
            size=contract.image_size,
            readout=arguments.readout,
        )
    return tables[key]


def _figures(
    trainings: Sequence[Training], work: Path, held_out: str, arguments: argparse.Namespace
) -> list[Figure]:
    figures: list[Figure] = []
    tables: dict[tuple[Any, ...], FoundAgain] = {}
    last: dict[str, dict[tuple[str, str], list[Ranks]]] = {}
    for name in dict.fromkeys(training.name for training in trainings):
        folders = [t.folder(work) for t in trainings if t.name == name]
        steps = sorted(path.name for path in folders[0].glob("step_*.safetensors"))
        curve = [[load_encoder(str(folder / step)) for folder in folders] for step in steps]
        contract = curve[0][0].contract
        assert contract is not None
        table = _table(tables, curve[0][0], held_out, arguments)
        ranks = [table.ranks(encoders) for encoders in curve]
        last[name] = ranks[-1]
        note(f"scored {name}")
        for task in (DATES, RADAR):
            if task in table.tasks:
                figures += _plain(name, task, table, ranks)
        if name == "ours":
            figures += _bars(table, ranks)
            if (images := arguments.real / "eurosat_ms").is_dir():
                figures += _eurosat(str(images), curve[-1], contract)
    table = next(iter(tables.values()))
    return [*figures, *_differences(AGAINST, last, table, (DATES,))]


def _plain(
    name: str, task: str, table: FoundAgain, ranks: Sequence[Mapping[tuple[str, str], list[Ranks]]]
) -> list[Figure]:
    """Recall at every kept step, and for our own contestant that of the baselines."""
    figures = []
    for metric in METRICS:
        curve = [_mean(at[task, SHIFTED], metric) for at in ranks]
        early = ", ".join(f"{100 * value:.1f}" for value in curve[:-1])
        title = f"{name}: {task}, {metric} (before: {early})"
        figures.append(Figure(title, 100 * curve[-1], None, "higher", "%"))
        if name == "ours":
            for row, several in table.baselines(task, SHIFTED).items():
                value = 100 * _mean(several, metric)
                figures.append(Figure(f"{row}: {task}, {metric}", value, None, "higher", "%"))
    return figures


def _bars(
    table: FoundAgain, ranks: Sequence[Mapping[tuple[str, str], list[Ranks]]]
) -> list[Figure]:
    """What our own contestant has to reach."""
    figures = []
    if DATES in table.tasks:
        rows = {WEIGHTS: ranks[-1][DATES, SHIFTED], **table.baselines(DATES, SHIFTED)}
        scored = table.score(DATES, rows)
        for metric in METRICS:
            gain = scored["gain"][metric]
            best = scored["rows"][gain["over"]][metric]["value"]
            title = f"{DATES}, {metric} over the best baseline, {gain['over']}"
            ratio = scored["rows"][WEIGHTS][metric]["value"] / best
            bar = 1.5 if metric == "recall1" else None
            figures.append(Figure(title, ratio, bar, "higher", "x"))
            title = f"{DATES}, {metric}, paired gain over {gain['over']}, lower end"
            figures.append(Figure(title, 100 * gain["low"], 0.0, "higher", "points"))
    if RADAR in table.tasks:
        trained = _mean(ranks[-1][RADAR, SHIFTED], "recall10")
        fresh = _mean(table.baselines(RADAR, SHIFTED)[UNTRAINED], "recall10")
        title = f"{RADAR}, recall10 over untrained"
        figures.append(Figure(title, trained / fresh, 5.0, "higher", "x"))
    for task in table.tasks:
        if task in (DATES, RADAR):
            first, final = (_mean(ranks[at][task, SHIFTED], "recall10") for at in (0, -1))
            title = f"{task}, recall10 at the end less that at a quarter of the steps"
            figures.append(Figure(title, 100 * (final - first), 0.0, "higher", "points"))
    return figures


def _eurosat(folder: str, encoders: Sequence[Encoder], contract: WeightsContract) -> list[Figure]:
    gains = eurosat.gains(
        folder, encoders, contract.model, normalisation_of(contract), size=contract.image_size
    )
    figures = []
    for protocol in eurosat.PROTOCOLS:
        rows = {readout: gain for (p, readout), gain in gains.items() if p == protocol}
        best = max(rows, key=lambda readout: rows[readout].trained)
        for readout, gain in rows.items():
            title = f"EuroSAT, {protocol} of {readout} (untrained {100 * gain.untrained:.1f})"
            figures.append(Figure(title, 100 * gain.trained, None, "higher", "%"))
            title = f"EuroSAT, {protocol} of {readout}, paired gain, lower end"
            bar = 0.0 if readout == best else None
            figures.append(Figure(title, 100 * gain.low, bar, "higher", "points"))
    return figures


def _differences(
    pairs: Sequence[tuple[str, str]],
    last: Mapping[str, Mapping[tuple[str, str], list[Ranks]]],
    table: FoundAgain,
    tasks: Sequence[str],
    surely: bool = False,
) -> list[Figure]:
    """Paired differences between contestants at their last step.

    The bar is that the first is not below the other, within the interval; or surely above it.
    """
    low, high = (0.0, None) if surely else (None, 0.0)
    figures = []
    for one, other in pairs:
        for task in tasks:
            if one not in last or other not in last or task not in table.tasks:
                continue
            rows = {WEIGHTS: last[one][task, SHIFTED], other: last[other][task, SHIFTED]}
            for metric in METRICS:
                gain = table.score(task, rows)["gain"][metric]
                title = f"{one} less {other}: {task}, {metric}, "
                figures += [
                    Figure(f"{title}difference", 100 * gain["value"], None, "higher", "points"),
                    Figure(f"{title}lower end", 100 * gain["low"], low, "higher", "points"),
                    Figure(f"{title}upper end", 100 * gain["high"], high, "higher", "points"),
                ]
    return figures


def _mean(several: Sequence[Ranks], metric: str) -> float:
    return float(np.mean([ranks.hits(DEPTHS[metric]).mean() for ranks in several]))


if __name__ == "__main__":
    main()
