"""Where metrics go besides metrics.jsonl: TensorBoard, MLflow, Weights & Biases."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from terrafm.errors import TerraFMError
from terrafm.storage import is_local, join, resolve, upload
from terrafm.storage.faults import one_line
from terrafm.train.metrics.trackers import (
    WITH_WEIGHTS,
    Background,
    TrackedPicture,
    TrackedRun,
    Tracker,
    tracker_of,
)

# Read when MLflow makes a request: by default it would try for minutes before it says a word.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

logger = logging.getLogger(__name__)

_PROJECT = "terrafm"
_MLFLOW_VALUE = 500  # characters of a parameter that every MLflow server takes


class TensorBoard(Tracker):
    """Event files in the run's `tensorboard/`; object stores get whole files at each flush.

    A part of a run is a folder in it, which TensorBoard shows as a curve of its own. Pictures are
    such a part too, with a file for each step: a store would else get all of them anew each time.
    A disk that fails costs it points, not the run: after a failure it begins another file.
    """

    def __init__(self, run: TrackedRun) -> None:
        self._folder = join(run.folder, "tensorboard", *filter(None, [run.part]))
        self._pictures = join(run.folder, "tensorboard", "pictures")
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        if is_local(run.folder):
            self._where = resolve(self._folder)[1]
        else:
            self._temporary = tempfile.TemporaryDirectory()
            self._where = self._temporary.name
        purge = run.start_step + 1 if run.start_step else None
        self._board: SummaryWriter | None = self._open(purge)

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        # Half a second, which only a process that writes such files has to pay.
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(self._where, purge_step=purge_step)

    @override
    def write(self, step: int, values: Mapping[str, float]) -> None:
        with self._forgiving():
            for name, value in values.items():
                if self._board is not None:
                    self._board.add_scalar(name, value, step)

    @override
    def write_pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        try:
            with tempfile.TemporaryDirectory() as folder:
                # A run that resumed has other pictures of the steps that it does again.
                with SummaryWriter(folder, purge_step=step) as board:
                    for one in pictures:
                        board.add_image(one.name, one.pixels(), step, dataformats="HWC")
                (file,) = Path(folder).iterdir()
                # TensorBoard reads files in the order of their names.
                upload(file, join(self._pictures, f"events.out.tfevents.{time.time_ns()}"))
        except (OSError, TerraFMError) as error:
            logger.warning("TensorBoard misses pictures: %s", one_line(error))

    @override
    def write_weights(self, step: int, weights: str) -> None:
        """Nothing: it has no place for files."""

    @override
    def flush(self) -> None:
        with self._forgiving():
            if self._board is None:
                self._board = self._open()
            self._board.flush()
        if self._temporary is not None:
            for event_file in Path(self._temporary.name).iterdir():
                upload(event_file, join(self._folder, event_file.name))

    @override
    def close(self) -> None:
        self.flush()
        with self._forgiving():
            if self._board is not None:
                self._board.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if self._board is not None:
                logger.warning("TensorBoard misses points: %s", one_line(error))
            self._board = None


class MLflow(Tracker):
    """A run on the server of MLFLOW_TRACKING_URI, or in `mlflow.db` of a run folder on a disk.

    The experiment is MLFLOW_EXPERIMENT_NAME, by default "terrafm". Pictures and weights are
    artifacts: of a run folder on a disk, in its `mlartifacts/`.
    """

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric: Callable[..., Any] = Metric
        uri, artifacts = _mlflow_places(run.folder)
        self._client = MlflowClient(uri)
        known = run.known_id("mlflow")
        if known is not None:
            self._client.update_run(known, status="RUNNING")
            self._id = known
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        where = (
            self._client.create_experiment(name, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )
        self._id = str(self._client.create_run(where, run_name=run.name).info.run_id)
        run.remember_id("mlflow", self._id)
        self._client.log_batch(
            self._id,
            params=[
                Param(key, str(value)[:_MLFLOW_VALUE]) for key, value in run.parameters().items()
            ],
        )

    @override
    def write(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    @override
    def write_pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        for one in pictures:
            self._client.log_image(self._id, one.pixels(), key=one.name, step=step)

    @override
    def write_weights(self, step: int, weights: str) -> None:
        self._client.log_artifact(self._id, weights, "weights")
        self._client.set_tag(self._id, f"weights.{Path(weights).stem}.step", str(step))

    @override
    def flush(self) -> None:
        """Nothing: the client sends as it goes."""

    @override
    def close(self) -> None:
        self._client.set_terminated(self._id)


def _mlflow_places(folder: str) -> tuple[str, str | None]:
    """URI of the server or database, and where artifacts go if the server does not say it."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri, None
    if not is_local(folder):
        raise ValueError("set MLFLOW_TRACKING_URI: the run's folder is no disk")
    path = Path(resolve(folder)[1]).absolute()
    # MLflow 3 has given up its folders of files. Artifacts would go to the working directory.
    return f"sqlite:///{path / 'mlflow.db'}", (path / "mlartifacts").as_uri()


class WandB(Tracker):
    """A run of Weights & Biases, set up by its own variables (WANDB_API_KEY, WANDB_MODE, ...).

    The project is WANDB_PROJECT, by default "terrafm". A part of a run is a run of its own beside
    it: only one process at a time may write to one.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        key = "-".join(filter(None, ["wandb", run.part]))
        known = run.known_id(key)
        folder = resolve(run.folder)[1] if is_local(run.folder) else tempfile.gettempdir()
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            id=known,
            name=run.name,
            config=run.parameters(),
            resume="allow" if known is not None else None,
            dir=folder,
            settings=wandb.Settings(silent=True, console="off"),
        )
        if known is None:
            run.remember_id(key, str(self._run.id))
        # Our own axis: W&B's must rise, and a run that resumes does some steps again.
        self._run.define_metric("*", step_metric="step")

    @override
    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({**values, "step": step})

    @override
    def write_pictures(self, step: int, pictures: Sequence[TrackedPicture]) -> None:
        import wandb

        shown = {one.name: wandb.Image(one.pixels(), caption=one.note) for one in pictures}
        self._run.log({**shown, "step": step})

    @override
    def write_weights(self, step: int, weights: str) -> None:
        import wandb

        name = Path(weights).stem
        artifact = wandb.Artifact(f"{self._run.id}-{name}", "model", metadata={"step": step})
        artifact.add_file(weights)
        self._run.log_artifact(artifact, aliases=[name, f"step-{step}"])

    @override
    def flush(self) -> None:
        """Nothing: the client sends as it goes."""

    @override
    def close(self) -> None:
        self._run.finish()


def open_trackers(names: Sequence[str], run: TrackedRun) -> dict[str, Tracker]:
    """The trackers of a run by name, each once.

    Args:
        names: of `train.trackers`.
        run: what is tracked.
    """
    servers: dict[str, Callable[[TrackedRun], Tracker]] = {"mlflow": MLflow, "wandb": WandB}
    opened: dict[str, Tracker] = {}
    for entry in names:
        name = tracker_of(entry)
        weights = entry.endswith(WITH_WEIGHTS)
        opened[name] = (
            TensorBoard(run)
            if name == "tensorboard"
            else Background(name, run, servers[name], weights=weights)
        )
    return opened
