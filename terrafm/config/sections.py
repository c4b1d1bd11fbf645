"""The branches of the tree of settings, with every default.

Defaults follow the paper (arXiv 2506.06281) where it gives a number, and DINO (arXiv 2104.14294)
where it does not.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from terrafm.config.values import (
    Amount,
    Area,
    Batch,
    BelowOne,
    Bytes,
    Count,
    Cpus,
    Distinct,
    EncoderPart,
    Flag,
    Fraction,
    Gpus,
    Integer,
    Modalities,
    Number,
    OneEach,
    Ordered,
    Positive,
    Seed,
    Share,
    Side,
    SomeModalities,
    Temperature,
    Text,
    Whole,
    Workers,
    WorkersOrNone,
)
from terrafm.modalities import SENTINEL

# Of one matrix: 40 GB.
_MOST_WEIGHTS = 10**10

OnResume = Literal["refused", "free", "told", "extend"]
"""Whether a run that goes on may have another value than it began with.

    refused  it would change the result
    free     it changes no result: where and how fast the run goes, and what is kept of it
    told     it is not needed any more: a line says that it differs
    extend   it is the length of the schedules: only with --extend
"""


def setting(default: Any, description: str, *, on_resume: OnResume) -> Any:
    """A field whose value may differ where a run goes on; a plain `Field` may not."""
    return Field(default, description=description, json_schema_extra={"on_resume": on_resume})


class Section(BaseModel):
    """A branch of the tree: immutable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
    on_resume: ClassVar[OnResume] = "refused"
    """Of the fields that do not say it themselves."""


class ModelConfig(Section):
    """The encoder."""

    name: Literal["terrafm_tiny", "terrafm_small", "terrafm_base", "terrafm_large"] = Field(
        "terrafm_base", description="architecture"
    )
    init: Text | None = setting(
        None, "URI of weights to start from, released or own", on_resume="told"
    )
    frozen: Annotated[tuple[EncoderPart, ...], Distinct] = Field(
        (),
        description="parts that stay as model.init has them: patch_embed, fusion, pos_embed, "
        "cls_token, blocks, or blocks:2 for the first two",
    )
    drop_path: BelowOne = Field(
        0.1, description="stochastic depth of the last block; linear in depth"
    )
    num_queries: Annotated[Integer, Field(ge=1, le=256)] = Field(
        5, description="fusion queries per position (N_q)"
    )


class HeadConfig(Section):
    """DINO's projection head."""

    num_prototypes: Annotated[Integer, Field(ge=2, le=10**7)] = Field(
        65536, description="outputs of the head (K)"
    )
    hidden_dim: Annotated[Integer, Field(ge=1, le=2**15)] = Field(
        2048, description="width of the MLP"
    )
    bottleneck_dim: Annotated[Integer, Field(ge=1, le=2**15)] = Field(
        256, description="width before the prototypes"
    )

    @model_validator(mode="after")
    def _check(self) -> HeadConfig:
        if self.num_prototypes * self.bottleneck_dim > _MOST_WEIGHTS:
            raise ValueError(
                f"head.num_prototypes={self.num_prototypes} times head.bottleneck_dim="
                f"{self.bottleneck_dim} are more weights than fit: lower one of them"
            )
        return self


class LossConfig(Section):
    """Self-distillation with dual centering."""

    student_temp: Temperature = Field(0.1, description="student temperature")
    teacher_temp: Temperature = Field(0.06, description="teacher temperature after the warm-up")
    warmup_teacher_temp: Temperature = Field(0.04, description="teacher temperature at step 0")
    alpha: Fraction = Field(0.8, description="weight of the global center; 1 is DINO")
    center_momentum: Fraction = Field(0.9, description="EMA momentum of the centers")
    high_frequency_classes: (
        Annotated[tuple[Annotated[Integer, Field(ge=0, le=2**31 - 1)], ...], Distinct] | None
    ) = Field(
        None, description="land-cover codes of c_h; by default those above 1 / classes present"
    )
    centering: Literal["ema", "sinkhorn"] = Field(
        "ema", description="moving averages of the teacher's logits, or Sinkhorn-Knopp per batch"
    )
    koleo_weight: Amount = Field(
        0.0, description="weight of KoLeo on the global crops' CLS tokens; 0.1 in DINOv2"
    )
    masked_patch_weight: Amount = Field(
        0.0, description="weight of the masked patches' loss; 1 in iBOT and DINOv2"
    )


