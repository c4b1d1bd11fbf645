"""The whole tree, and the ways to it: YAML in, dotted overrides, errors that name the key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError, model_validator

from terrafm.config.sections import (
    DataConfig,
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
from terrafm.config.yaml_text import dump_yaml, parse_yaml, shortened
from terrafm.errors import UsageError


class Config(Section):
    """The whole tree."""

    model: ModelConfig = ModelConfig()
    head: HeadConfig = HeadConfig()
    loss: LossConfig = LossConfig()
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
        return self

    def to_yaml(self) -> str:
        """The tree as YAML that `load_config` reads back to an equal tree."""
        return dump_yaml(self.model_dump(mode="json"))


def recipe_names() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = resources.files("terrafm") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_config(source: str | None = None, overrides: Sequence[str] = ()) -> Config:
    """Builds the tree from a recipe's name or a YAML file, then dotted overrides.

    Args:
        source: a recipe's name, the URI of a YAML file, or None for the defaults. `base: ...` in
            a file is another one whose settings it changes.
        overrides: "section.key=value" strings; the value is read as YAML.

    Raises:
        UsageError: no such recipe or file, an unknown key, or a value out of its bounds.
    """
    tree = _read_tree(source) if source is not None else {}
    for override in overrides:
        _apply(tree, override)
    return build_config(tree)


def build_config(tree: Mapping[str, Any]) -> Config:
    """The typed tree of plain values.

    Raises:
        UsageError: an unknown key, or a value out of its bounds.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UsageError(_explain(error)) from None


def settings() -> Iterator[tuple[str, str, Any, str]]:
    """Every key of the tree as (dotted key, type, default, description)."""
    for section, field in Config.model_fields.items():
        section_type = field.annotation
        assert isinstance(section_type, type)
        assert issubclass(section_type, Section)
        schema = section_type.model_json_schema()["properties"]
        for key, setting in section_type.model_fields.items():
            yield (
                f"{section}.{key}",
                _type_name(schema[key]),
                setting.default,
                setting.description or "",
            )


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


def _type_name(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "anyOf" in schema:
        return " | ".join(_type_name(option) for option in schema["anyOf"])
    return {"array": "list", "null": "none", "object": "mapping"}.get(
        schema["type"], str(schema["type"])
    )


def _read_tree(source: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    if source in recipe_names():
        text = (resources.files("terrafm") / "recipes" / f"{source}.yaml").read_bytes()
    elif Path(source).suffix in (".yaml", ".yml"):
        # Only here: the step alone must not need the clients of object stores.
        from terrafm.storage import exists, read_bytes

        if not exists(source):
            raise UsageError(f"configuration file {source} does not exist")
        text = read_bytes(source)
    else:
        near = _nearest(source, recipe_names())
        raise UsageError(
            f"no recipe named {source!r}{near}; recipes: {', '.join(recipe_names())}; "
            "or give the path of a .yaml file"
        )
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"configuration {source} is not valid YAML: {error}") from None
    if tree is None:
        return {}
    base = {}
    if isinstance(tree, dict) and isinstance(tree.get("base"), str):
        if tree["base"] in (*above, source):
            raise UsageError(f"configuration {source} stands on itself by `base: {tree['base']}`")
        base = _read_tree(tree.pop("base"), (*above, source))
    if not isinstance(tree, dict) or not all(isinstance(v, dict) for v in tree.values() if v):
        raise UsageError(f"configuration {source} must map sections to settings")
    sections = [*base, *(section for section in tree if section not in base)]
    return {name: base.get(name, {}) | dict(tree.get(name) or {}) for name in sections}


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    section, dot, name = key.strip().partition(".")
    if not separator or not dot or not name:
        raise UsageError(f"--set takes section.key=value, not {override!r}")
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"--set {key}: {shortened(text)} is not a YAML value: {error}") from None
    tree.setdefault(section, {})[name] = value


def yaml_number(value: Any) -> Any:
    """A value of YAML, where YAML 1.1 reads 1e-3 as a string and a person means a number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: ValidationError) -> str:
    keys = [key for key, *_ in settings()]
    parts = []
    for fault in error.errors():
        where = ".".join(str(part) for part in fault["loc"] if not isinstance(part, int))
        if fault["type"] == "extra_forbidden":
            candidates = keys if "." in where else list(Config.model_fields)
            parts.append(f"unknown configuration key {where}{_nearest(where, candidates)}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:]
            given = "" if fault["type"] == "value_error" else f", not {shortened(fault['input'])}"
            # What holds between sections names its keys itself.
            named = f"configuration key {where}: " if where else ""
            parts.append(f"{named}{message}{given}")
    return "; ".join(parts)


def _nearest(word: str, candidates: Sequence[str]) -> str:
    by_name = {c.rpartition(".")[2]: c for c in candidates}
    near = difflib.get_close_matches(word, candidates, n=1, cutoff=0.5)
    near = near or [
        by_name[n] for n in difflib.get_close_matches(word.rpartition(".")[2], by_name, n=1)
    ]
    return f" (did you mean {near[0]}?)" if near else ""
