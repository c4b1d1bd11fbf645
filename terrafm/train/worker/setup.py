"""From a configuration and a dataset to everything one training step needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from terrafm.clusters.versions import source_commit
from terrafm.config import Config, build_config, resume_policies
from terrafm.data.samples.loader import RankLayout
from terrafm.data.samples.masks import PatchMasking
from terrafm.data.samples.plan import Plan, high_frequency_classes, make_plan
from terrafm.data.shards.dataset import Dataset
from terrafm.errors import UsageError
from terrafm.models.weights import WeightsContract, load_state, load_weights
from terrafm.storage.addresses import recorded
from terrafm.train.checkpoints.store import TrainingState, part_of
from terrafm.train.step.distillation import (
    Network,
    SelfDistillation,
    build_criterion,
    build_student_and_teacher,
)
from terrafm.train.step.engine import Engine, EngineState, PlainEngine, check_optimizer, cpu
from terrafm.train.step.feature_distillation import (
    FeatureDistillation,
    FrozenTeacher,
    build_student_and_average,
)
from terrafm.train.step.schedules import Schedules
from terrafm.train.step.training_step import TrainedNetwork, TrainingStep

MODEL_KEYS = ("model.name", "model.num_queries", "head")
"""Settings that decide the shapes of a checkpoint's tensors."""

EngineFactory = Callable[[TrainedNetwork], Engine]


