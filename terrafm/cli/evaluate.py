"""`terrafm evaluate`: how good weights are, on a labelled set."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from terrafm import api
from terrafm.cli.options import SENSORS
from terrafm.eval.features.readouts import Readout
from terrafm.terminal import JsonOption, QuietOption, show

evaluate_app = typer.Typer(help="Score weights on a labelled set.", no_args_is_help=True)


WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Ray actors that make the features; by default this process does."),
]


class Normalise(StrEnum):
    """Whose mean and standard deviation images are normalised by."""

    WEIGHTS = "weights"
    SET = "set"


ReadoutOption = Annotated[
    Readout,
    typer.Option(
        help="The CLS token, the mean of the patch tokens, or it beside their log deviation."
    ),
]
NormaliseOption = Annotated[
    Normalise, typer.Option(help="By what the weights state, or by the set's statistics.")
]
SizeOption = Annotated[
    int | None,
    typer.Option(min=16, help="Side of the images, pixels; by default what the weights state."),
]

BaselineOption = Annotated[
    list[str] | None,
    typer.Option(
        "--baseline",
        metavar="MODEL",
        help="Another encoder, repeatable: timm:NAME[@URI] with timm's weights or a checkpoint, "
        "torchgeo:WEIGHTS[@URI] such as torchgeo:ResNet50_Weights.SENTINEL2_ALL_MOCO, "
        "untrained:NAME, a model of timm with fresh weights.",
    ),
]
ProtocolOption = Annotated[
    list[str] | None,
    typer.Option(
        "--protocol",
        help="knn20, knn5, linear or finetune; for masks linear, upernet or finetune; "
        "repeatable. By default those that do not train for long.",
    ),
]
PicklesOption = Annotated[
    bool, typer.Option("--trust-pickles", help="GEO-Bench labels are pickles: read them.")
]
FeaturesOption = Annotated[
    str | None, typer.Option(help="URI of a folder that keeps features as Parquet.")
]
BatchOption = Annotated[int, typer.Option(min=1, help="Images at once.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of folds and bootstrap.")]
ResamplesOption = Annotated[int, typer.Option(min=1, help="Bootstrap draws.")]


@evaluate_app.command("knn")
def knn_command(
    weights: Annotated[str, typer.Option("--weights", help="URI of exported weights.")],
    data: Annotated[str, typer.Option("--data", help="Folder of classes or dataset of ingest.")],
    readout: ReadoutOption = Readout.CLS,
    size: SizeOption = None,
    workers: WorkersOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Nearest neighbours of frozen features, beside untrained and spectral baselines."""
    result = api.evaluate_knn(weights, data, readout=readout, size=size, workers=workers)
    show(result, as_json)


@evaluate_app.command("retrieval")
def retrieval_command(
    weights: Annotated[str, typer.Option("--weights", help="URI of exported weights.")],
    data: Annotated[str, typer.Option("--data", help="URI of a dataset of ingest.")],
    modality: Annotated[
        list[str] | None, typer.Option("--modality", help="Only these sensors; repeatable.")
    ] = None,
    readout: ReadoutOption = Readout.CLS,
    normalise: NormaliseOption = Normalise.WEIGHTS,
    size: SizeOption = None,
    samples: Annotated[int, typer.Option(min=2, help="Most tiles, whole places.")] = 2000,
    batch: Annotated[int, typer.Option(min=1, help="Tiles at once.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    resamples: ResamplesOption = 1000,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Is a place found again, by another sensor or at another date? Needs no label.

    Beside chance, band statistics and untrained encoders.
    """
    result = api.evaluate_retrieval(
        weights,
        data,
        modality=modality,
        readout=readout,
        normalise=normalise,
        size=size,
        samples=samples,
        batch=batch,
        seed=seed,
        resamples=resamples,
    )
    show(result, as_json)


@evaluate_app.command("compare")
def compare_command(
    data: Annotated[str, typer.Option("--data", help="URI of the labelled set.")],
    weights: Annotated[
        list[str] | None, typer.Option("--weights", help="URI of TerraFM weights; repeatable.")
    ] = None,
    baseline: BaselineOption = None,
    protocol: ProtocolOption = None,
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help=f"{SENSORS}; several are fused."),
    ] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Bands of a class folder's GeoTIFFs, in their order: B02,B03,B04."),
    ] = None,
    partition: Annotated[
        str, typer.Option(help="Of a GEO-Bench set: default, or 0.01x_train to 1.00x_train.")
    ] = "default",
    trust_pickles: PicklesOption = False,
    normalise: NormaliseOption = Normalise.WEIGHTS,
    readout: ReadoutOption = Readout.CLS,
    features: FeaturesOption = None,
    size: SizeOption = None,
    batch: BatchOption = 32,
    seed: SeedOption = 0,
    resamples: ResamplesOption = 1000,
    workers: WorkersOption = None,
    epochs: Annotated[
        int, typer.Option(min=1, help="Of UPerNet and, at most, of fine-tuning.")
    ] = 30,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """One table of encoders, each score with its 95 % interval: neighbours, probes, fine-tuning.

    Mean spectrum, other encoders, an untrained one, and the weights.
    """
    result = api.evaluate(
        data,
        weights or (),
        baseline=baseline,
        protocol=protocol,
        modality=modality,
        bands=bands,
        partition=partition,
        trust_pickles=trust_pickles,
        normalise=normalise,
        readout=readout,
        features=features,
        size=size,
        batch=batch,
        seed=seed,
        resamples=resamples,
        workers=workers,
        epochs=epochs,
    )
    show(result, as_json)


@evaluate_app.command("table")
def table_command(
    data: Annotated[list[str], typer.Option("--data", help="URI of a labelled set; repeatable.")],
    weights: Annotated[
        list[str], typer.Option("--weights", help="URI of TerraFM weights; repeatable.")
    ],
    baseline: BaselineOption = None,
    protocol: ProtocolOption = None,
    trust_pickles: PicklesOption = False,
    normalise: NormaliseOption = Normalise.WEIGHTS,
    readout: ReadoutOption = Readout.CLS,
    features: FeaturesOption = None,
    size: SizeOption = None,
    batch: BatchOption = 32,
    seed: SeedOption = 0,
    resamples: ResamplesOption = 1000,
    output: Annotated[str | None, typer.Option(help="File for the table, as Markdown.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Encoders over several labelled sets in one Markdown table, with 95 % intervals.

    Each set is scored as `compare` scores it.
    """
    result = api.evaluate_table(
        data,
        weights,
        baseline=baseline,
        protocol=protocol,
        trust_pickles=trust_pickles,
        normalise=normalise,
        readout=readout,
        features=features,
        size=size,
        batch=batch,
        seed=seed,
        resamples=resamples,
        output=output,
    )
    show(result, as_json)