class DistilConfig(Section):
    """Distillation of a larger encoder, in place of self-distillation."""

    teacher: Text | None = Field(
        None, description="URI of a frozen encoder's weights, whose tokens the student learns"
    )


class DataConfig(Section):
    """What a sample is: sampling, modality augmentation, crops."""

    modalities: SomeModalities = Field(SENTINEL, description="modalities to train on")
    resample_exponent: Fraction = Field(
        0.5, description="0 keeps the archive's classes, 1 equalises"
    )
    resample_cap: Positive | None = Field(None, description="most copies of a tile in one epoch")
    region_exponent: Fraction = Field(
        0.0, description="within a class: 0 leaves the regions as they are, 1 equalises them"
    )
    water_keep: Fraction = Field(
        1.0, description="share of the tiles of class water that are sampled, chosen by tile id"
    )
    epoch_length: Count | None = Field(
        None, description="samples of an epoch; by default all tiles"
    )
    keep_probability: Fraction = Field(0.5, description="chance of each modality to be in a view")
    other_date: Fraction = Field(
        0.0, description="chance of each view to show another date of the tile's place, if any"
    )
    fusion: Flag = Field(True, description="false: every view draws exactly one modality")
    global_crops: Annotated[Integer, Field(ge=1, le=64)] = Field(
        2, description="crops that teacher and student see"
    )
    local_crops: Annotated[Integer, Field(ge=0, le=256)] = Field(
        8, description="crops that the student sees"
    )
    global_size: Side = Field(224, description="side of a global crop, pixels")
    local_size: Side = Field(96, description="side of a local crop, pixels")
    global_scale: Annotated[tuple[Area, Area], Ordered] = Field(
        (0.25, 1.0), description="area share, global"
    )
    crop_on: Literal["workers", "device"] = Field(
        "workers", description="where crops are cut: in data workers, or on the training device"
    )
    rows_per_block: Count = setting(64, "most samples of one Ray Data task", on_resume="free")
    cpus_per_worker: Cpus | None = setting(
        None,
        "logical CPUs that read for each training worker; by default all free",
        on_resume="free",
    )
    cache_dir: Text | None = setting(
        None, "local folder that keeps cells of a remote dataset, on every node", on_resume="free"
    )
    cache_bytes: Bytes = setting(100_000_000_000, "most bytes of a node's cache", on_resume="free")
    on_damage: Literal["fatal", "quarantine"] = setting(
        "fatal", "a tile whose bytes are damaged ends the run, or is left out", on_resume="free"
    )

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.global_crops + self.local_crops < 2:
            raise ValueError(
                "at least two views are needed: raise data.global_crops or data.local_crops"
            )
        if self.other_date and self.crop_on == "device":
            raise ValueError(
                "data.other_date needs crops that workers cut: set data.crop_on to workers, or "
                "data.other_date to 0"
            )
        return self


class OptimConfig(Section):
    """AdamW and its schedules."""

    base_lr: Annotated[Number, Field(gt=0.0, le=1e30)] = Field(
        5e-4, description="peak learning rate at a global batch of 256"
    )
    lr_scaling: Literal["linear", "sqrt"] = Field(
        "linear", description="how the rate grows with the global batch; sqrt in DINOv2"
    )
    layer_decay: tuple[Share, Share] = Field(
        (1.0, 1.0),
        description="rate of a block by that of the next, and of the patch embedding by its "
        "layer's; 0.9 and 0.2 in DINOv2",
    )
    weight_decay: Annotated[Number, Field(ge=0.0, le=100.0)] = Field(
        0.04, description="weight decay at the start"
    )
    weight_decay_end: Annotated[Number, Field(ge=0.0, le=100.0)] = Field(
        0.4, description="weight decay at the end"
    )
    clip_grad: Positive = Field(3.0, description="largest gradient norm")
    clip_by: Literal["global", "parameter"] = Field(
        "global", description="whose norm is limited: all gradients', or each parameter's (DINO)"
    )
    warmup_epochs: Amount = Field(10, description="warm-up, epochs at most")
    teacher_momentum: BelowOne = Field(0.996, description="EMA momentum at step 0; cosine to 1")