@dataclass(frozen=True)
class TrainingSetup:
    """A configuration applied to a dataset; equal on all ranks."""

    config: Config
    dataset: Dataset

    @classmethod
    def open(cls, config: Config, data_uri: str, fingerprint: str | None = None) -> TrainingSetup:
        """Opens the dataset and checks that the configuration fits it.

        Args:
            config: the whole tree.
            data_uri: the dataset's folder.
            fingerprint: of the version to train on; the newest by default.

        Raises:
            UsageError: no dataset, a modality or frequent classes it does not hold, or crops it
                cannot give.
        """
        dataset = Dataset.open(data_uri, fingerprint=fingerprint)
        dataset.check_modalities(config.data.modalities)
        setup = cls(config, dataset)
        _ = setup.plan, setup.high_frequency
        return setup

    @cached_property
    def plan(self) -> Plan:
        """The endless sequence of samples."""
        return make_plan(self.dataset, self.config)

    @cached_property
    def high_frequency(self) -> tuple[int, ...]:
        """Class codes that feed the second center, by the plan's own class frequencies."""
        return high_frequency_classes(self.plan.sampled, self.config.loss.high_frequency_classes)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run: the horizon of its schedules."""
        return self._horizon(self.config)

    def horizon_of(self, record: Mapping[str, Any]) -> int:
        """Optimizer steps that the run of a checkpoint was to take; the plan must be this one."""
        return self._horizon(_config_of(record, "the checkpoint"))

    def _horizon(self, config: Config) -> int:
        train = config.train
        return train.steps or max(1, round(train.epochs * self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> float:
        """Epoch length / global batch."""
        return float(self.plan.length) / self.config.train.global_batch

    @cached_property
    def schedules(self) -> Schedules:
        """Values per step."""
        return self.schedules_of(self.total_steps)

    def schedules_of(self, total_steps: int) -> Schedules:
        """Values per step of a run of another length."""
        return Schedules(
            self.config.optim,
            self.config.loss,
            total_steps=total_steps,
            steps_per_epoch=self.steps_per_epoch,
            global_batch=self.config.train.global_batch,
        )

    @property
    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Modality -> mean and standard deviation per band, physical units."""
        return {
            m: (
                torch.tensor(self.dataset.statistics[m]["mean"], dtype=torch.float32),
                torch.tensor(self.dataset.statistics[m]["std"], dtype=torch.float32),
            )
            for m in self.config.data.modalities
        }

    @property
    def masking(self) -> PatchMasking | None:
        """How the student's global crops are masked; None where they are not."""
        loss = self.config.loss
        if not loss.masked_patch_weight:
            return None
        return PatchMasking(self.config.train.seed)

    @property
    def contract(self) -> WeightsContract:
        """What the weights expect of their input."""
        return WeightsContract.build(
            self.config.model.name,
            {m: self.dataset.statistics[m] for m in self.config.data.modalities},
            image_size=self.config.data.global_size,
            dataset_fingerprint=self.dataset.fingerprint,
            commit=source_commit(),
        )

    def layout(self, rank: int, world_size: int) -> RankLayout:
        """A rank's rows of each global batch."""
        train = self.config.train
        return RankLayout(
            global_batch=train.global_batch,
            world_size=world_size,
            rank=rank,
            micro_batch=train.micro_batch,
        )

    def stream_options(self, layout: RankLayout, start_step: int) -> dict[str, Any]:
        """Arguments that `make_batches` and `stream_batches` share."""
        return {
            "dataset": self.dataset,
            "plan": self.plan,
            "config": self.config.data,
            "seed": self.config.train.seed,
            "layout": layout,
            "start_step": start_step,
            "stop_step": self.total_steps,
            "high_frequency": self.high_frequency,
        }

    def distillation(
        self, engine_factory: EngineFactory, restored: TrainingState | None, device: torch.device
    ) -> TrainingStep:
        """Student, teacher, loss and engine, fresh or as they were.

        Raises:
            UsageError: weights to start from, those of a teacher, or the restored state are not
                of this configuration.
        """
        frozen = FrozenTeacher.load(self.config)
        if frozen is None:
            student, teacher = build_student_and_teacher(self.config)
            engine = self._engine(engine_factory, student, teacher, restored, device)
            return self._self_distillation(engine, teacher.to(device), restored, device)
        learner, average = build_student_and_average(self.config, frozen.encoder.embed_dim)
        return FeatureDistillation(
            self._engine(engine_factory, learner, average, restored, device),
            average.to(device),
            frozen,
            statistics=self.statistics,
            global_batch=self.config.train.global_batch,
            precision=self.config.train.precision,
            device=device,
        )

    def _engine(
        self,
        factory: EngineFactory,
        student: TrainedNetwork,
        teacher: TrainedNetwork,
        restored: TrainingState | None,
        device: torch.device,
    ) -> Engine:
        """Around the student, whose weights and the teacher's are put in before."""
        if restored is not None:
            _restore(student, restored.engine.student, restored.file("student"))
            _restore(teacher, restored.teacher, restored.file("teacher"))
            check_optimizer(student, restored.engine.optimizer, restored.file("optimizer"))
        elif self.config.model.init is not None:
            weights, _ = load_weights(self.config.model.init)
            load_state(student.encoder, weights, self.config.model.init, new_sensors=True)
            teacher.load_state_dict(student.state_dict())
        engine = factory(student.to(device))
        if restored is not None:
            engine.load_optimizer(restored.engine.optimizer)
        return engine

    def _self_distillation(
        self, engine: Engine, teacher: Network, restored: TrainingState | None, device: torch.device
    ) -> SelfDistillation:
        criterion = build_criterion(self.config, bool(self.high_frequency)).to(device)
        if restored is not None:
            _restore(criterion, restored.centers, restored.file("centers"))
        return SelfDistillation(
            engine,
            teacher,
            criterion,
            statistics=self.statistics,
            global_batch=self.config.train.global_batch,
            precision=self.config.train.precision,
            device=device,
            koleo_weight=self.config.loss.koleo_weight,
            masked_patch_weight=self.config.loss.masked_patch_weight,
            masking=self.masking,
        )

    def plain_distillation(self, device: str = "cpu") -> TrainingStep:
        """The step in one process, without Ray and DeepSpeed."""
        where = torch.device(device)
        return self.distillation(
            lambda student: PlainEngine(
                student, self.config.optim, precision=self.config.train.precision, device=where
            ),
            None,
            where,
        )

    def state(self, step: int, engine: EngineState, distillation: TrainingStep) -> TrainingState:
        """What a checkpoint after `step` steps holds."""
        consumed = step * self.config.train.global_batch
        return TrainingState(
            step=step,
            engine=engine,
            teacher={n: cpu(p) for n, p in distillation.teacher.named_parameters()},
            centers={n: cpu(b) for n, b in distillation.centers().items()},
            record={
                "cursor": {
                    "seed": self.config.train.seed,
                    "epoch": consumed // self.plan.length,
                    "position": consumed % self.plan.length,
                    "consumed": consumed,
                    "plan": self.plan.hash,
                },
                "dataset": {"uri": self.dataset.uri, "fingerprint": self.dataset.fingerprint},
                "contract": self.contract.model_dump(mode="json"),
                "config": self.config.model_dump(mode="json"),
                "versions": {n: version(n) for n in ("terrafm", "torch", "ray", "deepspeed")},
            },
        )

    def check_continues(self, record: Mapping[str, Any], where: str) -> list[str]:
        """Makes sure that a checkpoint belongs to this configuration and dataset.

        The length of the run is not looked at: a driver decides on it, once.

        Returns:
            What differs and is not needed any more, in words, one for each key.

        Raises:
            UsageError: another model, a changed dataset, or settings that would change what the
                run is.
        """
        # As they are recorded: a signature may be another each time.
        saved = recorded(_config_of(record, where).model_dump(mode="json"))
        ours = recorded(self.config.model_dump(mode="json"))
        policies = resume_policies()
        changed = [key for key in _leaves(ours) if _value(saved, key) != _value(ours, key)]
        model = [key for key in changed if key.startswith(MODEL_KEYS)]
        if model:
            raise UsageError(
                f"{where} is a checkpoint of another model: {_differences(saved, ours, model)}; "
                "choose another --output, or the model it was trained with"
            )
        trained_on = part_of(record, "dataset", where)["fingerprint"]
        if trained_on != self.dataset.fingerprint:
            raise UsageError(
                f"the dataset {self.dataset.uri} has changed since {where}: fingerprint "
                f"{self.dataset.fingerprint[:12]}, was {trained_on[:12]}; "
                "choose another --output, or give the dataset the run began with"
            )
        fixed = [key for key in changed if policies[key] == "refused"]
        if fixed:
            raise UsageError(
                f"{where} was trained with other settings: {_differences(saved, ours, fixed)}; "
                "choose another --output, or the settings it began with"
            )
        told = [key for key in changed if policies[key] == "told"]
        return [_differences(saved, ours, [key]) for key in told]


def _restore(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Loads a part of a checkpoint, whose settings and tensors a stranger may have put together."""
    try:
        module.load_state_dict(dict(state))
    except RuntimeError as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"{where} is not of the model in its settings: {why}") from None


def _config_of(record: Mapping[str, Any], where: str) -> Config:
    try:
        return build_config(part_of(record, "config", where), of_run=True)
    except UsageError as error:
        raise UsageError(
            f"{where} was trained with settings that this version does not take: {error}"
        ) from None


def _leaves(tree: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [f"{section}.{key}" for section, values in tree.items() for key in values]


def _value(tree: Mapping[str, Mapping[str, Any]], key: str) -> Any:
    section, _, name = key.partition(".")
    return tree[section][name]


def _differences(saved: dict[str, Any], ours: dict[str, Any], keys: list[str]) -> str:
    return ", ".join(f"{key} was {_value(saved, key)}, now {_value(ours, key)}" for key in keys)
