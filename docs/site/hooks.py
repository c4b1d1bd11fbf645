"""Brings the repository's Markdown to MkDocs as it lies there, so that the same links work here.

MkDocs takes one folder of pages; ours lie beside what they are about. Each page keeps its path,
README.md of the root is the first page, and files that pages link to come along.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "cluster/README.md",
         "benchmarks/README.md", "benchmarks/results/*.md")  # fmt: skip
RESULTS = "benchmarks/results/README.md"
# Of a link or picture in Markdown: what stands in the brackets, without an anchor.
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
# A link whose words are a file's name: of use in a repository, not on a website.
_NAMED = re.compile(r"\[([\w./-]+)\.md\](?=\()")
_FENCE = re.compile(r"^```(\w+) [\w-]+$", re.M)

logger = logging.getLogger("mkdocs.hooks.terrafm")


def page_paths() -> list[str]:
    """Paths of all pages of the repository, from its root."""
    return sorted(str(path.relative_to(ROOT)) for pattern in PAGES for path in ROOT.glob(pattern))


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Leaves pages out of the navigation that do not exist: a branch may not have them yet."""
    generated = {RESULTS, "commands.md", "reference.md"}
    config.nav = _existing(config.nav, {*page_paths(), *generated})
    return config


def _existing(entries: Any, known: set[str]) -> Any:
    if isinstance(entries, str):
        return entries if entries in known else None
    if isinstance(entries, dict):
        kept = {title: _existing(inner, known) for title, inner in entries.items()}
        return {title: inner for title, inner in kept.items() if inner} or None
    return [one for one in (_existing(entry, known) for entry in entries) if one]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages, what they link to, and pages that are made of the code."""
    paths = page_paths()
    for path in paths:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    for path in sorted(set(_linked_files(paths))):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    if RESULTS not in paths:
        files.append(File.generated(config, RESULTS, content=_results_index(paths)))
    files.append(File.generated(config, "commands.md", content=_commands_page()))
    files.append(File.generated(config, "reference.md", content=_reference_page()))
    return files


def _linked_files(paths: list[str]) -> Iterator[str]:
    """Files that are no pages: pictures, scripts, licences."""
    for path in paths:
        for match in _LINK.finditer((ROOT / path).read_text()):
            target = ((ROOT / path).parent / match[1]).resolve()
            if target.is_file() and target.suffix != ".md" and target.is_relative_to(ROOT):
                yield str(target.relative_to(ROOT))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Links to a folder lead to its page, and no link is called by a file's name.

    A fence's second word is for our tests alone.
    """
    folder = (ROOT / page.file.src_uri).parent

    def to_page(match: re.Match[str]) -> str:
        if (folder / match[1]).is_dir():
            return f"{match[1].rstrip('/')}/README.md{match[2] or ''}"
        return match[0]

    markdown = _NAMED.sub(lambda match: f"[{_words(match[1])}]", markdown)
    return _FENCE.sub(r"```\1", _LINK.sub(to_page, markdown))


def _words(path: str) -> str:
    """`docs/your_archive` -> "your archive", `../cluster/README` -> "cluster"."""
    return path.removesuffix("/README").rpartition("/")[2].replace("_", " ")


def _results_index(paths: list[str]) -> str:
    """A list of all results, the newest first."""
    lines = ["# Results of benchmarks", "", "With date, machine, command and numbers.", ""]
    for path in sorted(paths, reverse=True):
        if path.startswith("benchmarks/results/"):
            title = re.search(r"^# (.+)$", (ROOT / path).read_text(), re.M)
            name = path.rpartition("/")[2]
            lines.append(f"- {name[:10]}: [{title[1] if title else name}]({name})")
    return "\n".join(lines) + "\n"


def _reference_page() -> str:
    """Docstrings of all public names of the package, and of what a source is written with."""
    package = importlib.import_module("terrafm")
    lines = ["# Python, all names", "", "What `import terrafm` offers, by its docstrings.", ""]
    for name in package.__all__:
        if not name.startswith("__"):
            found = getattr(package, name)
            if isinstance(found, ModuleType):  # A package that is called as the function.
                found = getattr(importlib.import_module("terrafm.api"), name)
            lines += [f"::: {found.__module__}.{found.__qualname__}", ""]
    lines += [
        "## A source of your own", "",
        "How one is written: [sources](docs/sources.md#a-layout-of-your-own).", "",
        "::: terrafm.data.archive", "    options: {heading_level: 3, show_root_heading: false}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _commands_page() -> str:
    """Every verb with its options, as the command line itself knows them."""
    app = importlib.import_module("terrafm.cli").app
    lines = [
        "# Command line", "",
        "Every verb and its options. `terrafm VERB --help` prints the same, with the keys that "
        "`--set` takes ([configuration](docs/configuration.md)).", "",
    ]  # fmt: skip
    for name, command in _verbs(typer.main.get_command(app), ""):
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        words = " ".join(_shown_name(one) for one in arguments)
        lines += [f"## terrafm {name}", "", _paragraphs(command.help), ""]
        lines += ["```", f"terrafm {name} {words} [OPTIONS]".replace("  ", " "), "```", ""]
        lines += ["| option | default | meaning |", "|---|---|---|"]
        lines += [_option_row(one) for one in command.params if one.param_type_name == "option"]
        lines += [_argument_row(one) for one in command.params if one.param_type_name != "option"]
        lines.append("")
    return "\n".join(lines)


def _verbs(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    for word, inner in sorted(command.commands.items()):
        full = f"{name} {word}".strip()
        if hasattr(inner, "commands"):
            yield from _verbs(inner, full)
        else:
            yield full, inner


def _paragraphs(text: str | None) -> str:
    return "\n\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def _option_row(option: Any) -> str:
    names = ", ".join(f"`{name}`" for name in [*option.opts, *option.secondary_opts])
    if option.required:
        default = "required"
    elif option.default in (None, False, ""):
        default = ""
    else:
        default = f"`{getattr(option.default, 'value', option.default)}`"
    return f"| {names} | {default} | {_cell(option.help)} |"


def _argument_row(argument: Any) -> str:
    default = "required" if argument.required else ""
    return f"| `{_shown_name(argument)}` | {default} | {_cell(argument.help)} |"


def _shown_name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("*", "\\*")
