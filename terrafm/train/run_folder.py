"""A run's folder: where each of its files lies; without torch, for early answers."""

from __future__ import annotations

from dataclasses import dataclass

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import exists, join, list_names, load_record, to_json, write_bytes

CHECKPOINTS, BEST_FILE, EXPORTED = "checkpoints", "best.json", "exported"


@dataclass(frozen=True)
class RunFolder:
    """The files of a run, as URIs; docs/run_folder.md says what is in them.

    Attributes:
        uri: of the folder.
    """

    uri: str

    @property
    def config(self) -> str:
        """The whole configuration, as the run was begun."""
        return join(self.uri, "config.yaml")

    @property
    def dataset(self) -> str:
        """Which dataset the run trains on."""
        return join(self.uri, "dataset.json")

    @property
    def metrics(self) -> str:
        """A line for each logged step."""
        return join(self.uri, "metrics.jsonl")

    @property
    def events(self) -> str:
        """What happened to the workers."""
        return join(self.uri, "events.jsonl")

    @property
    def validation(self) -> str:
        """The scores of checkpoints."""
        return join(self.uri, "validation.jsonl")

    @property
    def trackers(self) -> str:
        """Where the run goes on in each tracker."""
        return join(self.uri, "trackers.json")

    @property
    def failure(self) -> str:
        """Why the run cannot go on; not there where it can."""
        return join(self.uri, "failure.json")

    @property
    def samples(self) -> str:
        """Which tile was used when."""
        return join(self.uri, "samples.parquet")

    @property
    def quarantine(self) -> str:
        """Tiles that could not be read."""
        return join(self.uri, "quarantine.jsonl")

    @property
    def nonfinite(self) -> str:
        """Steps that were left out for a number that is none, with their tiles."""
        return join(self.uri, "nonfinite.jsonl")

    @property
    def checkpoints(self) -> str:
        """The folder of all checkpoints."""
        return join(self.uri, CHECKPOINTS)

    @property
    def best(self) -> str:
        """Which checkpoint is the best."""
        return join(self.checkpoints, BEST_FILE)

    def exported(self, name: str) -> str:
        """The weights file of the "last" or the "best" checkpoint."""
        return join(self.uri, EXPORTED, f"{name}.safetensors")

    def checkpoint(self, step: int) -> str:
        """The folder of one."""
        return join(self.checkpoints, step_name(step))

    def check_unused(self) -> None:
        """Raises UsageError: it holds files of something else, and no run."""
        foreign = [name for name in list_names(self.uri) if not name.startswith(".")]
        if foreign and not exists(self.config):
            raise UsageError(
                f"{self.uri} is not empty and holds no run (found {foreign[0]}): choose an empty "
                "folder"
            )


def step_name(step: int) -> str:
    """Name of a checkpoint's folder, in order of steps."""
    return f"step_{step:08d}"


@dataclass(frozen=True)
class _Failure:
    message: str
    code: int


def write_failure(output: str, error: TerraFMError) -> None:
    """Leaves word in a run's folder of a failure that would only repeat itself."""
    document = {"message": str(error), "code": error.exit_code}
    write_bytes(RunFolder(output).failure, to_json(document).encode())


def read_failure(output: str) -> TerraFMError | None:
    """The failure that workers left in a run's folder."""
    remedy = "the workers failed, and what they left as the reason was cut short"
    found = load_record(RunFolder(output).failure, _Failure, remedy)
    if found is None:
        return None
    error = TerraFMError(found.message)
    error.exit_code = 2 if found.code == UsageError.exit_code else 1
    return error
