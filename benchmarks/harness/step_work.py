"""A training step on synthetic batches of the real layout; needs neither Ray nor DeepSpeed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from terrafm.config import Config, load_config
from terrafm.data.samples.batch import Batch, Crops, HostBatch, SampleInfo
from terrafm.modalities import MODALITIES
from terrafm.train.step.distillation import (
    Network,
    SelfDistillation,
    build_criterion,
    build_student_and_teacher,
)
from terrafm.train.step.engine import Engine, PlainEngine
from terrafm.train.step.schedules import StepSettings

SETTINGS = StepSettings(
    lr=1e-4, weight_decay=0.04, teacher_temp=0.04, teacher_momentum=0.996, freeze_prototypes=False
)
# Storage integers that pixels are drawn from, per dtype: reflectance x 10,000, dB x 100.
_RANGES = {"uint16": (500, 5000), "int16": (-2500, -300)}


@dataclass(frozen=True)
class StepWork:
    """One contestant's step.

    Attributes:
        name: of the contestant.
        batch: samples of one worker in one step.
        workers: processes that train together; the global batch is theirs together.
        warm_up: steps that are not counted.
        steps: steps that are.
        overrides: of the configuration, "section.key=value".
    """

    name: str
    batch: int
    workers: int = 1
    warm_up: int = 1
    steps: int = 4
    overrides: list[str] = field(default_factory=list)

    @property
    def config(self) -> Config:
        """The whole tree."""
        workers = f"train.workers={self.workers}"
        samples = f"train.global_batch={self.batch * self.workers}"
        return load_config(None, [*self.overrides, workers, samples])

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch."""
        return min(self.batch, self.config.train.micro_batch)

    @property
    def n_micro(self) -> int:
        """Micro-batches of a step.

        Raises:
            SystemExit: they do not divide the step's samples.
        """
        if self.batch % self.micro_rows:
            raise SystemExit(f"{self.batch} samples are not micro-batches of {self.micro_rows}")
        return self.batch // self.micro_rows

    def batches(self, rank: int = 0) -> list[Batch]:
        """The step's micro-batches of a rank: the same for every contestant."""
        numbers = range(rank * self.n_micro, (rank + 1) * self.n_micro)
        return [synthetic_batch(self.config, self.micro_rows, number) for number in numbers]


def synthetic_batch(config: Config, rows: int, seed: int) -> Batch:
    """A micro-batch as the stream makes it, of random pixels; pinned where there is a GPU.

    Modalities are drawn by the method's rule: each kept with probability
    `data.keep_probability`, one drawn uniformly where none was kept; exactly one without fusion.
    """
    data = config.data
    generator = np.random.default_rng(seed)
    n_global, n_views = data.global_crops, data.global_crops + data.local_crops
    student = _draw(config, generator, rows, n_views)
    teacher = _draw(config, generator, rows, n_global)
    crops = [
        _crops(config, generator, data.global_size, student[:, :n_global], teacher),
        *(
            [_crops(config, generator, data.local_size, student[:, n_global:], None)]
            if data.local_crops
            else []
        ),
    ]
    return Batch(
        global_crops=crops[0],
        local_crops=crops[1] if data.local_crops else None,
        drop_path_key=torch.from_numpy(generator.integers(0, 2**62, (n_views, rows))),
        high_frequency=torch.from_numpy(generator.random(rows) < 0.5),
        samples=SampleInfo(
            tile_id=[f"synthetic_{seed}_{row}" for row in range(rows)],
            epoch=np.zeros(rows, dtype=np.int64),
            position=np.arange(rows),
            weight=torch.ones(rows),
        ),
    )


def build(
    work: StepWork,
    device: torch.device,
    engine: Callable[[Network], Engine] | None = None,
) -> SelfDistillation:
    """Student, teacher, loss and engine on a device; a plain engine by default."""
    config = work.config
    student, teacher = build_student_and_teacher(config)
    student = student.to(device)
    if engine is None:
        precision = config.train.precision
        made: Engine = PlainEngine(student, config.optim, precision=precision, device=device)
    else:
        made = engine(student)
    return SelfDistillation(
        made,
        teacher.to(device),
        build_criterion(config, has_high_frequency=True).to(device),
        statistics={
            name: (
                torch.full((MODALITIES[name].channels,), -14.0 if name == "s1" else 0.27),
                torch.full((MODALITIES[name].channels,), 3.0 if name == "s1" else 0.07),
            )
            for name in config.data.modalities
        },
        global_batch=config.train.global_batch,
        precision=config.train.precision,
        device=device,
    )


def one_step(distillation: SelfDistillation, batches: list[HostBatch]) -> float:
    """The step without data and start-up: from batches in memory to the moved centers.

    Returns:
        The mean loss.

    Raises:
        SystemExit: the step was skipped.
    """
    sums = distillation.forward_backward(batches, SETTINGS)
    applied, _ = distillation.finish(SETTINGS)
    if not applied:
        raise SystemExit("a step was skipped: gradients were not finite")
    return sums.means()["loss"]


def seconds_per_step(step: Callable[[], object], device: torch.device, steps: int) -> float:
    """Median seconds of one call."""
    taken = []
    for _ in range(steps):
        synchronise(device)
        begin = time.perf_counter()
        step()
        synchronise(device)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def synchronise(device: torch.device) -> None:
    """Waits for everything given to a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _draw(
    config: Config, generator: np.random.Generator, rows: int, views: int
) -> NDArray[np.bool_]:
    """(rows, views, modalities) what each view has."""
    count = len(config.data.modalities)
    one = np.eye(count, dtype=bool)[generator.integers(0, count, (rows, views))]
    if not config.data.fusion:
        return one
    kept = generator.random((rows, views, count)) < config.data.keep_probability
    return np.where(kept.any(-1, keepdims=True), kept, one)


def _crops(
    config: Config,
    generator: np.random.Generator,
    side: int,
    student: NDArray[np.bool_],
    teacher: NDArray[np.bool_] | None,
) -> Crops:
    drawn = student if teacher is None else student | teacher
    rows, count, _ = drawn.shape
    made = Crops(rows * count, {}, {}, {}, None if teacher is None else {})
    for m, name in enumerate(config.data.modalities):
        modality = MODALITIES[name]
        crop, sample = np.nonzero(drawn[:, :, m].T)
        low, high = _RANGES[modality.dtype]
        shape = (len(crop), modality.channels, side, side)
        pixels = torch.from_numpy(generator.integers(low, high, shape, dtype=modality.dtype))
        made.pixels[name] = pixels.pin_memory() if torch.cuda.is_available() else pixels
        made.image[name] = torch.from_numpy(crop * rows + sample)
        made.student[name] = torch.from_numpy(student[sample, crop, m])
        if teacher is not None and made.teacher is not None:
            made.teacher[name] = torch.from_numpy(teacher[sample, crop, m])
    return made
