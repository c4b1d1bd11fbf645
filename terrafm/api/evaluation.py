"""Scores of weights on labelled sets, and without any label."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from terrafm import early
from terrafm.api.arguments import (
    Names,
    Path,
    Progress,
    at_least,
    begin,
    choice_of,
    is_by_set,
    names_of,
    shown,
    telling,
    uri_of,
    uris_of,
)
from terrafm.eval.features.readouts import Readout
from terrafm.progress import Advance
from terrafm.storage import check_exists, write_bytes
from terrafm.terminal import Result


def evaluate(
    data: Path,
    weights: Path | Sequence[Path] = (),
    *,
    baseline: Names = None,
    protocol: Names = None,
    modality: Names = None,
    bands: Names = None,
    partition: str = "default",
    trust_pickles: bool = False,
    normalise: str = "weights",
    readout: str = "cls",
    features: Path | None = None,
    size: int | None = None,
    batch: int = 32,
    seed: int = 0,
    resamples: int = 1000,
    workers: int | None = None,
    epochs: int = 30,
    progress: Progress = True,
) -> Result:
    """One table of encoders, each score with its 95 % interval: `terrafm evaluate compare`.

    Mean spectrum, other encoders, an untrained one, and the weights.

    Args:
        data: the labelled set.
        weights: of TerraFM; one or several.
        baseline: other encoders: "timm:NAME[@URI]", "torchgeo:WEIGHTS[@URI]", "untrained:NAME".
        protocol: "knn20", "knn5", "linear", "finetune"; for masks "linear", "upernet",
            "finetune". By default those that do not train for long.
        modality: sensors to use, fused if they are several.
        bands: of a class folder's GeoTIFFs, in their order.
        partition: of a GEO-Bench set.
        trust_pickles: GEO-Bench labels are pickles: read them.
        normalise: by what the "weights" state, or by the "set".
        readout: "cls", "mean" or "mean+std".
        features: folder that keeps features as Parquet.
        size: side of the images, pixels; by default what the weights state.
        batch: images at once.
        seed: of folds and bootstrap.
        resamples: bootstrap draws.
        workers: Ray actors that make the features; by default this process.
        epochs: of UPerNet and, at most, of fine-tuning.
        progress: shown, or told, in images.

    Returns:
        As `--json` prints it: "rows" of {"title", "protocols": protocol -> {"scores": metric ->
        {"value", "low", "high"}}}. `str()` of it is the verb's table.

    Raises:
        UsageError: an unreadable or unfit encoder, a protocol that does not fit, or a set that
            does not exist.
    """
    begin()
    uris = uris_of(weights)
    early.check_labelled_set(os.fspath(data))
    early.check_weights(uris)
    at_least(size=(size, 16), batch=(batch, 1), seed=(seed, 0), resamples=(resamples, 1))
    at_least(workers=(workers, 1), epochs=(epochs, 1))
    by_set, sensors = is_by_set(normalise), names_of(modality)
    with _counted(progress, workers, f"comparing encoders on {data}") as (advance, tell):
        from terrafm.eval.datasets.registry import OpenOptions
        from terrafm.eval.tables.common import CompareOptions, render
        from terrafm.eval.tables.compare import compare

        options = CompareOptions(
            modalities=sensors,
            protocols=names_of(protocol) or None,
            features=uri_of(features),
            readout=choice_of(Readout, readout, "readout"),
            size=size,
            batch=batch,
            by_set=by_set,
            seed=seed,
            resamples=resamples,
            workers=workers,
            epochs=epochs,
            open=OpenOptions(
                modality=sensors[0] if sensors and len(sensors) == 1 else None,
                bands=names_of(bands),
                trust_pickles=trust_pickles,
                partition=partition,
                check_units=not by_set,
            ),
            progress=advance,
        )
        result = compare(os.fspath(data), uris, names_of(baseline) or (), options, tell)
    return Result(result, render)


def evaluate_table(
    data: Path | Sequence[Path],
    weights: Path | Sequence[Path],
    *,
    baseline: Names = None,
    protocol: Names = None,
    trust_pickles: bool = False,
    normalise: str = "weights",
    readout: str = "cls",
    features: Path | None = None,
    size: int | None = None,
    batch: int = 32,
    seed: int = 0,
    resamples: int = 1000,
    output: Path | None = None,
    progress: Progress = True,
) -> Result:
    """One table of encoders over several labelled sets: `terrafm evaluate table`.

    Args:
        data: the labelled sets, with classes or masks; one or several.
        weights: of TerraFM; one or several.
        baseline: other encoders: "timm:NAME[@URI]", "torchgeo:WEIGHTS[@URI]", "untrained:NAME".
        protocol: as of `evaluate`; each is run on the sets that it is for.
        trust_pickles: GEO-Bench labels are pickles: read them.
        normalise: by what the "weights" state, or by the "set".
        readout: "cls", "mean" or "mean+std"; of sets with classes.
        features: folder that keeps features as Parquet.
        size: side of the images, pixels; by default what the weights state.
        batch: images at once.
        seed: of folds and bootstrap.
        resamples: bootstrap draws.
        output: file for the table, as Markdown.
        progress: say what is being done.

    Returns:
        As `--json` prints it: "sets", each as `evaluate` gives it, and "markdown", the table, which
        `str()` gives too.

    Raises:
        UsageError: an unreadable set or encoder, one that does not fit the other, or a set that
            none of the protocols is for.
    """
    begin()
    sets, uris = uris_of(data), uris_of(weights)
    for uri in sets:
        early.check_labelled_set(uri)
    early.check_weights(uris)
    if output is not None:
        early.check_output_file(os.fspath(output))
    at_least(size=(size, 16), batch=(batch, 1), seed=(seed, 0), resamples=(resamples, 1))
    by_set = is_by_set(normalise)
    with _counted(progress, None, f"comparing encoders on {len(sets)} sets") as (_, tell):
        from terrafm.eval.datasets.registry import OpenOptions
        from terrafm.eval.tables.common import CompareOptions
        from terrafm.eval.tables.several import table_over

        options = CompareOptions(
            protocols=names_of(protocol) or None,
            features=uri_of(features),
            readout=choice_of(Readout, readout, "readout"),
            size=size,
            batch=batch,
            by_set=by_set,
            seed=seed,
            resamples=resamples,
            open=OpenOptions(trust_pickles=trust_pickles, check_units=not by_set),
        )
        found = table_over(sets, uris, names_of(baseline) or (), options, tell)
        if output is not None:
            write_bytes(os.fspath(output), found["markdown"].encode())
    return Result(found, lambda result: str(result["markdown"]))


def evaluate_knn(
    weights: Path,
    data: Path,
    *,
    readout: str = "cls",
    size: int | None = None,
    workers: int | None = None,
    progress: Progress = True,
) -> Result:
    """Nearest neighbours of frozen features, beside baselines: `terrafm evaluate knn`.

    Args:
        weights: exported weights.
        data: folder of classes, or a dataset of ingest, whose labels are the land cover.
        readout: "cls", "mean" or "mean+std".
        size: side of the images, pixels; by default what the weights state.
        workers: Ray actors that make the features; by default this process.
        progress: shown, or told, in images.

    Returns:
        As `--json` prints it: "knn20", "knn5" (accuracies, 0..1), the same of "untrained"
        encoders and of "mean_spectrum", and all of it per sensor in "by_modality".

    Raises:
        UsageError: unreadable weights, no such set, one class only, or no sensor in common.
    """
    begin()
    early.check_weights([os.fspath(weights)])
    early.check_labelled_set(os.fspath(data))
    at_least(size=(size, 16), workers=(workers, 1))
    chosen = choice_of(Readout, readout, "readout")
    with _counted(progress, workers, f"scoring {weights} on {data}") as (advance, _):
        from terrafm.eval.features.job import FeatureWorkers
        from terrafm.eval.probes.knn import evaluate_knn as run_knn
        from terrafm.eval.probes.knn import render

        many = None if workers is None else FeatureWorkers(workers, progress=advance)
        result = run_knn(
            os.fspath(weights), os.fspath(data), workers=many, readout=chosen, size=size
        )
    return Result(result, render)


def evaluate_retrieval(
    weights: Path,
    data: Path,
    *,
    modality: Names = None,
    readout: str = "cls",
    normalise: str = "weights",
    size: int | None = None,
    samples: int = 2000,
    batch: int = 32,
    seed: int = 0,
    resamples: int = 1000,
    progress: Progress = True,
) -> Result:
    """Is a place found again by another sensor or date? `terrafm evaluate retrieval`.

    Needs no label. Beside chance, band statistics and untrained encoders.

    Args:
        weights: exported weights.
        data: a dataset of ingest.
        modality: only these sensors.
        readout: "cls", "mean" or "mean+std".
        normalise: by what the "weights" state, or by the "set".
        size: side of the images, pixels; by default what the weights state.
        samples: most tiles, whole places.
        batch: tiles at once.
        seed: of the bootstrap.
        resamples: bootstrap draws.
        progress: say what is being done.

    Returns:
        As `--json` prints it: "tasks" with recall and median rank, and their intervals.

    Raises:
        UsageError: unreadable weights, no dataset of ingest, or nothing to find.
    """
    begin()
    early.check_weights([os.fspath(weights)])
    check_exists("dataset", os.fspath(data))
    at_least(size=(size, 16), samples=(samples, 2), batch=(batch, 1), seed=(seed, 0))
    at_least(resamples=(resamples, 1))
    chosen = choice_of(Readout, readout, "readout")
    by_set = is_by_set(normalise)
    with _counted(progress, None, f"searching places of {data} with {weights}"):
        from terrafm.eval.retrieval.evaluate import RetrievalOptions, render
        from terrafm.eval.retrieval.evaluate import evaluate_retrieval as run_retrieval

        options = RetrievalOptions(
            modalities=names_of(modality),
            readout=chosen,
            size=size,
            samples=samples,
            batch=batch,
            by_set=by_set,
            seed=seed,
            resamples=resamples,
        )
        result = run_retrieval(os.fspath(weights), os.fspath(data), options)
    return Result(result, render)


@contextmanager
def _counted(
    progress: Progress, workers: int | None, doing: str
) -> Iterator[tuple[Advance | None, Callable[[str], None]]]:
    """Images that workers have done, or in words what this process does."""
    if workers is None:
        with telling(progress, doing) as tell:
            yield None, tell
    else:
        with shown(progress, "images", doing) as advance:
            yield advance, lambda _: None
