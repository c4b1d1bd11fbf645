"""The archive that travels to the cluster: our packages, and the code of the user's folder."""

from __future__ import annotations

import fnmatch
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from terrafm.errors import UsageError
from terrafm.jobs.private_files import is_private, is_private_folder, secret_in
from terrafm.storage.local import read_regular
from terrafm.units import human_bytes

OWN_PACKAGES = ("terrafm", "ray_jobs", "tuning")
# Code and configuration, nothing else: data and keys come in too many shapes to list them.
TRAVELS = (".py", ".yaml", ".yml", ".toml", ".j2")
_SKIPPED_FOLDERS = ("__pycache__", "node_modules", "build", "dist", "site-packages", "*.egg-info")
# Far below what Ray takes (512 MiB): every node fetches it.
LIMIT_BYTES = 32 * 10**6
_LIMIT_FILES = 5_000
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True)
class Package:
    """A written archive.

    Attributes:
        path: the .zip file.
        files: names in it.
        own: those of them that are the user's, not terrafm's, sorted.
    """

    path: Path
    files: frozenset[str]
    own: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{len(self.files)} files, {human_bytes(self.path.stat().st_size)}"


def build(folder: Path, target: Path) -> Package:
    """Packs the installed code of terrafm, and code and configuration of a folder.

    The same content makes the same file, which a cluster that has it is not sent again.

    Args:
        folder: whose .py, .yaml, .toml and .j2 files travel under their relative names. Hidden
            files, links, virtual environments, what .gitignore or .rayignore names, and
            what is named like a secret stay.
        target: the .zip to write.

    Raises:
        UsageError: there is no such folder, it holds too much, or a file that would travel holds
            what looks like a key.
    """
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder} to take code from: give --working-dir")
    content = dict(_own_files())
    theirs = set(content)
    for path in _user_files(folder):
        name = path.relative_to(folder).as_posix()
        if name not in theirs:
            content[name] = _without_secrets(path)
        if len(content) > _LIMIT_FILES:
            raise _too_large(folder, f"more than {_LIMIT_FILES:,} files of code")
    size = sum(v.stat().st_size if isinstance(v, Path) else len(v) for v in content.values())
    if size > LIMIT_BYTES:
        raise _too_large(folder, f"{human_bytes(size)} of code")
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, source in sorted(content.items()):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, source.read_bytes() if isinstance(source, Path) else source)
    return Package(target, frozenset(content), tuple(sorted(content.keys() - theirs)))


def _without_secrets(path: Path) -> Path:
    if (what := secret_in(read_regular(str(path), LIMIT_BYTES))) is not None:
        raise UsageError(
            f"{path} seems to hold {what}, and everyone on the cluster could read it: take it "
            "out, or name the file in .rayignore"
        )
    return path


def _too_large(folder: Path, what: str) -> UsageError:
    return UsageError(
        f"{folder} holds {what}, too much to send (at most {human_bytes(LIMIT_BYTES)}): submit "
        "from a smaller folder, give one with --working-dir, or name files in .rayignore"
    )


def _own_files() -> Iterator[tuple[str, Path | bytes]]:
    for name in OWN_PACKAGES:
        try:
            root = Path(str(import_module(name).__file__)).parent
        except ModuleNotFoundError:
            continue
        for path in root.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{name}/{path.relative_to(root).as_posix()}", path
    try:
        metadata = distribution("terrafm")
    except PackageNotFoundError:
        return
    # By these the verbs from outside the library are found where it is not installed.
    for name in ("METADATA", "entry_points.txt"):
        if text := metadata.read_text(name) or (
            metadata.read_text("PKG-INFO") if name == "METADATA" else None
        ):
            yield f"terrafm-{metadata.version}.dist-info/{name}", text.encode()


def _user_files(folder: Path) -> Iterator[Path]:
    """Files that travel, seen without following links."""
    from ray._private.runtime_env.packaging import get_excludes_from_ignore_files

    waiting: list[tuple[Path, list[Callable[[Path], bool]]]] = [(folder.absolute(), [])]
    while waiting:
        here, rules = waiting.pop()
        rules = [*rules, *get_excludes_from_ignore_files(here, include_gitignore=True)]
        with os.scandir(here) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                path = Path(entry.path)
                if entry.name.startswith(".") or any(rule(path) for rule in rules):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    skipped = _matches(path, _SKIPPED_FOLDERS) or is_private_folder(path)
                    if not skipped and not _is_environment(path):
                        waiting.append((path, rules))
                elif entry.is_file(follow_symlinks=False) and _travels(path):
                    yield folder / path.relative_to(folder.absolute())


def _travels(path: Path) -> bool:
    if path.suffix not in TRAVELS:
        return False
    return not is_private(path)


def _is_environment(path: Path) -> bool:
    return (path / "pyvenv.cfg").exists() or (path / "conda-meta").exists()


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(path.name.lower(), pattern) for pattern in patterns)
