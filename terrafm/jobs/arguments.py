"""A verb's arguments, checked before they travel, and as they read on the cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from terrafm.config import load_config
from terrafm.errors import UsageError
from terrafm.storage import absolute
from terrafm.storage.addresses import check_shareable

# Parameters that name files or folders: the job runs in another folder.
_PLACES = (
    "data", "output", "input_uri", "weights", "worldcover", "legend", "climate", "checkpoint",
    "uri", "checkpoints", "scores", "features",
)  # fmt: skip
# Verbs that have no work for a cluster, or start or command one.
_HERE = ("demo", "submit", "jobs", "cluster", "doctor")


@dataclass(frozen=True)
class Command:
    """A verb with its arguments.

    Attributes:
        words: the verb and its arguments, paths from the root.
        output: what it writes to; None where it only prints.
    """

    words: list[str]
    output: str | None

    @property
    def verb(self) -> str:
        """The first word."""
        return self.words[0]


def read_command(app: Any, words: list[str], folder: Path) -> Command:
    """Parses a verb's arguments as the verb itself would.

    Args:
        app: the whole command line, as click has it.
        words: the verb and its arguments.
        folder: what travels: files in it keep their relative names.

    Raises:
        UsageError: there is no such verb, or its configuration is wrong.
    """
    verbs = sorted(name for name in app.commands if name not in _HERE)
    if not words or words[0] not in verbs:
        given = words[0] if words else "nothing"
        raise UsageError(f"cannot submit {given}: verbs for a cluster are {', '.join(verbs)}")
    command, said, rest = app.commands[words[0]], [words[0]], words[1:]
    while hasattr(command, "commands"):
        if not rest or rest[0] not in command.commands:
            known = ", ".join(sorted(command.commands))
            raise UsageError(f"cannot submit {' '.join(said)} so: it has {known}")
        command, said, rest = command.commands[rest[0]], [*said, rest[0]], rest[1:]
    context = command.make_context(" ".join(said), list(rest))
    for parameter in command.params:
        value = context.params.get(parameter.name)
        given = context.get_parameter_source(parameter.name)
        if given is not None and given.name == "COMMANDLINE":
            said += _spelled(parameter, value, folder)
    if "config" in context.params or "overrides" in context.params:
        load_config(context.params.get("config"), list(context.params.get("overrides") or []))
    check_shareable(said)
    output = context.params.get("output")
    return Command(said, None if output is None else absolute(str(output)))


def _spelled(parameter: Any, value: Any, folder: Path) -> list[str]:
    """A parameter and its value as words."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if parameter.param_type_name == "argument":
        return [_place(parameter.name, str(v), folder) for v in values]
    if parameter.is_flag:
        return [parameter.opts[0]] if value else []
    words = []
    for v in values:
        text = getattr(v, "value", v)
        words += [parameter.opts[0], _place(parameter.name, str(text), folder)]
    return words


def _place(name: str, value: str, folder: Path) -> str:
    if name == "config" and Path(value).is_file():
        return _inside(value, folder)
    # A source may be no path, such as synthetic:cells=9.
    no_path = ":" in value and "://" not in value and not Path(value).exists()
    return value if name not in _PLACES or no_path else absolute(value)


def _inside(value: str, folder: Path) -> str:
    """The configuration file's name in the package."""
    path, root = Path(value).resolve(), folder.resolve()
    if not path.is_relative_to(root):
        raise UsageError(
            f"{value} lies outside of {folder}, whose files travel: put it there, or give its "
            "folder with --working-dir"
        )
    return path.relative_to(root).as_posix()
