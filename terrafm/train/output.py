"""The folder of a run before anything is in it; without torch, for early answers."""

from __future__ import annotations

from terrafm.errors import UsageError
from terrafm.storage import exists, join, list_names

CONFIG_FILE = "config.yaml"
CHECKPOINTS = "checkpoints"


def check_unused(output: str) -> None:
    """Raises UsageError: a folder in which no checkpoint lies holds files of something else."""
    foreign = [name for name in list_names(output) if not name.startswith(".")]
    if foreign and not exists(join(output, CONFIG_FILE)):
        raise UsageError(
            f"{output} is not empty and holds no run (found {foreign[0]}): choose an empty folder"
        )
