"""Does the whole road run on this machine's GPUs: Ray, DeepSpeed, NCCL; a block to send us.

    python benchmarks/gpu_smoke.py [--gpus N] [--work FOLDER]

Ingests a small synthetic archive, pretrains a ViT-S with ZeRO-1 on all GPUs, goes on with that
run, pretrains with ZeRO-3, goes on with the ZeRO-1 run under ZeRO-3, tries compiled blocks and
activation checkpointing, and takes the figures of benchmarks/step.py. Prints versions, GPU,
driver, tiles/s, MFU, and pass or fail per line; everything else goes to the error stream and to
files in the work folder. Exit code 0: all passed; 1: something failed; 2: there is no GPU.

--rehearse does the same with the tiny model on the CPU: it shows that this script runs, and
nothing about GPUs. Takes about 10 minutes on one GPU (an estimate).
"""

import argparse
import json
import math
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from common import BENCHMARKS, machine, note

ARCHIVE = "synthetic:cells=48,seed=0,px=1068"
REHEARSAL_ARCHIVE = "synthetic:cells=8,seed=0,px=264"
PACKAGES = ("terrafm", "torch", "ray", "deepspeed", "timm", "numpy", "pyarrow")
_TIMEOUT = 1800


@dataclass
class Line:
    """One thing that was tried.

    Attributes:
        name: what.
        passed: whether it went well.
        detail: a figure, or the last line of what went wrong.
        seconds: that it took.
    """

    name: str
    passed: bool
    detail: str
    seconds: float


class Smoke:
    """Tries one thing after the other; a failure does not end the rest.

    Args:
        folder: of datasets, runs and outputs.
        gpus: training workers.
        rehearse: on the CPU with the tiny model.
    """

    def __init__(self, folder: Path, gpus: int, rehearse: bool) -> None:
        self.folder = folder
        self.gpus = gpus
        self.rehearse = rehearse
        self.lines: list[Line] = []

    def run(self) -> list[Line]:
        """Everything, in order."""
        one, three = self.folder / "zero1", self.folder / "zero3"
        self._try("ingest a synthetic archive", self._ingest)
        self._try("pretrain, ZeRO-1", lambda: self._pretrain(one, 1, 20))
        self._try("resume, ZeRO-1", lambda: self._pretrain(one, 1, 30, begins=20))
        self._try("pretrain, ZeRO-3", lambda: self._pretrain(three, 3, 20))
        self._try("resume, ZeRO-1 to ZeRO-3", lambda: self._pretrain(one, 3, 40, begins=30))
        self._try("losses of ZeRO-1 and ZeRO-3 agree", lambda: self._agree(one, three))
        compiled = ["train.compile=true"]
        self._try(
            "pretrain, compiled blocks",
            lambda: self._pretrain(self.folder / "compiled", 1, 20, compiled),
        )
        blocks = ["train.activation_checkpointing=blocks"]
        self._try(
            "pretrain, activation checkpointing",
            lambda: self._pretrain(self.folder / "checkpointing", 1, 20, blocks),
        )
        self._try("benchmarks/step.py", self._step)
        return self.lines

    def _try(self, name: str, action: Callable[[], str]) -> None:
        note(f"{name} ...")
        begin = time.perf_counter()
        try:
            detail, passed = action(), True
        except (AssertionError, OSError, KeyError, ValueError, subprocess.SubprocessError) as error:
            detail, passed = (str(error).strip() or type(error).__name__).splitlines()[-1], False
        self.lines.append(Line(name, passed, detail, time.perf_counter() - begin))
        note(f"{name}: {'pass' if passed else 'FAIL'} {detail}")

    def _ingest(self) -> str:
        archive, side = (REHEARSAL_ARCHIVE, 132) if self.rehearse else (ARCHIVE, 534)
        self._terrafm(
            "ingest",
            *("--source", "synthetic", "--input", archive),
            *("--output", str(self.folder / "tiles"), "--tile-size", str(side)),
        )
        return archive

    def _pretrain(
        self, output: Path, stage: int, steps: int, extra: list[str] | None = None, begins: int = 0
    ) -> str:
        settings = [
            f"train.steps={steps}",
            f"train.workers={self.gpus}",
            f"train.zero_stage={stage}",
            "train.checkpoint_every=10",
            "train.log_every=1",
            *(extra or []),
        ]
        # Quoted: YAML takes a bare yes or no for a truth value.
        if self.rehearse:
            recipe, batch = "demo", 4
            settings += ['train.gpu="no"', f"train.global_batch={batch * self.gpus}"]
        else:
            recipe, batch = "small_1gpu", 64
            settings += ['train.gpu="yes"', f"train.global_batch={batch * self.gpus}"]
        self._terrafm(
            "pretrain",
            *("--config", recipe, "--data", str(self.folder / "tiles"), "--output", str(output)),
            *(part for setting in settings for part in ("--set", setting)),
        )
        lines = _metrics(output)
        assert [line["step"] for line in lines] == list(range(1, steps + 1)), "steps are missing"
        assert all(math.isfinite(line["loss"]) for line in lines), "a loss is not finite"
        checkpoint = output / "checkpoints" / f"step_{steps:08d}" / "complete.json"
        assert checkpoint.exists(), f"no {checkpoint}"
        late = [line["tiles_per_second"] for line in lines[begins + (steps - begins) // 2 :]]
        waited = sum(line["data_wait"] for line in lines[begins:]) / (steps - begins)
        return (
            f"loss {lines[begins]['loss']:.4f} to {lines[-1]['loss']:.4f}, "
            f"{sorted(late)[len(late) // 2]:.1f} tiles/s, data wait {waited:.0%}"
        )

    def _agree(self, one: Path, three: Path) -> str:
        pairs = list(zip(_metrics(one), _metrics(three), strict=False))[:10]
        assert len(pairs) == 10, "a run is missing"
        worst = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs)
        # Ten steps in bfloat16 with reductions in another order.
        assert worst < 1e-2, f"the first ten losses differ by {worst:.2e}"
        return f"to {worst:.1e} over ten steps"

    def _step(self) -> str:
        command = [sys.executable, str(BENCHMARKS / "step.py"), "--json", "--one-modality"]
        command += ["--quick"] if self.rehearse else ["--device", "cuda"]
        done = self._call(command, "step")
        (self.folder / "step.jsonl").write_text(done)
        figures = [json.loads(line) for line in done.splitlines()]
        wanted = ("tiles per second", "MFU", "peak memory", "FLOPs")
        return "; ".join(
            f"{figure['name']} {figure['value']:g} {figure['unit']}"
            for figure in figures
            if figure["name"].startswith(wanted)
        )

    def _terrafm(self, verb: str, *arguments: str) -> str:
        return self._call([sys.executable, "-m", "terrafm", verb, *arguments], verb)

    def _call(self, command: list[str], name: str) -> str:
        note(" ".join(command))
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False
        )
        log = self.folder / f"{len(self.lines):02d}-{name}.log"
        log.write_text(done.stdout + done.stderr)
        assert done.returncode == 0, f"exit code {done.returncode}, see {log}: {_last(done)}"
        return done.stdout


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()
    return lines[-1][:300]


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def describe() -> list[str]:
    """Machine, versions, GPUs, driver."""
    import torch

    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} absent")
    lines = [machine(), f"Python {platform.python_version()}, {platform.platform()}"]
    lines.append(", ".join(found))
    if torch.cuda.is_available():
        nccl = ".".join(map(str, torch.cuda.nccl.version()))
        lines.append(f"CUDA {torch.version.cuda}, NCCL {nccl}, driver {_driver()}")
        lines += [
            f"GPU {i}: {torch.cuda.get_device_name(i)}, "
            f"{torch.cuda.get_device_properties(i).total_memory / 2**30:.0f} GiB"
            for i in range(torch.cuda.device_count())
        ]
    return lines


