"""What the child process `probe` found out about PyTorch, GPUs and their network, in words."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from terrafm.clusters.findings import FAULT, OK, WARNING, Finding
from terrafm.clusters.probe import STEPS
from terrafm.units import human_bytes

_SECONDS = 180.0
_SMI_SECONDS = 20.0
_SMI_FIELDS = "driver_version,name"
_PARTLY_TAKEN = 0.8
_REINSTALL = "reinstall it: pip install --force-reinstall"


class Probe:
    """The child process, started at once and asked at the end."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "terrafm.clusters.probe"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()

    def findings(self) -> Iterator[Finding]:
        """Waits for its end, three minutes at most."""
        try:
            printed, complaints = self._process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            printed, complaints = self._process.communicate()
            complaints += f"\nit took longer than {_SECONDS:g} s"
        steps = {line["step"]: line for line in map(json.loads, printed.splitlines())}
        yield from judge(steps, _end_of(self._process.returncode, complaints), driver())


def driver() -> tuple[str, list[str]] | None:
    """Version of NVIDIA's driver, and names of the GPUs that it sees; None without one."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    command = [program, f"--query-gpu={_SMI_FIELDS}", "--format=csv,noheader"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "", []
    rows = [line.partition(", ") for line in done.stdout.splitlines() if line]
    return (rows[0][0] if rows else ""), [name for _, _, name in rows]


def judge(
    steps: dict[str, dict[str, Any]], end: str, smi: tuple[str, list[str]] | None
) -> Iterator[Finding]:
    """Of what the child printed.

    Args:
        steps: its lines by step; those that it did not come to are missing.
        end: how it ended, in words.
        smi: as `driver`.
    """
    for name in STEPS:
        found = steps.get(name)
        if found is None:
            yield Finding(FAULT, f"{_NAMES[name]}: the process that tried it ended ({end})")
            return
        if "error" in found:
            yield Finding(FAULT, f"{_NAMES[name]}: {found['error']}; {_REMEDIES[name]}")
            if name == "torch":
                return
        else:
            yield from _judge_step(name, found, smi)


def _judge_step(
    name: str, found: dict[str, Any], smi: tuple[str, list[str]] | None
) -> Iterator[Finding]:
    if name == "torch":
        yield Finding(OK, f"PyTorch {found['version']} loads ({found['seconds']:g} s)")
        yield from _judge_gpus(found, smi)
    elif name == "bf16":
        yield _judge_bf16(found)
    elif name == "libraries":
        yield Finding(OK, f"DeepSpeed and Ray load ({found['seconds']:g} s)")
    elif "right" in found:
        version = f" {found['version']}" if "version" in found else ""
        if found["right"]:
            yield Finding(OK, f"{_NAMES[name]}{version} sums up over a process group")
        else:
            yield Finding(FAULT, f"{_NAMES[name]}{version} sums up wrongly: {_REMEDIES[name]}")


def _judge_gpus(found: dict[str, Any], smi: tuple[str, list[str]] | None) -> Iterator[Finding]:
    devices, built = found["devices"], found["cuda"]
    if smi is not None and not smi[1]:
        yield Finding(
            FAULT,
            "nvidia-smi is there and does not answer: the driver is not loaded, or is not that of "
            "the tool; restart the machine, or install the driver again",
        )
    if smi is not None and smi[1] and not devices:
        version, names = smi
        why = f"is built for CUDA {built}" if built else "is built without CUDA"
        yield Finding(
            FAULT,
            f"the driver ({version}) sees {len(names)} GPUs ({names[0]}) and PyTorch none: it "
            f"{why}; install a PyTorch for this driver, or see CUDA_VISIBLE_DEVICES",
        )
    if smi is None and not devices:
        yield Finding(OK, "no GPU: runs train on CPUs (train.gpu=auto)")
    for number, device in enumerate(devices):
        drives = f", driver {smi[0]}" if smi is not None and smi[0] else ""
        text = (
            f"GPU {number}: {device['name']}, {human_bytes(device['free'])} of "
            f"{human_bytes(device['bytes'])} free (CUDA {built}{drives})"
        )
        if device["free"] < _PARTLY_TAKEN * device["bytes"]:
            yield Finding(WARNING, f"{text}: another process holds the rest; see nvidia-smi")
        else:
            yield Finding(OK, text)


def _judge_bf16(found: dict[str, Any]) -> Finding:
    where = "the GPU" if found["gpu"] else "the CPU"
    if not found["right"]:
        return Finding(FAULT, f"bf16 computes wrongly on {where}: set train.precision=float32")
    if not found["native"]:
        return Finding(
            WARNING, f"bf16 is emulated on {where}, and slow: set train.precision=float32"
        )
    return Finding(OK, f"bf16 computes on {where}")


def _end_of(code: int, complaints: str) -> str:
    last = next((line.strip() for line in reversed(complaints.splitlines()) if line.strip()), "")
    if code < 0:
        return f"{signal.Signals(-code).name}{f': {last}' if last else ''}"
    return last or f"exit code {code}"


_NAMES = {
    "torch": "PyTorch",
    "bf16": "bf16",
    "gloo": "gloo",
    "nccl": "NCCL",
    "libraries": "DeepSpeed and Ray",
}
_REMEDIES = {
    "torch": f"{_REINSTALL} torch",
    "bf16": "set train.precision=float32",
    "gloo": "see whether this machine's name resolves (getent hosts $(hostname)), or name the "
    "interface in GLOO_SOCKET_IFNAME",
    "nccl": "run with NCCL_DEBUG=WARN to see why, or name the interface in NCCL_SOCKET_IFNAME",
    "libraries": f"{_REINSTALL} terrafm",
}
