"""A sweep: many runs of `pretrain` under Ray Tune, judged by what their encoders are worth.

The sweep's folder:

    sweep.yaml       the configuration with its `tune` section: enough to run it again
    trials/0003/     a trial: its runs and scores.jsonl
    trials.parquet   a row for each trial
    best.yaml        the best point as a configuration for `pretrain`
    report.html      with its pictures beside it in pictures/
    tune/            Ray Tune's own state, from which an interrupted sweep goes on
"""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass
from typing import Any

import ray
from ray import tune
from ray.tune import Tuner
from ray.tune.schedulers import (
    ASHAScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search.basic_variant import BasicVariantGenerator

from terrafm.config import Config, build_config
from terrafm.config.yaml_text import parse_yaml
from terrafm.errors import TerraFMError, UsageError
from terrafm.ray.runtime import ensure_ray, is_autoscaled
from terrafm.storage import (
    absolute,
    arrow_filesystem,
    exists,
    join,
    list_names,
    read_bytes,
    write_bytes,
)
from terrafm.storage.addresses import recorded
from terrafm.storage.faults import one_line
from terrafm.storage.lease import lease
from tuning.objective import HEADLINES, scored_modalities
from tuning.plan import TrialPlan
from tuning.report import BEST_FILE, REPORT_FILE, analyse
from tuning.search_space import apply
from tuning.searchers import optuna_searcher
from tuning.trial import PretrainTrial, TrialTask
from tuning.trials import OPEN, TrialWatch

SWEEP_FILE = "sweep.yaml"
_TUNE = "tune"
# What does not change what a sweep is.
_FREE = ("max_concurrent",)
# asha goes on with one trial in so many at each rung.
_REDUCTION_FACTOR = 3
_RESTARTS = 3
_TUNE_SETTINGS = {
    # Ours are metrics.jsonl, scores.jsonl and trials.parquet.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Without a word of its own.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Seconds between two records of the state that --resume goes on from.
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
}


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep.

    Attributes:
        output: URI of the sweep's folder.
        states: state -> number of trials.
        best: the best point, and the mean of its measures over its seeds; None where no trial
            was scored.
    """

    output: str
    states: dict[str, int]
    best: dict[str, Any] | None


class Sweep:
    """Checked before anything starts.

    Args:
        config: the tree, with its `tune` section.
        data: URI of the dataset.
        output: URI of the sweep's folder.

    Raises:
        UsageError: settings that do not fit together, a key or value that does not exist, no
            dataset or labelled set.
    """

    def __init__(self, config: Config, data: str, output: str) -> None:
        self.tune = config.tune
        if config.data.cpus_per_worker is None:
            # Trials share the machines: none may take all that is free.
            config = apply(config, {"data.cpus_per_worker": 1.0}, "sweep")
        self.config = config
        self.data, self.output = absolute(data), absolute(output)
        plan = TrialPlan(config, self.data)
        self.space, self.points, self.total_steps = plan.space, plan.points, plan.total_steps
        self.labelled = absolute(self.tune.labelled or data)
        self.modalities = scored_modalities(config, self.labelled)

    def run(self, resume: bool = False) -> SweepResult:
        """Runs all trials, or those that an interrupted sweep has left; writes the report.

        Raises:
            UsageError: another sweep lies in the output folder, or one that was not to be
                resumed, or that is at work; the cluster has no room.
            TerraFMError: no trial came to a score.
        """
        with lease(self.output, "terrafm sweep"):
            self._check_output(resume)
            for name, value in _TUNE_SETTINGS.items():
                os.environ.setdefault(name, value)
            concurrent = self._make_room()
            write_bytes(join(self.output, SWEEP_FILE), self.config.to_yaml().encode())
            self._tuner(concurrent).fit()
            return self.finish()

    def finish(self) -> SweepResult:
        """Best point, report and pictures, from what lies in the folder.

        Raises:
            TerraFMError: no trial came to a score.
        """
        states, best = analyse(self.output, self.config)
        if best is None:
            raise TerraFMError(
                f"no trial of {self.output} came to a score: {_told(states)}; the events.jsonl of "
                "its runs say why"
            )
        return SweepResult(self.output, states, best)

    def _check_output(self, resume: bool) -> None:
        uri = join(self.output, SWEEP_FILE)
        if not exists(uri):
            if foreign := [name for name in list_names(self.output) if name[0] != "."]:
                raise UsageError(
                    f"{self.output} is not empty and holds no sweep (found {foreign[0]}): "
                    "choose an empty folder"
                )
            return
        if not resume:
            raise UsageError(f"{self.output} holds a sweep: add --resume, or choose another folder")
        try:
            saved = recorded(
                build_config(parse_yaml(read_bytes(uri)), of_run=True).model_dump(mode="json")
            )
        except (ValueError, TypeError, TerraFMError) as error:
            raise UsageError(
                f"{uri} is damaged ({one_line(error)}): choose another folder, or put the sweep's "
                "configuration there again"
            ) from None
        ours = recorded(self.config.model_dump(mode="json"))
        for section, values in ours.items():
            for key, value in values.items():
                before = saved[section][key]
                if before != value and not (section == "tune" and key in _FREE):
                    raise UsageError(
                        f"{self.output} was swept with {section}.{key}={before}, now {value}: "
                        "choose another folder, or the settings it began with"
                    )

    def _make_room(self) -> int:
        """Joins or starts Ray; trials at once, such that each gets all that it needs."""
        train = self.config.train
        workers = train.most_workers
        cpus = workers * (train.cpus_per_worker + float(self.config.data.cpus_per_worker or 0))
        wanted = self.tune.max_concurrent
        if not os.environ.get("RAY_ADDRESS") and not ray.is_initialized():
            alone = int((os.cpu_count() or 1) // (workers * train.cpus_per_worker))
            concurrent = wanted or max(1, alone)
            ensure_ray(math.ceil(concurrent * (cpus + 1)))
            return concurrent
        ensure_ray()
        has = ray.cluster_resources()
        fitting = int((has.get("CPU", 0.0) - 1e-6) // cpus)
        if train.gpu != "no" and has.get("GPU", 0.0):
            fitting = min(fitting, int(has["GPU"] // (workers + self.config.validation.gpus)))
        if is_autoscaled():
            return wanted or max(1, fitting)
        if fitting < (wanted or 1):
            raise UsageError(
                f"the Ray cluster has room for {fitting} trials of {cpus:g} CPUs at once, not for "
                f"{wanted or 1}: lower tune.max_concurrent or train.workers"
            )
        return wanted or fitting

    def _tuner(self, concurrent: int) -> Tuner:
        task = TrialTask(
            config=self.config.model_dump(mode="json"),
            data=self.data,
            labelled=self.labelled,
            modalities=tuple(self.modalities),
            output=self.output,
        )
        # The workers hold the CPUs; Tune wants some number.
        resources = {"CPU": 0.01} | (
            {"GPU": self.config.validation.gpus} if self.config.validation.gpus else {}
        )
        trainable = tune.with_resources(
            tune.with_parameters(PretrainTrial, task=asdict(task)), resources
        )
        filesystem, storage = arrow_filesystem(self.output)
        path = join(storage, _TUNE)
        if Tuner.can_restore(path, storage_filesystem=filesystem):
            return Tuner.restore(
                path, trainable, resume_errored=True, storage_filesystem=filesystem
            )
        several = len(self.tune.objectives) > 1
        return Tuner(
            trainable,
            param_space=self._param_space(),
            tune_config=tune.TuneConfig(
                metric=None if several else self.tune.objectives[0],
                mode=None if several else "max",
                num_samples=self._samples(),
                max_concurrent_trials=concurrent,
                trial_dirname_creator=_dirname,
                search_alg=self._searcher(),
                scheduler=self._scheduler(),
            ),
            run_config=tune.RunConfig(
                name=_TUNE,
                storage_path=storage,
                storage_filesystem=filesystem,
                failure_config=tune.FailureConfig(max_failures=_RESTARTS),
                checkpoint_config=self._exchange(),
                callbacks=[TrialWatch(self.output, self.tune.objectives[0], self.tune.seeds)],
                verbose=0,
            ),
        )

    def _param_space(self) -> dict[str, Any]:
        if self.points is None:
            # Optuna draws by itself; what pbt changes must be Tune's own.
            drawn_by_tune = self.space is not None and self.tune.scheduler == "pbt"
            return self._domains() if drawn_by_tune else {}
        names: list[str | None] = [*self.tune.arms] or [None] * len(self.points)
        drawn = [
            point | {"index": index, "arm": name, "seed": seed}
            # All points at one seed first: an interrupted sweep has compared something.
            for seed in range(self.tune.seeds)
            for index, (name, point) in enumerate(zip(names, self.points, strict=True))
        ]
        return {"drawn": tune.grid_search(drawn)}

    def _samples(self) -> int:
        return self.tune.trials * self.tune.seeds if self.points is None else 1

    def _searcher(self) -> Any:
        if self.points is not None or self.space is None:
            return None
        if self.tune.search == "optuna":
            return optuna_searcher(self.space, self.tune, self.config.train.seed)
        return BasicVariantGenerator(random_state=self.config.train.seed)

    def _domains(self) -> dict[str, Any]:
        assert self.space is not None
        return {d.key: d.domain() for d in self.space.distributions}

    def _exchange(self) -> tune.CheckpointConfig:
        """Only pbt hands states from one trial to another: pointers, a few bytes each."""
        if self.tune.scheduler != "pbt":
            return tune.CheckpointConfig()
        return tune.CheckpointConfig(checkpoint_frequency=1, num_to_keep=4)

    def _scheduler(self) -> TrialScheduler | None:
        grace = self.config.train.checkpoint_every
        if self.tune.scheduler == "asha":
            return ASHAScheduler(
                time_attr="step",
                max_t=self.total_steps,
                grace_period=min(grace, self.total_steps),
                reduction_factor=_REDUCTION_FACTOR,
            )
        if self.tune.scheduler == "median":
            return MedianStoppingRule(time_attr="step", grace_period=grace)
        if self.tune.scheduler == "pbt":
            assert self.space is not None
            return PopulationBasedTraining(
                time_attr="step",
                perturbation_interval=grace,
                hyperparam_mutations={d.key: d.mutation() for d in self.space.distributions},
                custom_explore_fn=self.space.within,
                require_attrs=False,
            )
        return None


def _dirname(trial: Any) -> str:
    return str(trial.trial_id)


def describe(result: SweepResult) -> str:
    """How a sweep ended, for the terminal."""
    lines = [f"{sum(result.states.values())} trials: {_told(result.states)}"]
    if result.best is not None:
        measures = result.best["measures"]
        told = ", ".join(
            f"{k.replace('_', ' ')} {measures[k]:.3f}" for k in HEADLINES if k in measures
        )
        lines.append(f"best point {result.best['point']}: {told}")
    if open_ones := result.states.get(OPEN):
        lines.append(f"{open_ones} not done: the same command with --resume goes on with them")
    report, best = join(result.output, REPORT_FILE), join(result.output, BEST_FILE)
    return "\n".join([*lines, f"report {report}", f"best   {best}"])


def _told(states: dict[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in states.items())
