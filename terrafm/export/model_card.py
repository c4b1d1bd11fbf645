"""The model card: what the weights are, what they expect, how they were made, how they score."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from huggingface_hub.repocard_data import EvalResult, eval_results_to_model_index

from terrafm.config import Config
from terrafm.config.yaml_text import dump_yaml
from terrafm.errors import UsageError
from terrafm.export.request import Export, ExportFormat
from terrafm.export.snippets import snippet_at
from terrafm.models.contract import WeightsContract
from terrafm.models.hub import LIBRARY, PAPER, TAGS, TASK
from terrafm.storage import parse_json, read_bytes

FRONT_MATTER = f"---\nlibrary_name: {LIBRARY}\n"
"""What every card begins with."""

# Sections of the configuration that say what was learned, and keys that only say where.
_RECIPE = ("model", "head", "loss", "data", "optim", "train")
_PLACES = ("init", "cache_dir", "cache_bytes")
_NO_LICENSE = "unknown"
_SCORE_DEPTH = 2
_ACCURACIES = {"knn20": "20 nearest neighbours", "knn5": "5 nearest neighbours"}


def model_card(export: Export) -> str:
    """Markdown with YAML front matter, as Hugging Face reads it.

    Args:
        export: with the licence and scores asked for, and the checkpoint's record.

    Raises:
        UsageError: the scores cannot be read.
    """
    contract, record = export.contract, export.record
    license = export.options.license or _NO_LICENSE
    scores = _read_scores(export.options.scores)
    head = {
        "license": license,
        "pipeline_tag": TASK,
        "tags": [*TAGS, "model_hub_mixin", "pytorch_model_hub_mixin"],
        **_model_index(contract.model, scores),
    }
    steps = f" after {record['step']:,} steps" if "step" in record else ""
    parts = [
        f"{FRONT_MATTER}{dump_yaml(head)}---\n",
        f"# {contract.model}: {contract.network}{steps}\n",
        f"An Earth-observation encoder pretrained with TerraFM's method ([paper]({PAPER})): images "
        f"of {', '.join(contract.modalities)} become one embedding or a map of features per "
        f"{contract.patch_size} x {contract.patch_size} pixels.\n",
        "## Load it\n",
        "In this folder, or with its place or its name on the hub instead of the dot:\n",
        f"```python\n{snippet_at('.', ExportFormat.HF, contract, export.options)}```\n",
        *_input(contract),
        *_data(contract, record),
        *_recipe(contract, record),
        *_scores(export.options.scores, scores),
        "## Licence\n",
        _licence_words(license),
    ]
    return "\n".join(parts)


def _input(contract: WeightsContract) -> list[str]:
    parts = [
        "## Input\n",
        "Per band (x - mean) / std, with x in the unit given; 0 where there is no data. "
        f"`model.contract.normalise` does it. Trained on crops of {contract.image_size} pixels.\n",
    ]
    for name, expected in contract.modalities.items():
        rows = [
            (band, f"{mean:.6g}", f"{std:.6g}")
            for band, mean, std in zip(expected.bands, expected.mean, expected.std, strict=True)
        ]
        parts += [
            f"### {name}, {expected.unit}\n",
            f"Stored integers x {expected.storage_scale:g} give {expected.unit}.\n",
            _table(("band", "mean", "std"), rows),
        ]
    return parts


def _data(contract: WeightsContract, record: Mapping[str, Any]) -> list[str]:
    rows = [("modalities", ", ".join(contract.modalities))]
    if contract.dataset_fingerprint:
        rows.append(("fingerprint of the dataset", contract.dataset_fingerprint))
    consumed = record.get("cursor", {}).get("consumed")
    if consumed is not None:
        rows.append(("samples seen", f"{consumed:,}"))
    return [
        "## Data\n",
        "The dataset's statistics stand above. Say here what it is made of: archive, region, "
        "years, selection.\n",
        _table(("", ""), rows),
    ]


def _recipe(contract: WeightsContract, record: Mapping[str, Any]) -> list[str]:
    rows = [(name, str(version)) for name, version in record.get("versions", {}).items()]
    if contract.commit:
        rows.append(("commit", contract.commit))
    parts = ["## Recipe\n"]
    if "config" not in record:
        return [*parts, "Not known: the weights did not come from a checkpoint.\n"]
    changed = recipe_of(record)
    parts.append("Settings of `terrafm pretrain` that differ from its defaults:\n")
    parts.append(f"```yaml\n{dump_yaml(changed)}```\n")
    if "averaged" in record:
        steps = ", ".join(f"{part['step']:,}" for part in record["averaged"])
        parts.append(f"The mean of checkpoints after {steps} steps.\n")
    return [*parts, _table(("made with", ""), rows)] if rows else parts


def recipe_of(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Settings of a checkpoint's run that differ from the defaults; empty where none is known."""
    config = record.get("config", {})
    defaults = Config().model_dump(mode="json")
    changed = {
        section: {
            key: value
            for key, value in config.get(section, {}).items()
            if value != defaults[section].get(key) and key not in _PLACES
        }
        for section in _RECIPE
    }
    return {section: values for section, values in changed.items() if values}


