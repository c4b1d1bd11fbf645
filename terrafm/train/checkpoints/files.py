"""The files of a checkpoint: written and hashed in one pass, read in blocks.

A checkpoint is written beside the training, in a thread. Everything large here is done by calls
that leave the interpreter lock to the training: `safetensors.torch.save_file` makes no such
promise, so its format, which is a header and the tensors' bytes, is written here. It is read by
the library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terrafm.storage import open_file, to_json

_BLOCK_BYTES = 16 << 20
_SMALL_BYTES = 1 << 20
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}

MARKER = "complete.json"
STATE = "state.json"
GROUPS = ("student", "teacher", "optimizer", "centers")
FILES = frozenset({MARKER, STATE, *(f"{name}.safetensors" for name in GROUPS)})
"""All that a checkpoint's folder holds by us."""

Digest = dict[str, Any]
"""`bytes` and `sha256` of a file, as the marker has them."""


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> Digest:
    """Writes a safetensors file.

    Args:
        path: of the file.
        tensors: name -> contiguous tensor on the CPU.
        metadata: of the file's header.

    Raises:
        OSError: the disk refuses.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, tensor in sorted(tensors.items()):
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    # Tensors begin at a multiple of eight bytes.
    head += b" " * (-len(head) % 8)
    parts = (tensor.flatten().view(torch.uint8).numpy() for _, tensor in sorted(tensors.items()))
    return _write(path, [len(head).to_bytes(8, "little"), head], parts)


def write_json(path: Path, document: Mapping[str, Any]) -> Digest:
    """Writes a JSON file.

    Raises:
        OSError: the disk refuses.
    """
    return _write(path, [to_json(document, indent=1).encode()], ())


def read_digest(uri: str) -> Digest | None:
    """Size and hash of a file, read in blocks of 16 MiB; None where there is none.

    Raises:
        StoreRefusedError, StoreFailedError: the store does not answer.
    """
    digest, size = hashlib.sha256(), 0
    try:
        with open_file(uri) as file:
            while block := file.read(_BLOCK_BYTES):
                digest.update(block)
                size += len(block)
    except FileNotFoundError:
        return None
    return {"bytes": size, "sha256": digest.hexdigest()}


def digest_of(content: bytes) -> Digest:
    """Size and hash of a file's content."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def _write(path: Path, head: Iterable[bytes], parts: Iterable[Any]) -> Digest:
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for block in _blocks([*head, *parts]):
            digest.update(block)
            file.write(block)
            size += len(block)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _blocks(parts: Iterable[Any]) -> Iterator[memoryview]:
    """The parts as few large blocks; large parts are not copied.

    For each block the interpreter lock is given away and has to be won back from the training,
    which takes far longer than to hash a small tensor.
    """
    small = bytearray()
    for part in parts:
        view = memoryview(part)
        if len(view) < _SMALL_BYTES:
            small += view
            continue
        if small:
            yield memoryview(small)
            small = bytearray()
        for start in range(0, len(view), _BLOCK_BYTES):
            yield view[start : start + _BLOCK_BYTES]
    if small:
        yield memoryview(small)
