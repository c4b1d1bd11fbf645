"""`terrafm embed`: one vector per tile of an archive, and one per patch."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from terrafm import api
from terrafm.cli.evaluate import Normalise, ReadoutOption
from terrafm.cli.options import SENSORS
from terrafm.embed.choices import DenseFormat, Quantise
from terrafm.eval.features.readouts import Readout
from terrafm.terminal import JsonOption, QuietOption, report


class Device(StrEnum):
    """What computes."""

    CPU = "cpu"
    CUDA = "cuda"


def embed(
    weights: Annotated[str, typer.Option("--weights", help="URI of exported weights.")],
    data: Annotated[
        str,
        typer.Option("--data", help="Dataset of ingest, folder of GeoTIFFs, or one of any size."),
    ],
    output: Annotated[str, typer.Option("--output", help="URI of the folder to write.")],
    modality: Annotated[
        list[str] | None,
        typer.Option("--modality", help=f"{SENSORS}; several are fused. By default one."),
    ] = None,
    dense: Annotated[
        bool, typer.Option("--dense", help="Patch embeddings too, as cloud-optimised GeoTIFFs.")
    ] = False,
    dense_format: Annotated[
        DenseFormat, typer.Option(help="Of --dense: cloud-optimised GeoTIFFs, or Zarr.")
    ] = DenseFormat.GEOTIFF,
    quantise: Annotated[
        Quantise | None, typer.Option(help="A byte for each number, a quarter of the space.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(min=16, help="Side of the resized images, pixels; as trained by default."),
    ] = None,
    window: Annotated[
        int | None, typer.Option(min=1, help="Side of a GeoTIFF's windows, pixels; --size.")
    ] = None,
    overlap: Annotated[
        int | None,
        typer.Option(min=0, help="Of neighbouring windows, pixels; a quarter of the window."),
    ] = None,
    bands: Annotated[
        str | None, typer.Option(help="Bands of the GeoTIFFs, in their order: B02,B03,B04.")
    ] = None,
    readout: ReadoutOption = Readout.CLS,
    normalise: Annotated[
        Normalise, typer.Option(help="By what the weights state, or by the data's statistics.")
    ] = Normalise.WEIGHTS,
    batch: Annotated[int, typer.Option(min=1, help="Images at once.")] = 32,
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Ray actors; one for each GPU or CPU by default. 0: this process, no Ray."
        ),
    ] = None,
    device: Annotated[
        Device | None, typer.Option(help="By default a GPU where the cluster has any.")
    ] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Embed an archive as GeoParquet; given again, the same command goes on."""
    done = api.embed(
        weights,
        data,
        output,
        modality=modality,
        dense=dense,
        dense_format=dense_format.value,
        quantise=None if quantise is None else quantise.value,
        size=size,
        window=window,
        overlap=overlap,
        bands=bands,
        readout=readout,
        normalise=normalise,
        batch=batch,
        workers=workers,
        device=None if device is None else device.value,
    )
    report(done.as_dict(), as_json, lambda _: done.render())
