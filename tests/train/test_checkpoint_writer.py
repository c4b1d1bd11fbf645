"""The asynchronous writer against slow, failing and full storage."""

import logging
import resource
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from fault_proxy import Every, Faults

from terrafm.errors import TerraFMError
from terrafm.storage import faults, join, read_bytes
from terrafm.train.checkpoints import retention as retention_module
from terrafm.train.checkpoints.intact import damage_of
from terrafm.train.checkpoints.retention import Retention
from terrafm.train.checkpoints.staging import remove_staging, staging_folder
from terrafm.train.checkpoints.store import TrainingState, list_checkpoints, load_checkpoint
from terrafm.train.checkpoints.writer import CheckpointWriter
from terrafm.train.metrics.log import MetricsLog, read_metrics
from terrafm.train.metrics.samples import PendingRecords, append_samples
from terrafm.train.step.engine import EngineState

BIG = 250_000  # numbers: a megabyte


def state(step, numbers=100, **metrics):
    tensors = {"weight": torch.full((numbers,), float(step))}
    return TrainingState(
        step, EngineState(tensors, tensors), tensors, tensors, metrics={"step": step, **metrics}
    )


def writer(folder, *, keep=10, max_failed=3, background=True, records=lambda: None, **rules):
    return CheckpointWriter(
        str(folder), Retention(last=keep, **rules), write_records=records,
        max_failed=max_failed, background=background,
    )  # fmt: skip


def steps(folder):
    found = list_checkpoints(str(folder))
    for _, uri in found:
        assert list(damage_of(uri)) == []
    return [step for step, _ in found]


