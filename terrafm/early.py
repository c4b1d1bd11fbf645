"""What is asked of a command's inputs before it loads torch and Ray, which takes seconds.

The verbs ask the same again, and more: this is only for the answer to come at once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from terrafm.errors import UsageError
from terrafm.storage import check_exists, check_no_file, is_local, list_names, resolve

if TYPE_CHECKING:
    from terrafm.report.kinds import Target

# A checkpoint's folder by its name, whatever stands before it, or a file of one.
_CHECKPOINT = re.compile(r"(.*/)?(step_|complete\.json|best$)")


def check_dataset(uri: str, modalities: Sequence[str]) -> None:
    """Raises UsageError: no dataset, or one without some of the sensors."""
    from terrafm.data.shards.dataset import Dataset

    Dataset.open(uri).check_modalities(modalities)


def check_run(output: str, weights: Sequence[str | None], labelled: str | None) -> None:
    """Raises UsageError: what a run stands on does not exist, or its folder is something else's."""
    from terrafm.train.run_folder import CHECKPOINTS, RunFolder

    check_no_file(output)
    if CHECKPOINTS in list_names(output):
        # One that has begun, or is done, does not need all of it any more.
        return
    RunFolder(output).check_unused()
    check_weights([uri for uri in weights if uri is not None])
    if labelled is not None:
        check_labelled_set(labelled)


def check_weights(uris: Sequence[str]) -> None:
    """Raises UsageError: some weights do not exist."""
    for uri in uris:
        check_exists("weights", uri)


def check_labelled_set(uri: str) -> None:
    """Raises UsageError: a labelled set does not exist."""
    from terrafm.eval.datasets.copernicus import PREFIX

    if not uri.startswith(PREFIX):
        check_exists("labelled set", uri)


def check_output_file(uri: str) -> None:
    """Raises UsageError: a folder is where a file is to be written."""
    if is_local(uri) and os.path.isdir(resolve(uri)[1]):
        raise UsageError(f"--output {uri} is a folder: give the name of a file in it")


def check_checkpoint(uri: str) -> None:
    """Raises UsageError: a checkpoint, or the folder of the checkpoints whose best is meant."""
    head, _, name = uri.rstrip("/").rpartition("/")
    check_exists("checkpoint", head if head and name == "best" else uri)


def check_dashboard(address: str) -> None:
    """Raises UsageError: the address is none of a dashboard."""
    from terrafm.clusters.dashboard import dashboard_url

    dashboard_url(address)


def check_checkpoints(uri: str) -> None:
    """Raises UsageError: neither a checkpoint nor a folder in which any could lie."""
    check_checkpoint(uri)
    from terrafm.train.run_folder import CHECKPOINTS

    names = list_names(uri)
    # The rest of a folder's name says nothing: what is damaged is for the verb to tell.
    if CHECKPOINTS not in names and not any(map(_CHECKPOINT.match, [*names, uri])):
        raise UsageError(f"{uri} holds no complete checkpoint: give a run's folder, its "
                         f"{CHECKPOINTS}, or a checkpoint with its complete.json")  # fmt: skip


def check_average(uris: Sequence[str]) -> None:
    """Raises UsageError: fewer than two checkpoints, or some that do not exist."""
    if len(uris) < 2:
        raise UsageError("an average takes two checkpoints or more")
    for uri in uris:
        check_checkpoint(uri)


def check_report(folders: Sequence[str], output: str, data: str | None) -> list[Target]:
    """What a report's folders are.

    Raises:
        UsageError: one is nothing that a report can be about, or the page has no place.
    """
    from terrafm.report.kinds import find_targets

    if not output.lower().endswith((".html", ".htm")):
        raise UsageError(f"--output {output} is to be a page: give a name that ends in .html")
    check_output_file(output)
    if data is not None:
        check_exists("folder of tiles", data)
    return find_targets(folders)
