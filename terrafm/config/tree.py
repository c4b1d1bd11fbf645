"""The whole tree, and the ways to it: YAML in, dotted overrides, errors that name the key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, cast

from pydantic import ValidationError, model_validator

from terrafm.config.files import read_tree
from terrafm.config.removed import without_removed
from terrafm.config.sections import (
    DataConfig,
    DistilConfig,
    HeadConfig,
    IngestConfig,
    LossConfig,
    ModelConfig,
    OnResume,
    OptimConfig,
    Section,
    TrainConfig,
    TuneConfig,
    ValidationConfig,
)
from terrafm.config.words import Schema, explain, printed, takes_none, type_name
from terrafm.config.yaml_text import dump_yaml, parse_yaml, shortened
from terrafm.errors import UsageError

# Crops of one micro-batch: 50 GB with all bands.
_MOST_PIXELS = 10**9


class Config(Section):
    """The whole tree."""

    model: ModelConfig = ModelConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
    distil: DistilConfig = DistilConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    ingest: IngestConfig = IngestConfig()
    validation: ValidationConfig = ValidationConfig()
    tune: TuneConfig = TuneConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        every, saved = self.validation.every_steps, self.train.checkpoint_every
        if every % saved:
            raise ValueError(
                f"validation.every_steps must be a multiple of train.checkpoint_every={saved}, "
                f"not {every}: what is validated is a checkpoint"
            )
        data, train = self.data, self.train
        rows = min(train.micro_batch, train.global_batch)
        views = data.global_crops * data.global_size**2 + data.local_crops * data.local_size**2
        if rows * views > _MOST_PIXELS:
            raise ValueError(
                f"a micro-batch of {rows} samples has {rows * views:.2g} pixels in its crops, more "
                f"than {_MOST_PIXELS:.0g}: lower train.micro_batch, data.global_size, "
                "data.local_size, data.global_crops or data.local_crops"
            )
        return self

    def to_yaml(self) -> str:
        """The tree as YAML that `load_config` reads back to an equal tree.

        But for secrets in addresses: what is recorded may be read by others.
        """
        # Only here: the step alone must not need the clients of object stores.
        from terrafm.storage.addresses import recorded

        return dump_yaml(recorded(self.model_dump(mode="json")))


def load_config(source: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Builds the tree from a recipe's name or a YAML file, then dotted overrides.

    Args:
        source: a recipe's name, the URI of a YAML file, or None for the defaults. `base: ...` in
            a file is another one whose settings it changes, looked for beside it.
        overrides: "section.key=value" strings; the value is read as YAML.

    Raises:
        UsageError: no such recipe or file, an unknown key, or a value out of its bounds.
    """
    tree = read_tree(source) if source is not None else {}
    for override in overrides:
        _apply(tree, override)
    return build_config(tree)


def build_config(tree: Mapping[str, Mapping[str, Any]], *, of_run: bool = False) -> Config:
    """The typed tree of plain values, in which `none` means nothing.

    Args:
        tree: section -> key -> value.
        of_run: it is what a run recorded, perhaps by an earlier version.

    Raises:
        UsageError: an unknown key, or a value out of its bounds.
    """
    tree, schemas = without_removed(tree, of_run=of_run), _schemas()
    try:
        return Config.model_validate(
            {
                section: {k: _meant(schemas.get(f"{section}.{k}"), v) for k, v in values.items()}
                for section, values in tree.items()
            }
        )
    except ValidationError as error:
        raise UsageError(explain(error, tree, schemas)) from None


def settings() -> Iterator[tuple[str, str, Any, str]]:
    """Every key of the tree as (dotted key, type, default, description)."""
    for key, schema in _schemas().items():
        section, _, name = key.partition(".")
        section_type = Config.model_fields[section].annotation
        assert isinstance(section_type, type)
        assert issubclass(section_type, Section)
        field = section_type.model_fields[name]
        yield key, type_name(schema), field.default, field.description or ""


def resume_policies() -> dict[str, OnResume]:
    """Dotted key -> whether a run that goes on may have another value than it began with."""
    policies: dict[str, OnResume] = {}
    for section, field in Config.model_fields.items():
        section_type = field.annotation
        assert isinstance(section_type, type)
        assert issubclass(section_type, Section)
        for key, held in section_type.model_fields.items():
            said = held.json_schema_extra
            own = said.get("on_resume") if isinstance(said, dict) else None
            policies[f"{section}.{key}"] = cast(OnResume, own or section_type.on_resume)
    return policies


@cache
def _schemas() -> Mapping[str, Schema]:
    """Dotted key -> JSON schema of its values."""
    sections = Config.model_json_schema()["$defs"]
    return {
        f"{section}.{key}": schema
        for section, field in Config.model_fields.items()
        for key, schema in sections[getattr(field.annotation, "__name__", "")]["properties"].items()
    }


def _meant(schema: Schema | None, value: Any) -> Any:
    """A value as a key takes it: 1e3 is whole; none and None, as help says it, are null."""
    if isinstance(value, list | tuple):
        return [_meant(None, item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if schema is not None and value in ("none", "None", None):
        word = "none" if "none" in schema.get("enum", ()) else value
        return None if takes_none(schema) else word
    return value


def _apply(tree: dict[str, dict[str, Any]], override: str) -> None:
    key, separator, text = override.partition("=")
    section, _, name = key.strip().partition(".")
    if not separator or not section or not name:
        raise UsageError(f"--set takes section.key=value, not {shortened(override)}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UsageError(
            f"--set {printed(key)}: {shortened(text)} is not a YAML value: {error}"
        ) from None
    tree.setdefault(section, {})[name] = value