def _driver() -> str:
    if shutil.which("nvidia-smi") is None:
        return "unknown"
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return (done.stdout.splitlines() or ["unknown"])[0].strip()


def main() -> None:
    """Tries everything and prints the block."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--gpus", type=int, help="training workers; all GPUs by default")
    options.add_argument("--work", type=Path, help="folder that keeps runs and logs")
    options.add_argument("--rehearse", action="store_true", help="on the CPU, tiny: does it run")
    options.add_argument("--json", action="store_true", help="one JSON object a line")
    arguments = options.parse_args()
    import torch

    if not torch.cuda.is_available() and not arguments.rehearse:
        print("no GPU: torch.cuda.is_available() is false; nothing was tried", file=sys.stderr)
        raise SystemExit(2)
    folder = arguments.work or Path(tempfile.mkdtemp(prefix="terrafm-gpu-smoke-"))
    folder.mkdir(parents=True, exist_ok=True)
    gpus = arguments.gpus or (1 if arguments.rehearse else torch.cuda.device_count())
    lines = Smoke(folder, gpus, arguments.rehearse).run()
    if arguments.json:
        for line in lines:
            print(json.dumps(line.__dict__))
    else:
        title = "rehearsal on the CPU, says nothing about GPUs" if arguments.rehearse else "GPUs"
        print(f"--- TerraFM smoke test: {title}, {gpus} workers ---")
        print(*describe(), sep="\n")
        for line in lines:
            verdict = "pass" if line.passed else "FAIL"
            print(f"{verdict}  {line.name} ({line.seconds:.0f} s): {line.detail}")
        print(f"--- logs: {folder} ---")
    raise SystemExit(0 if all(line.passed for line in lines) else 1)


if __name__ == "__main__":
    main()
