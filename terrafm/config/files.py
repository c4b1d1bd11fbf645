"""Configurations as they are written: recipes and YAML files, which may stand on others."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from terrafm.config.words import nearest, printed
from terrafm.config.yaml_text import parse_yaml, shortened
from terrafm.errors import UsageError

Tree = dict[str, dict[str, Any]]
"""Section -> key -> value, as written."""


@dataclass(frozen=True)
class ConfigFile:
    """One file or recipe of a configuration.

    Attributes:
        name: as it was named on the command line or after `base:`.
        uri: where it lies; the name alone for a recipe.
        tree: its own settings.
        base: name of what it stands on.
    """

    name: str
    uri: str
    tree: Tree
    base: str | None


def recipe_names() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = resources.files("terrafm") / "recipes"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def read_files(source: str) -> list[ConfigFile]:
    """A configuration and all that it stands on, itself first.

    Raises:
        UsageError: no such recipe or file, no YAML, no sections, or a file that stands on itself.
    """
    files = [_read(source, source)]
    while (base := files[-1].base) is not None:
        above = files[-1].uri
        uri = _beside(above, base)
        if uri in [file.uri for file in files]:
            raise UsageError(f"configuration {above} stands on itself by `base: {base}`")
        files.append(_read(base, uri, above))
    return files


def read_tree(source: str) -> Tree:
    """The settings of a configuration, over those that it stands on.

    Raises:
        UsageError: as `read_files`.
    """
    tree: Tree = {}
    for file in reversed(read_files(source)):
        for section, settings in file.tree.items():
            tree[section] = tree.get(section, {}) | settings
    return tree


def _beside(above: str, base: str) -> str:
    """Where the base of a file lies: relative paths begin in the file's folder."""
    if base in recipe_names() or "://" in base or os.path.isabs(base) or above in recipe_names():
        return base
    scheme, separator, path = above.rpartition("://")
    return scheme + separator + posixpath.normpath(posixpath.join(posixpath.dirname(path), base))


def _read(name: str, uri: str, above: str | None = None) -> ConfigFile:
    if name in recipe_names():
        text = (resources.files("terrafm") / "recipes" / f"{name}.yaml").read_bytes()
    elif Path(name).suffix in (".yaml", ".yml"):
        # Only here: the step alone must not need the clients of object stores.
        from terrafm.storage import absolute, exists, read_bytes

        if not exists(uri):
            looked = f": `base: {name}` of {above} is looked for as {absolute(uri)}"
            raise UsageError(f"configuration file {uri} does not exist{looked if above else ''}")
        try:
            text = read_bytes(uri)
        except IsADirectoryError:
            raise UsageError(f"configuration file {uri} is a folder") from None
    else:
        by = f", which {above} stands on" if above else ""
        raise UsageError(
            f"no recipe named {shortened(name)}{by}{nearest(name, recipe_names())}; recipes: "
            f"{', '.join(recipe_names())}; or give the path of a .yaml file"
        )
    try:
        tree = parse_yaml(text)
    except ValueError as error:
        raise UsageError(f"configuration {uri} is not valid YAML: {error}") from None
    return _checked(name, uri, {} if tree is None else tree)


def _checked(name: str, uri: str, tree: Any) -> ConfigFile:
    where = f"configuration {uri}"
    if not isinstance(tree, Mapping):
        raise UsageError(
            f"{where} must map sections to settings, such as train: {{steps: 100}}, not be "
            f"{shortened(tree)}"
        )
    base = tree.get("base")
    if base is not None and not isinstance(base, str):
        raise UsageError(
            f"{where}: base takes a recipe's name or a .yaml file, not {shortened(base)}"
        )
    sections: Tree = {}
    for section, settings in tree.items():
        if section == "base":
            continue
        section = str(section)
        outer, dot, key = section.partition(".")
        if dot:
            raise UsageError(
                f"{where}: write {printed(f'{outer}: {{{key}: ...}}')} for the key "
                f"{printed(section)}; the dotted form "
                "is that of --set"
            )
        if not isinstance(settings, Mapping | None):
            raise UsageError(
                f"{where}: {shortened(section)} at the top is a section, which takes keys with "
                f"values, not {shortened(settings)}"
            )
        sections[section] = dict(settings or {})
    return ConfigFile(name, uri, sections, base)
