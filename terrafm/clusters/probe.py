"""What takes seconds to load, tried in a child process: PyTorch, DeepSpeed, Ray; GPU and network.

    python -m terrafm.clusters.probe

prints a line of JSON for each step. Whoever starts it goes on meanwhile; a library that ends the
process (an instruction that the CPU lacks, a driver at odds) ends this one alone.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

STEPS = ("torch", "bf16", "gloo", "nccl", "libraries")


def main() -> None:
    """Tries each step; a step that fails says why, and the next one is tried."""
    # Libraries print what they like: their lines go to stderr.
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for name in STEPS:
        began = time.perf_counter()
        try:
            found: dict[str, Any] = _STEPS[name]()
        except Exception as error:  # noqa: BLE001 - whatever a broken installation raises
            told = str(error).strip().splitlines()
            found = {"error": f"{type(error).__name__}: {told[0] if told else 'no reason given'}"}
        found |= {"step": name, "seconds": round(time.perf_counter() - began, 1)}
        lines.write(json.dumps(found) + "\n")


def _torch() -> dict[str, Any]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    devices = [
        {
            "name": torch.cuda.get_device_properties(i).name,
            "bytes": torch.cuda.mem_get_info(i)[1],
            "free": torch.cuda.mem_get_info(i)[0],
            "capability": list(torch.cuda.get_device_capability(i)),
        }
        for i in range(count)
    ]
    return {"version": torch.__version__, "cuda": torch.version.cuda, "devices": devices}


def _bf16() -> dict[str, Any]:
    import torch

    gpu = torch.cuda.is_available()
    ones = torch.ones(64, 64, dtype=torch.bfloat16, device="cuda" if gpu else "cpu")
    right = bool(((ones @ ones) == 64).all())
    native = torch.cuda.is_bf16_supported(including_emulation=False) if gpu else True
    return {"right": right, "native": native, "gpu": gpu}


def _all_reduce(backend: str, device: str) -> dict[str, Any]:
    """A group of one: the interface and the libraries are used as a run uses them."""
    import torch
    from torch import distributed

    store = distributed.HashStore()  # type: ignore[attr-defined]
    distributed.init_process_group(backend, store=store, rank=0, world_size=1)
    try:
        one = torch.ones(1, device=device)
        distributed.all_reduce(one)
        return {"right": bool(one.item() == 1)}
    finally:
        distributed.destroy_process_group()


def _gloo() -> dict[str, Any]:
    return _all_reduce("gloo", "cpu")


def _nccl() -> dict[str, Any]:
    import torch
    from torch.cuda import nccl

    if not torch.cuda.is_available():
        return {}
    version = ".".join(map(str, nccl.version()))  # type: ignore[no-untyped-call]
    return {"version": version, **_all_reduce("nccl", "cuda:0")}


def _libraries() -> dict[str, Any]:
    # By name: only few files import Ray, and this one does not use it.
    for name in ("deepspeed", "ray.train", "ray.data"):
        importlib.import_module(name)
    return {}


_STEPS: dict[str, Callable[[], dict[str, Any]]] = {
    "torch": _torch,
    "bf16": _bf16,
    "gloo": _gloo,
    "nccl": _nccl,
    "libraries": _libraries,
}

if __name__ == "__main__":
    main()
    sys.stdout.flush()