@contextmanager
def files_of_at_most(size):
    """A disk that takes no larger files: the kernel refuses the write in its midst."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, logger="terrafm.train")

    def found():
        messages = [r.getMessage() for r in caplog.records if r.name.startswith("terrafm.train")]
        # A busy machine may be slow to write.
        return [message for message in messages if not message.startswith("training waited")]

    return found


@pytest.mark.parametrize("background", [True, False])
def test_every_checkpoint_is_written_and_the_rules_decide_what_stays(tmp_path, background):
    folder = tmp_path / "run" / "checkpoints"
    saving = writer(folder, keep=2, every=20, background=background)
    for step, loss in ((10, 5.0), (20, 1.0), (30, 4.0), (40, 3.0), (50, 2.0)):
        saving.save(state(step, loss=loss))
        if not background:
            assert steps(folder)[-1] == step
    saving.close()
    assert steps(folder) == [20, 40, 50]
    assert load_checkpoint(join(str(folder), "step_00000020")).metrics == {"step": 20, "loss": 1.0}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoints"]
    # A process that takes over has rules of its own.
    again = writer(folder, keep=1, background=background)
    again.save(state(60, loss=2.5))
    again.close()
    assert steps(folder) == [60]


def test_training_goes_on_while_a_slow_store_takes_a_checkpoint(proxied):
    bucket, proxy = proxied
    proxy.plan = Faults(latency=0.05)
    folder = join(bucket, "run", "checkpoints")
    saving = writer(folder)
    began = time.monotonic()
    saving.save(state(1))
    returned = time.monotonic() - began
    assert saving.busy
    # At most one is under way: the next save waits.
    saving.save(state(2))
    waited = time.monotonic() - began
    assert steps(folder) == [1]
    saving.close()
    whole = time.monotonic() - began
    assert steps(folder) == [1, 2]
    assert returned < 0.2 < 0.4 < waited < whole


def test_a_store_that_is_down_for_a_while_costs_one_checkpoint(proxied, monkeypatch, warnings):
    bucket, proxy = proxied
    monkeypatch.setattr(faults, "RETRY_SECONDS", 1.0)
    run = join(bucket, "run")
    folder = join(run, "checkpoints")
    log = MetricsLog(run, 0)
    records = PendingRecords(run, log)
    saving = writer(folder, records=records.write)
    for step in (1, 2, 3):
        proxy.plan = Faults(slow_down=Every(1)) if step == 2 else Faults()
        log.write({"step": step, "loss": 1.0})
        records.add([{"tile": f"tile_{step}", "cell": "s1"}], [(step - 1, 0, "tile", 0, step)])
        saving.save(state(step))
        saving.wait()
    saving.close()
    assert steps(folder) == [1, 3]
    (warning,) = [w for w in warnings() if "no checkpoint after" in w]
    assert warning.startswith("no checkpoint after step 2: cannot read s3://")
    assert "tried again for 1 s" in warning
    assert "training goes on" in warning
    # The records of the lost checkpoint came with the next one.
    assert [line["step"] for line in read_metrics(run)] == [1, 2, 3]
    assert len(read_bytes(join(run, "quarantine.jsonl")).splitlines()) == 3
    log.close()


def test_a_full_disk_costs_one_checkpoint_and_leaves_nothing(tmp_path, warnings):
    folder = tmp_path / "run" / "checkpoints"
    saving = writer(folder)
    saving.save(state(1, BIG))
    saving.wait()
    with files_of_at_most(300_000):
        saving.save(state(2, BIG))
        saving.wait()
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoints"]
    assert steps(folder) == [1]
    saving.save(state(3, BIG))
    saving.close()
    assert steps(folder) == [1, 3]
    (warning,) = warnings()
    assert "no checkpoint after step 2" in warning
    assert "step_00000002: no room left" in warning
    assert "failures in a row: 1, the run ends at 3" in warning


@pytest.mark.parametrize("background", [True, False])
def test_too_many_failures_in_a_row_end_the_run(tmp_path, background, warnings):
    (tmp_path / "file").touch()
    saving = writer(tmp_path / "file" / "checkpoints", background=background)
    saving.save(state(1))
    saving.save(state(2))
    # The one that must not fail is waited for.
    with pytest.raises(TerraFMError, match="3 checkpoints in a row could not be written") as end:
        saving.save(state(3))
    assert "\n" not in str(end.value)
    assert end.value.exit_code == 1
    assert len(warnings()) == 3
    with pytest.raises(TerraFMError, match="3 checkpoints in a row"):
        saving.save(state(4))


def test_failures_count_only_in_a_row(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    saving = writer(folder, max_failed=2)
    for step in range(1, 9):
        with files_of_at_most(300_000 if step % 2 else 2**40):
            saving.save(state(step, BIG))
            saving.wait()
    saving.close()
    assert steps(folder) == [2, 4, 6, 8]


def test_the_last_checkpoint_must_not_fail(tmp_path):
    folder = tmp_path / "run" / "checkpoints"
    saving = writer(folder)
    saving.save(state(1, BIG))
    saving.wait()
    with files_of_at_most(300_000):
        saving.save(state(2, BIG))
        with pytest.raises(TerraFMError, match=r"last checkpoint could not.*no room left") as end:
            saving.close()
    assert "\n" not in str(end.value)
    assert steps(folder) == [1]


def test_a_fault_of_the_program_is_no_fault_of_the_disk(tmp_path):
    broken = state(1)
    broken.record = {"cursor": object()}
    saving = writer(tmp_path / "checkpoints")
    saving.save(broken)
    with pytest.raises(TypeError, match="not JSON serializable"):
        saving.wait()
    assert steps(tmp_path / "checkpoints") == []


def test_what_a_checkpoint_counts_as_done_is_on_file_first(tmp_path, warnings):
    folder = tmp_path / "run" / "checkpoints"
    seen = []

    def records():
        seen.append(steps(folder))
        if len(seen) == 2:
            raise OSError("the records' disk is gone")

    saving = writer(folder, records=records)
    for step in (1, 2, 3):
        saving.save(state(step))
    saving.close()
    assert seen == [[], [1], [1]]
    assert steps(folder) == [1, 3]
    assert "the records' disk is gone" in warnings()[0]


def test_a_store_that_does_not_remove_costs_no_checkpoint(tmp_path, monkeypatch, warnings):
    def refuse(_):
        raise OSError("not now")

    monkeypatch.setattr(retention_module, "remove_checkpoint", refuse)
    saving = writer(tmp_path / "checkpoints", keep=1)
    saving.save(state(1))
    saving.save(state(2))
    saving.close()
    assert steps(tmp_path / "checkpoints") == [1, 2]
    assert warnings() == ["older checkpoints stay for now: not now"]


# TensorBoard's thread dies of the full disk; what it missed is warned of.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_lines_that_a_full_disk_did_not_take_come_later_and_whole(tmp_path):
    log = MetricsLog(str(tmp_path), 0)
    for step in range(1, 61):
        with files_of_at_most(400 if 10 < step <= 40 else 2**40):
            log.write({"step": step, "loss": 1 / step})
            if step == 40:
                with pytest.raises(TerraFMError, match=r"metrics\.jsonl: no room left"):
                    log.flush()
    log.close()
    assert [line["step"] for line in read_metrics(str(tmp_path))] == list(range(1, 61))


def test_rows_are_there_once_though_an_earlier_attempt_had_left_them(tmp_path):
    run = str(tmp_path)
    rows = [(step, rank, "tile", 0, step) for step in range(4) for rank in (1, 0)]
    append_samples(run, rows[:4])
    append_samples(run, rows[4:])
    append_samples(run, rows[4:])
    table = pq.read_table(Path(run) / "samples.parquet")
    assert table["step"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert table["rank"].to_pylist() == [0, 1] * 4


def test_scratch_of_a_killed_writer_goes_and_that_of_a_living_one_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with staging_folder(None) as living:
        dead = living.with_name(".staging-dead")
        dead.mkdir()
        (dead / "teacher.safetensors").write_bytes(b"half")
        remove_staging("memory://bucket/run")
        assert not dead.exists()
        assert living.exists()
    assert not living.exists()
