"""Options that several verbs have."""

from typing import Annotated

import typer

from terrafm.config import recipe_names
from terrafm.modalities import MODALITIES

SENSORS = ", ".join(MODALITIES)
"""Names of all that are known, for --help."""

SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a configuration key; repeatable."),
]
ConfigOption = Annotated[
    str, typer.Option("--config", help=f"Recipe ({', '.join(recipe_names())}) or YAML file.")
]
DataOption = Annotated[str, typer.Option("--data", help="URI of a dataset made by ingest.")]
OutputOption = Annotated[str, typer.Option("--output", help="URI of the folder to write.")]
