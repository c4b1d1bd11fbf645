"""What of a folder stays at home: files named like a secret, and files that hold one."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path

# Configuration that is not meant for others. A module may be named so.
_NAMES = (
    "*secret*", "*token*", "*credential*", "*password*", "*passwd*", "*kubeconfig*", "kube.*",
    "*service?account*", "key.*", "keys.*", "*[_-]key.*", "*[_-]keys.*", "id_*",
)  # fmt: skip
# Whatever lies in them.
_FOLDERS = ("secret", "secrets", "credential", "credentials", "keys", "private", "certs")
_CONTENTS = {
    "a private key": rb"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "an AWS key": rb"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret": rb"(?i)aws_secret_access_key\W{1,5}[a-z0-9/+]{40}",
    "a Hugging Face token": rb"\bhf_[A-Za-z0-9]{34}",
    "a GitHub token": rb"\b(?:gh[opsu]_[A-Za-z0-9]{36}|github_pat_\w{60})",
    "a service account": rb"[\"']private_key_id[\"']",
    "a cluster's credentials": rb"\b(?:client-key-data|client-certificate-data)\s*:\s*[\w+/=]{20}",
    "a Weights & Biases key": rb"(?i)wandb_api_key\W{1,5}[0-9a-f]{40}",
}
_ADDRESS = re.compile(
    rb"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"{}]+:(?P<password>[^\s/:@'\"{}]+)@(?P<host>[\w-]+(?:\.[\w-]+)*)"
)
# As documentation writes them, with a host that is none: https://user:password@host.
_PLACEHOLDERS = frozenset(b"password passwd pass pw p secret s token x xxx ***".split())
_PATTERNS = {what: re.compile(pattern) for what, pattern in _CONTENTS.items()}


def is_private(path: Path) -> bool:
    """Whether a file is named like a secret; code only is where its folder is."""
    return path.suffix != ".py" and _matches(path.name, _NAMES)


def is_private_folder(path: Path) -> bool:
    """Whether a folder is named as those for secrets are."""
    return _matches(path.name, _FOLDERS)


def secret_in(content: bytes) -> str | None:
    """What a file seems to hold that nobody else may see, in words; or None."""
    for what, pattern in _PATTERNS.items():
        if pattern.search(content):
            return what
    for found in _ADDRESS.finditer(content):
        if b"." in found["host"] or found["password"].lower() not in _PLACEHOLDERS:
            return "a password in an address"
    return None


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name.lower(), pattern) for pattern in patterns)
