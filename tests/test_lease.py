"""One writer for a folder, on a disk and in stores, against real processes that are killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from terrafm.errors import TerraFMError, UsageError
from terrafm.storage import canonical, lease_record, list_names, read_bytes, remove, write_bytes
from terrafm.storage import lease as lease_module
from terrafm.storage.lease import lease
from terrafm.storage.lease_record import LEASE_FILE, Holder, S3Record

# Takes the lease of argv[1], says so or why not, and holds it until its input ends.
HOLD = """
import sys
from terrafm.errors import UsageError
from terrafm.storage.lease import lease
try:
    with lease(sys.argv[1], sys.argv[2]):
        print("held", flush=True)
        sys.stdin.read()
except UsageError as error:
    print(error, flush=True)
"""


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setenv("TERRAFM_LEASE_SECONDS", "3")
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 3.0)
    monkeypatch.setattr(lease_module, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(lease_record, "SETTLE_SECONDS", 0.3)


@pytest.fixture(params=["disk", "s3", "memory"])
def place(request, tmp_path):
    """A folder that does not exist yet, of each kind of record."""
    if request.param == "disk":
        return str(tmp_path / "some" / "run")
    if request.param == "s3":
        return f"{request.getfixturevalue('s3_bucket')}/some/run"
    # No conditions, and no locks: it is this process's alone.
    return f"memory://{tmp_path.name}/run"


@pytest.fixture(params=["disk", "s3"])
def shared(request, tmp_path):
    """The same, as other processes see it too."""
    if request.param == "disk":
        return str(tmp_path / "run")
    return f"{request.getfixturevalue('s3_bucket')}/run"


@pytest.fixture
def hold():
    """Starts a process that takes a lease."""
    started = []

    def start(place, what="terrafm test"):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, place, what],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def held_by_another(place, **changes):
    """Leaves the record of a holder, on another machine if not told otherwise."""
    fields = vars(Holder.here("terrafm pretrain")) | {"machine": "another", "host": "far"} | changes
    write_bytes(f"{place}/{LEASE_FILE}", Holder(**fields).content(0))


def test_a_second_writer_is_told_who_the_first_is(place):
    with (
        lease(place, "terrafm pretrain"),
        pytest.raises(UsageError) as refusal,
        lease(place + "/", "x"),
    ):
        pass
    for part in (canonical(place), "terrafm pretrain on ", f"process {os.getpid()}, since 20"):
        assert part in str(refusal.value)


def test_nothing_is_left_when_it_ends(place, tmp_path):
    for _ in range(3):
        with lease(place, "x"):
            assert LEASE_FILE in list_names(place)
    assert list_names(place) == []
    # Not even the folders that were made for it.
    assert not (tmp_path / "some").exists()


def test_what_was_written_stays(place):
    with lease(place, "x"):
        write_bytes(f"{place}/result", b"1")
    assert list_names(place) == ["result"]


def test_what_a_killed_writer_has_left_halfway_is_removed_and_nothing_else(place):
    number = "0" * 32
    left = [f".manifest-1.json.{number}", f".writable-{number}", f"..writable-{number}.{number}"]
    # Of somebody else, or whole.
    stays = [".notes.txt.old", f".notes.txt.{number}", f"manifest.json.{number}", "config.yaml"]
    for name in [*left, *stays]:
        write_bytes(f"{place}/{name}", b"1")
    with lease(place, "x"):
        assert set(list_names(place)) == {*stays, LEASE_FILE}


def test_an_error_inside_is_its_own(place):
    with pytest.raises(ZeroDivisionError), lease(place, "x"):
        _ = 1 // 0
    with lease(place, "x"):
        pass


def test_of_threads_that_come_at_once_one_wins(shared):
    for number in range(10):
        place, results, meet = f"{shared}-{number}", [], threading.Barrier(4)

        def compete(place=place, results=results, meet=meet):
            meet.wait()
            try:
                with lease(place, "x"):
                    results.append("held")
                    while len(results) < 4:
                        time.sleep(0.01)
            except UsageError as error:
                results.append(str(error))

        threads = [threading.Thread(target=compete) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert results.count("held") == 1, results
        assert sum("has a writer already" in line for line in results) == 3, results


def test_of_processes_that_come_at_once_one_wins(shared, hold):
    processes = [hold(shared) for _ in range(3)]
    lines = [process.stdout.readline() for process in processes]
    winners = [p for p, line in zip(processes, lines, strict=True) if line == "held\n"]
    assert len(winners) == 1, lines
    refused = [line for line in lines if line != "held\n"]
    assert all("has a writer already" in line for line in refused), lines
    assert all(f"process {winners[0].pid}," in line for line in refused), lines


def test_one_that_was_killed_is_followed_at_once(shared, hold, monkeypatch, caplog):
    first = hold(shared)
    assert first.stdout.readline() == "held\n"
    first.send_signal(signal.SIGKILL)
    first.wait()
    # On the same machine nothing has to lapse.
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 3600.0)
    with lease(shared, "x"):
        assert "waiting up to" not in caplog.text


def test_one_that_stands_still_is_not_followed_on_its_own_machine(shared, hold):
    first = hold(shared)
    assert first.stdout.readline() == "held\n"
    first.send_signal(signal.SIGSTOP)
    try:
        time.sleep(3.5)
        with pytest.raises(UsageError, match=f"process {first.pid},"), lease(shared, "x"):
            pass
    finally:
        first.send_signal(signal.SIGCONT)


def test_a_number_that_another_process_has_now_holds_nothing(s3_bucket):
    place = f"{s3_bucket}/run"
    here = Holder.here("x")
    held_by_another(place, machine=here.machine, started=here.started - 1000)
    with lease(place, "x"):
        pass


def test_another_machine_that_renews_keeps_the_lease(place):
    held_by_another(place)
    end = threading.Event()

    def renew():
        fields = json.loads(read_bytes(f"{place}/{LEASE_FILE}"))
        while not end.wait(0.5):
            fields["renewals"] += 1
            content = json.dumps(fields).encode()
            if "://" in place:
                write_bytes(f"{place}/{LEASE_FILE}", content)
                continue
            # On a disk in place, by whoever holds the lock.
            with open(f"{place}/{LEASE_FILE}", "r+b") as file:
                file.write(content)
                file.truncate()

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with pytest.raises(UsageError, match="terrafm pretrain on far"), lease(place, "x"):
            pass
    finally:
        end.set()
        thread.join()


def test_a_renewal_that_is_seen_halfway_is_still_its_holder_s(tmp_path):
    place = f"memory://{tmp_path.name}/run"
    held_by_another(place)
    whole = read_bytes(f"{place}/{LEASE_FILE}")
    threading.Timer(0.8, write_bytes, (f"{place}/{LEASE_FILE}", whole + b"}")).start()
    with pytest.raises(UsageError, match="terrafm pretrain on far"), lease(place, "x"):
        pass


@pytest.mark.parametrize("content", [None, b"", b'{"what": "terr', b"[]", b"\xff\xfe"])
def test_another_machine_that_does_not_renew_is_followed_after_its_term(place, content, caplog):
    held_by_another(place)
    if content is not None:
        write_bytes(f"{place}/{LEASE_FILE}", content)
    began = time.monotonic()
    with lease(place, "x"):
        waited = time.monotonic() - began
    empty_on_a_disk = content == b"" and "://" not in place
    assert empty_on_a_disk or waited > 2.9
    assert empty_on_a_disk != ("waiting up to" in caplog.text)
    if content is None:
        assert "was left by terrafm pretrain on far" in caplog.text
    assert list_names(place) == []


def test_one_whose_lease_was_taken_over_is_stopped(s3_bucket):
    place, lost = f"{s3_bucket}/run", threading.Event()

    def stand_still():
        with lease(place, "x", on_loss=lost.set):
            held_by_another(place)
            assert lost.wait(3)

    with pytest.raises(TerraFMError, match="was taken over by terrafm pretrain on far"):
        stand_still()
    # It is the other's now.
    assert json.loads(read_bytes(f"{place}/{LEASE_FILE}"))["host"] == "far"


def test_a_record_that_somebody_removed_comes_back(s3_bucket):
    place = f"{s3_bucket}/run"
    with lease(place, "x"):
        remove(f"{place}/{LEASE_FILE}")
        deadline = time.monotonic() + 3
        while LEASE_FILE not in list_names(place):
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_store_that_knows_no_conditions_is_read_again(s3_bucket, monkeypatch, hold):
    """As stores do that take the header and do not know it."""
    put = S3Record._put
    monkeypatch.setattr(S3Record, "_put", lambda self, content, condition: put(self, content, {}))
    place = f"{s3_bucket}/run"
    with lease(place, "x"):
        assert LEASE_FILE in list_names(place)
        with pytest.raises(UsageError, match="has a writer already"), lease(place, "y"):
            pass
    assert list_names(place) == []


def test_where_nothing_can_be_written_the_command_itself_says_so(tmp_path, s3_bucket):
    ran = []
    for place in ("/dev/null/run", f"{s3_bucket}-not-there/run"):
        with lease(place, "x"):
            ran.append(place)
    assert len(ran) == 2


def test_a_file_is_no_folder_to_write(tmp_path):
    (tmp_path / "file").write_text("mine")
    with (
        pytest.raises(UsageError, match="file is a file: give a folder"),
        lease(f"{tmp_path}/file", "x"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "mine"


def test_a_lock_of_another_user_is_seen(tmp_path, hold):
    if os.getuid():
        pytest.skip("only root can be another user")
    place = tmp_path / "run"
    with lease(place, "x"):
        os.chmod(place / LEASE_FILE, 0o644)
        for folder in (tmp_path, *tmp_path.parents):
            if folder != Path("/"):
                os.chmod(folder, os.stat(folder).st_mode | 0o055)
        os.chmod(place, 0o777)
        # Nobody else can import what root has installed.
        code = HOLD.replace("try:", "import os; os.setgid(12345); os.setuid(12345)\ntry:", 1)
        other = subprocess.run(
            [sys.executable, "-c", code, str(place), "y"],
            capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False,
        )  # fmt: skip
    assert "has a writer already: x on " in other.stdout, other.stderr