class TrainConfig(Section):
    """How the run is carried out."""

    steps: Count | None = setting(None, "optimizer steps; overrides epochs", on_resume="extend")
    epochs: Annotated[Number, Field(gt=0.0, le=1e6)] = setting(
        150, "passes over the epoch length", on_resume="extend"
    )
    workers: Workers | Annotated[tuple[Workers, Workers], Ordered] = setting(
        1, "training workers (ranks), or the fewest and the most", on_resume="free"
    )
    global_batch: Batch = Field(1024, description="samples of one step, all workers together")
    micro_batch: Batch = setting(64, "most samples a worker holds at once", on_resume="free")
    zero_stage: Annotated[Integer, Field(ge=0, le=3)] = setting(
        1, "DeepSpeed ZeRO stage, 0 to 3", on_resume="free"
    )
    precision: Literal["float32", "bf16"] = Field("bf16", description="compute precision")
    activation_checkpointing: Literal["none", "blocks"] = setting(
        "none", "blocks: activations are computed again in the backward pass", on_resume="free"
    )
    compile: Flag = setting(
        False, "compile the encoder's blocks with torch.compile", on_resume="free"
    )
    seed: Seed = Field(0, description="seed of everything random")
    checkpoint_every: Count = setting(1000, "steps between checkpoints", on_resume="free")
    keep_checkpoints: Count = setting(3, "newest checkpoints kept", on_resume="free")
    keep_every: Count | None = setting(
        None, "checkpoints at multiples of so many steps are kept for ever", on_resume="free"
    )
    log_every: Count = setting(10, "steps between lines of metrics.jsonl", on_resume="free")
    trackers: Annotated[
        tuple[Literal["tensorboard", "mlflow", "wandb", "mlflow+weights", "wandb+weights"], ...],
        OneEach,
    ] = setting(
        ("tensorboard",),
        "where metrics and pictures go besides the run's folder; with +weights, weights too",
        on_resume="free",
    )
    profile_steps: Whole = setting(
        0, "steps traced into profile/, after two of warm-up; --profile sets 3", on_resume="free"
    )
    audit_samples: Flag = setting(
        False, "record every sample consumed in samples.parquet", on_resume="free"
    )
    max_failures: Whole = setting(
        8, "failures survived in a row without another checkpoint", on_resume="free"
    )
    resize_interval: Amount = setting(
        300, "seconds that workers train at least before they stop to become more", on_resume="free"
    )
    hang_timeout: Annotated[Number, Field(ge=1.0, le=1e9)] = setting(
        600, "seconds without any progress before the workers are started again", on_resume="free"
    )
    standby: Flag = setting(
        True, "beside each worker a process waits with all imports for a restart", on_resume="free"
    )
    cpus_per_worker: Cpus = setting(1, "logical CPUs of a worker", on_resume="free")
    gpu: Literal["auto", "yes", "no"] = setting("auto", "one GPU per worker", on_resume="free")

    @property
    def fewest_workers(self) -> int:
        """Below which the run waits for machines."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most_workers(self) -> int:
        """As many as there is room for, up to this."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]


class ValidationConfig(Section):
    """Scores of checkpoints while the run trains."""

    on_resume: ClassVar[OnResume] = "free"

    every_steps: Whole = Field(
        0, description="steps between validations, a multiple of train.checkpoint_every; 0: none"
    )
    scores: Annotated[tuple[Literal["knn", "retrieval"], ...], Field(min_length=1), Distinct] = (
        Field(("knn",), description="kinds of scores: knn of labels; retrieval, which needs none")
    )
    data: Text | None = Field(
        None, description="URI of a labelled set; by default the run's tiles with their land cover"
    )
    samples: Annotated[Integer, Field(ge=2, le=10**7)] = Field(
        1000, description="most images scored: equal over classes; of retrieval, whole places"
    )
    metric: Text = Field(
        "knn20/s2_l2a/accuracy", description="name of the metric that decides which is the best"
    )
    cpus: Cpus = Field(1, description="logical CPUs of a validation, of what training leaves")
    gpus: Gpus = Field(0.0, description="GPUs of a validation, of what training leaves")


