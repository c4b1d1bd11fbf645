"""Cases of two writers of one folder, of a kill and of a SIGTERM between them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from terrafm.storage import list_names
from terrafm.storage.lease import lease


def writers(data, checkpoint, output):
    """Each verb that writes a folder."""
    pretrain = ["--config", "demo", "--data", data, "--output", output]
    archive = ["--source", "synthetic", "--input", "synthetic:cells=2,seed=0,px=264"]
    return {
        "pretrain": ["pretrain", *pretrain],
        "ingest": ["ingest", *archive, "--output", output],
        "append": ["ingest", "--append", *archive, "--output", output],
        # They are read after the lease is asked for: any file will do.
        "embed": [
            "embed",
            "--weights",
            f"{data}/manifest.json",
            "--data",
            data,
            "--output",
            output,
        ],
        "average": ["checkpoint", "average", checkpoint, checkpoint, "--output", output],
        "sweep": ["sweep", "--config", "sweep_demo", "--data", data, "--output", output],
    }


@pytest.mark.parametrize("verb", ["pretrain", "ingest", "append", "embed", "average", "sweep"])
@pytest.mark.parametrize("spelled", ["{}", "{}/", "file://{}", "link"])
def test_a_second_writer_is_refused_whatever_it_calls_the_folder(
    verb, spelled, refused, small_dataset, checkpoint, tmp_path
):
    if verb == "sweep" and spelled != "{}":
        pytest.skip("once is enough: its configuration is checked first, which takes long")
    output = tmp_path / "run"
    with lease(output, "terrafm pretrain"):
        (tmp_path / "link").symlink_to(output)
        name = str(tmp_path / "link") if spelled == "link" else spelled.format(output)
        line = refused(*writers(small_dataset, checkpoint, name)[verb])
        assert list_names(output) == [".lease"]
    for part in (f"{output} has a writer already: terrafm pretrain on {socket.gethostname()}",
                 f"process {os.getpid()}, since 20"):  # fmt: skip
        assert part in line
    assert not output.exists()


def test_in_a_store_too(refused, small_dataset, checkpoint, s3_bucket):
    with lease(f"{s3_bucket}/run", "terrafm pretrain"):
        for name in (f"{s3_bucket}/run/", f"{s3_bucket}/run".replace("s3://", "s3a://")):
            line = refused(*writers(small_dataset, checkpoint, name)["pretrain"])
            assert f"{s3_bucket}/run has a writer already: terrafm pretrain on " in line
        assert list_names(f"{s3_bucket}/run") == [".lease"]


STEPS = [
    "train.steps=400", "train.global_batch=4", "head.num_prototypes=32", "data.local_crops=2",
    "train.checkpoint_every=5", "train.log_every=1", "train.standby=false",
    "train.precision=float32",
]  # fmt: skip


def start_pretrain(data, output, log):
    sets = [part for setting in STEPS for part in ("--set", setting)]
    words = ["pretrain", "--config", "demo", "--data", data, "--output", str(output), *sets]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    with open(log, "w") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "terrafm", *words], stdout=file, stderr=subprocess.STDOUT,
            env=environment, start_new_session=True,
        )  # fmt: skip


def wait_for(found, process, log, seconds=500):
    deadline = time.monotonic() + seconds
    while not found():
        assert process is None or process.poll() is None, Path(log).read_text()
        assert time.monotonic() < deadline, Path(log).read_text()
        time.sleep(0.3)


def kill_family(process):
    import psutil

    family = []
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    process.wait()
    _, left = psutil.wait_procs(family, timeout=60)
    for one in left:
        one.kill()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_two_pretrains_at_once_a_kill_and_a_sigterm(training, small_dataset, tmp_path):
    training("16")
    training("18")
    output, logs = tmp_path / "run", [tmp_path / f"{n}.log" for n in range(4)]
    started = [start_pretrain(small_dataset, output, logs[n]) for n in (0, 1)]
    try:
        wait_for(lambda: any(p.poll() is not None for p in started), None, logs[0])
        loser = next(n for n in (0, 1) if started[n].poll() is not None)
        winner = 1 - loser
        lines = [line for line in logs[loser].read_text().splitlines() if line.strip()]
        assert started[loser].returncode == 2, lines
        assert len(lines) == 2, lines
        assert lines[0].startswith("pretraining ")
        assert f"process {started[winner].pid}, since" in lines[1]
        checkpoints = output / "checkpoints"
        wait_for(lambda: "step_00000005" in list_names(str(checkpoints)), started[winner],
                 logs[winner])  # fmt: skip
        # While it is at work a third one, of the same by another name.
        third = start_pretrain(small_dataset, f"{output}/", logs[2])
        started.append(third)
        assert third.wait(300) == 2, logs[2].read_text()
        assert started[winner].poll() is None
        kill_family(started[winner])
        fourth = start_pretrain(small_dataset, output, logs[3])
        started.append(fourth)
        before = max(list_names(str(checkpoints)))
        wait_for(lambda: max(list_names(str(checkpoints))) > before, fourth, logs[3])
        import psutil

        family = psutil.Process(fourth.pid).children(recursive=True)
        assert family
        fourth.send_signal(signal.SIGTERM)
        assert fourth.wait(120) == 143, logs[3].read_text()
        told = [line for line in logs[3].read_text().splitlines() if line.strip()]
        assert told[-1] == "terrafm: ended by SIGTERM; what is done stays", told
        assert not any("***" in line or "Traceback" in line for line in told), told
        # Its children have ended with it, and nobody has the folder any more.
        _, left = psutil.wait_procs(family, timeout=60)
        assert left == []
        with lease(output, "x"):
            pass
    finally:
        for process in started:
            kill_family(process)
