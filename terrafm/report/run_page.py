"""The page about one run, or about several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from terrafm.config import Config, load_config, recipe_names
from terrafm.report.blocks import Block, Cell, Facts, Section, Shares, Source, Table, Text
from terrafm.report.run_curves import (
    happenings_table,
    learning_charts,
    moment,
    speed_charts,
    timeline,
)
from terrafm.report.run_history import History
from terrafm.report.run_record import RunRecord
from terrafm.report.run_scores import score_blocks
from terrafm.report.verdict import verdict_of
from terrafm.units import human_bytes

# More keys than a reader wants to compare.
_MOST_KEYS = 80
# Not what is trained, or not by this run.
_LEFT_OUT = ("tune.",)
_MARKS = (
    "Red lines mark faults, dashed lines changes of the number of workers, and shaded spans "
    "alarms; the section What happened lists them."
)


def run_sections(runs: Sequence[RunRecord]) -> list[Section]:
    """All sections about some runs."""
    histories = [History(run) for run in runs]
    several = len(runs) > 1
    verdicts = [verdict_of(h, h.run.name if several else "") for h in histories]
    sections = [Section("Verdict", verdicts)]
    if learned := learning_charts(histories):
        # Of several runs the marks of all would hide the curves.
        marked = not several and any(chart.marks for chart in learned)
        sections.append(Section("Learning", learned, _MARKS if marked else ""))
    if scores := score_blocks(runs):
        sections.append(Section("Scores", scores))
    time = [block for history in histories for block in _time_blocks(history, several)]
    if speed := speed_charts(histories):
        sections.append(Section("Speed", [*_shares(histories, several), *speed]))
    if time:
        note = "Faults, restarts, changes of size and alarms, with what each cost."
        sections.append(Section("What happened", time, note))
    sections.append(Section("What ran", _what_ran(runs, histories)))
    return sections


def _time_blocks(history: History, several: bool) -> list[Block]:
    prefix = f"{history.run.name}: " if several else ""
    blocks: list[Block] = []
    if (chart := timeline(history)) is not None:
        blocks.append(_renamed(chart, prefix))
    if (table := happenings_table(history)) is not None:
        blocks.append(_renamed(table, prefix))
    return blocks


def _shares(histories: Sequence[History], several: bool) -> list[Shares]:
    shown = []
    for history in histories:
        account = history.account
        whole = sum(account.values())
        if whole <= 0:
            continue
        title = "Where the time went"
        shown.append(
            Shares(
                f"{history.run.name}: {title.lower()}" if several else title,
                [(name, seconds / whole) for name, seconds in account.items()],
                f"Shares of all the time since the first start. It cost {history.cost_in_words}.",
            )
        )
    return shown


def _renamed(block: Any, prefix: str) -> Any:
    return replace(block, title=prefix + block.title) if prefix else block


def _what_ran(runs: Sequence[RunRecord], histories: Sequence[History]) -> list[Block]:
    blocks: list[Block] = []
    if len(runs) == 1:
        blocks.append(Facts(_facts(histories[0])))
    else:
        blocks.append(_facts_table(histories))
    blocks += _configurations(runs)
    for run in runs:
        if run.config is not None:
            name = f" of {run.name}" if len(runs) > 1 else ""
            blocks.append(Source(f"Whole configuration{name}", run.config.to_yaml()))
    return blocks


def _facts_table(histories: Sequence[History]) -> Table:
    facts = [dict(_facts(history)) for history in histories]
    names = list(dict.fromkeys(name for one in facts for name in one))
    rows: list[list[Cell]] = [[name, *(one.get(name) for one in facts)] for name in names]
    return Table("Runs side by side", ["fact", *(h.run.name for h in histories)], rows)


def _facts(history: History) -> list[tuple[str, str]]:
    run, config = history.run, history.run.config
    facts = [("folder", run.uri)]
    if run.command:
        facts.append(("command to go on", run.command))
    if run.dataset:
        version = f", version {run.dataset['version']}" if "version" in run.dataset else ""
        facts.append(("dataset", f"{run.dataset['uri']}{version}"))
        facts.append(("fingerprint of the dataset", str(run.dataset.get("fingerprint", ""))[:16]))
    if config is not None:
        total = run.total_steps
        facts.append(("model", f"{config.model.name}, {config.head.num_prototypes:,} prototypes"))
        facts.append(("sensors", ", ".join(config.data.modalities)))
        steps = f"{run.done:,} of {total:,} steps" if total else f"{run.done:,} steps"
        facts.append(("length", f"{steps} of {config.train.global_batch:,} tiles"))
        seen = run.done * config.train.global_batch
        facts.append(("tiles seen", f"{seen:,}"))
        facts.append(
            ("precision, ZeRO stage", f"{config.train.precision}, {config.train.zero_stage}")
        )
    facts.append(("checkpoints kept", f"{len(run.checkpoints):,}"))
    if history.groups:
        facts.append(("started", f"{moment(history.groups[0].started)} UTC"))
    if run.last_sign is not None:
        facts.append(("last sign of life", f"{moment(run.last_sign)} UTC"))
    facts += _machine_facts(history)
    if run.lines and (memory := run.lines[-1].get("memory_bytes")) and type(memory) is int:
        facts.append(("most memory of rank 0", human_bytes(memory)))
    facts.append(("cost", history.cost_in_words))
    return facts


def _machine_facts(history: History) -> list[tuple[str, str]]:
    """Hardware, commit and versions, each once for all groups that had it."""
    told: dict[str, dict[str, None]] = {}
    for group in history.groups:
        facts = group.facts
        if isinstance(cluster := facts.get("cluster"), dict):
            told.setdefault("hardware", {})[_hardware(cluster)] = None
        if facts.get("commit"):
            told.setdefault("commit", {})[str(facts["commit"])] = None
        if isinstance(versions := facts.get("versions"), dict):
            words = ", ".join(f"{name} {number}" for name, number in versions.items())
            told.setdefault("versions", {})[words] = None
    return [(name, "; then ".join(values)) for name, values in told.items()]


def _hardware(cluster: Mapping[str, Any]) -> str:
    def count(name: str, one: str) -> str:
        value = cluster.get(name)
        if type(value) not in (int, float) or not value:
            return ""
        return f"{value:g} {one}{'' if value == 1 else 's'}"

    accelerators = cluster.get("accelerators")
    names = ", ".join(map(str, accelerators)) if isinstance(accelerators, list) else ""
    parts = [count("nodes", "node"), count("gpus", "GPU"), count("cpus", "logical CPU")]
    return ", ".join(filter(None, parts)) + (f" ({names})" if names else "")


def _configurations(runs: Sequence[RunRecord]) -> list[Block]:
    """Settings as differences from the recipe that is nearest to the first run."""
    known = [run for run in runs if run.config is not None]
    if not known:
        return [Text("The configuration is missing or of another version of terrafm.", quiet=True)]
    assert known[0].config is not None
    recipe, base = nearest_recipe(known[0].config)
    flat = [flatten(run.config) for run in known if run.config is not None]
    keys = [
        key
        for key in base
        if not key.startswith(_LEFT_OUT) and any(one.get(key) != base[key] for one in flat)
    ]
    if not keys:
        return [Text(f"All settings are those of the recipe {recipe}.")]
    rows: list[list[Cell]] = [
        [key, _value(base[key]), *(_value(one.get(key)) for one in flat)]
        for key in keys[:_MOST_KEYS]
    ]
    differing = {n for n, row in enumerate(rows) if len(set(row[2:])) > 1}
    title = f"Settings that differ from {recipe}, the nearest recipe"
    names = [run.name for run in known] if len(known) > 1 else ["this run"]
    return [Table(title, ["key", recipe, *names], rows, marked=differing)]


def nearest_recipe(config: Config) -> tuple[str, dict[str, Any]]:
    """The recipe from which the fewest keys differ, and its keys."""
    mine = flatten(config)
    found = {name: flatten(load_config(name, [])) for name in recipe_names()}
    differences = {
        name: sum(tree[key] != mine.get(key) for key in tree) for name, tree in found.items()
    }
    name = min(differences, key=lambda one: (differences[one], one))
    return name, found[name]


def flatten(config: Config) -> dict[str, Any]:
    """Dotted key -> value."""
    tree = config.model_dump(mode="json")
    return {f"{section}.{key}": v for section, keys in tree.items() for key, v in keys.items()}


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return f"[{', '.join(map(_value, value))}]"
    return str(value)