class IngestConfig(Section):
    """Archive to shards."""

    on_resume: ClassVar[OnResume] = "free"

    require_modalities: Modalities = Field(
        SENTINEL, description="modalities whose absence is a fault of the tile"
    )
    allow_missing_bands: Modalities = Field(
        (), description="modalities whose products may lack bands; those are stored as nodata"
    )
    max_bad_fraction: Fraction = Field(0.5, description="share of bad tiles that fails the job")
    max_nodata: Fraction = Field(0.5, description="largest share of nodata pixels in a tile")
    ocean_drop: Fraction | None = Field(
        None, description="share of water-only tiles dropped; by default 0.98, geotiff: 0"
    )
    max_gap_days: Amount | None = Field(
        None, description="most days between a product and its cell's anchor; any by default"
    )
    max_cloud_cover: Annotated[Number, Field(ge=0.0, le=100.0)] | None = Field(
        None, description="most cloud of an optical product, percent; any by default"
    )
    dates_per_place: Annotated[Integer, Field(ge=1, le=1000)] = Field(
        1, description="most dates of one place; of sources of scenes, such as safe"
    )
    max_tiles: Count | None = Field(None, description="most tiles of the dataset; all by default")
    spread: Annotated[tuple[Literal["land_cover", "climate", "region"], ...], Distinct] = Field(
        ("land_cover", "climate", "region"),
        description="over what max_tiles is spread: land_cover, climate, region",
    )
    tiles_per_shard: Annotated[Integer, Field(ge=1, le=10**5)] = Field(
        256, description="tiles of one Parquet shard"
    )
    codec: Literal["blosc2", "pcodec"] = Field(
        "blosc2", description="codec of the pixel cells; pcodec where the network is the limit"
    )
    workers: WorkersOrNone | None = Field(
        None, description="parallel readers; by default all CPUs, 0 for none beside the command"
    )


class TuneConfig(Section):
    """A sweep over other settings of the tree; a single run takes no notice of it."""

    on_resume: ClassVar[OnResume] = "free"

    space: Text | dict[str, Any] | None = Field(
        None, description="names of spaces joined by +, or key -> distribution"
    )
    arms: dict[Text, dict[str, Any]] = Field(
        {}, description="name -> settings: points that are tried as they are, in place of a space"
    )

    @field_validator("arms", mode="before")
    @classmethod
    def _named(cls, arms: Any) -> Any:
        if not isinstance(arms, dict):
            return arms
        if unquoted := [name for name in arms if not isinstance(name, str)]:
            raise ValueError(f"takes names that are text, such as '{unquoted[0]}' in quotes")
        # An arm without settings is the configuration as it is.
        return {name: {} if settings is None else settings for name, settings in arms.items()}

    search: Literal["random", "grid", "optuna"] = Field(
        "random", description="how points of the space are chosen"
    )
    scheduler: Literal["none", "asha", "median", "pbt"] = Field(
        "none", description="what ends or changes trials before their last step"
    )
    trials: Annotated[Integer, Field(ge=1, le=10**5)] = Field(
        8, description="points of the space; grid and arms have their own number"
    )
    seeds: Annotated[Integer, Field(ge=1, le=1000)] = Field(
        1, description="runs of each point, with the seeds train.seed and up"
    )
    max_concurrent: Count | None = Field(
        None, description="trials at once; by default as many as there are CPUs or GPUs for"
    )
    objectives: Annotated[tuple[Text, ...], Field(min_length=1), Distinct] = Field(
        ("balanced_accuracy",), description="measures to maximise; several only with optuna"
    )
    labelled: Text | None = Field(
        None,
        description="URI of the labelled set that checkpoints are scored on; by default --data",
    )
    modalities: SomeModalities | None = Field(
        None, description="modalities that are scored, fused if several; by default one sensor"
    )