def _read_scores(uri: str | None) -> dict[str, Any]:
    """What an evaluation printed; empty where none was given.

    Raises:
        UsageError: it cannot be read.
    """
    if uri is None:
        return {}
    try:
        found = parse_json(read_bytes(uri))
    except (OSError, ValueError) as error:
        raise UsageError(f"--scores {uri}: {error}") from None
    return found if isinstance(found, dict) else {}


def _model_index(model: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracies of `terrafm evaluate knn` as the hub's own results, for its tables and search."""
    where = scores.get("data")
    by_modality = scores.get("by_modality")
    if not isinstance(where, str) or not isinstance(by_modality, Mapping):
        return {}
    # Its name, and not where it lies.
    name = PurePosixPath(where).name or where
    results = [
        EvalResult(
            task_type=TASK,
            dataset_type=re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-"),
            dataset_name=name,
            metric_type="accuracy",
            metric_value=round(float(value), 4),
            metric_name=f"{title}, {modality}, {scores.get('readout', 'cls')}",
        )
        for modality, values in by_modality.items()
        if isinstance(values, Mapping)
        for key, title in _ACCURACIES.items()
        # Whoever wrote the file: the hub refuses a card whose accuracy is no number.
        if isinstance(value := values.get(key), float) and 0 <= value <= 1
    ]
    return {"model-index": eval_results_to_model_index(model, results)} if results else {}


def _scores(uri: str | None, found: Mapping[str, Any]) -> list[str]:
    if uri is None:
        return [
            "## Scores\n",
            "None were given. `terrafm evaluate ... --json > scores.json` makes some, and "
            "`terrafm export --scores scores.json` puts them here.\n",
        ]
    rows = list(_figures(found))
    if not rows:
        raise UsageError(f"--scores {uri}: no scores in it; give what evaluate --json printed")
    return ["## Scores\n", "As `terrafm evaluate` printed them.\n", _table(("", ""), rows)]


def _figures(tree: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Names and values that are not deep in the tree, such as untrained.knn20."""
    for key, value in tree.items():
        path = (*above, str(key))
        if isinstance(value, Mapping) and len(path) < _SCORE_DEPTH:
            yield from _figures(value, path)
        elif isinstance(value, float):
            yield ".".join(path), f"{value:.4f}"
        elif isinstance(value, int) or (isinstance(value, str) and "/" not in value):
            # Places, of data and weights, are not for the card.
            yield ".".join(path), str(value)


def _licence_words(license: str) -> str:
    if license != _NO_LICENSE:
        return f"{license}.\n"
    return (
        "Not stated: whoever publishes these weights chooses it, as the archive's terms allow, "
        "with `terrafm export --license`.\n"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
