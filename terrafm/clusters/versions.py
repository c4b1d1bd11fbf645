"""What client and cluster must have in common: Ray, Python, and the libraries that compute.

No import beyond the standard library: it also runs where the others may be missing.
"""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Variables of a job: what it was submitted with, and that it is one.
VERSIONS_VARIABLE = "TERRAFM_CLIENT_VERSIONS"
JOB_VARIABLE = "TERRAFM_JOB"

_LIBRARIES = ("ray", "deepspeed", "torch", "timm", "numpy", "pyarrow", "pydantic", "optuna")
_PACKAGE = Path(__file__).resolve().parents[1]
_GIT_SECONDS = 5.0


def own_versions() -> dict[str, str]:
    """Name -> version of this process; libraries that are missing are left out.

    Python's third number and what a build adds behind a + are left out: neither changes what a
    job computes.
    """
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for library in _LIBRARIES:
        try:
            found[library] = version(library).partition("+")[0]
        except PackageNotFoundError:
            continue
    return found


@cache
def source_commit() -> str | None:
    """The git commit that this package runs from; None where it is installed.

    `-dirty` follows where files were changed since.
    """
    root = _PACKAGE.parent
    # An installed package may lie inside of a checkout of something else.
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(
            git, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


def differences(client: dict[str, str], cluster: dict[str, str]) -> str | None:
    """What the cluster has otherwise; None where it has all that the client has.

    Args:
        client: as `own_versions`, where the job was submitted.
        cluster: the same, where it runs; may hold fewer names only where they are unknown.
    """
    told = [
        f"{name} {cluster.get(name, 'none')} instead of {wanted}"
        for name, wanted in client.items()
        if cluster.get(name) != wanted
    ]
    if not told:
        return None
    return (
        f"the cluster has {', '.join(told)}: submit from an environment with its versions, or "
        "give the cluster those (cluster/requirements.txt)"
    )
