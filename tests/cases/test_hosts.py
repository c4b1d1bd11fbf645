"""Cases of printed commands, hosts without a home, wrong addresses, torn files and SIGTERM."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import call_in_process, run_terrafm, run_terrafm_nameless

from terrafm.config import load_config
from terrafm.errors import TerraFMError
from terrafm.shell import command_line
from terrafm.storage import write_bytes

_TESTS = Path(__file__).parents[1]
PYTHONPATH = f"{_TESTS / 'helpers'}:{_TESTS.parent}"

# Printed commands (17)

NAMES = [
    "plain", "r moved #1", "it's", '"q"', "a;b", "$(touch x)", "`x`", "a&b|c", "~", "*", "!x",
    "größe", "-flag", "", "back\\slash", "two\nlines", "tab\tbed", "\x1b[31mred", "\u2028",
    "a'b\nc\\d", "\udcff\udce9", "\u200b",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_printed_command_is_read_back_by_a_shell(name):
    line = command_line("printf", "%s", name)
    assert line.isprintable() or name in ("größe",), repr(line)
    done = subprocess.run(
        ["bash", "-c", line], capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True
    )
    assert done.stdout == os.fsencode(name)


def test_words_that_need_none_have_no_quotes():
    words = ["terrafm", "jobs", "list", "--address", "http://127.0.0.1:8265", "s3://b/run-1"]
    assert command_line(*words) == " ".join(words)


@pytest.mark.parametrize("name", ["r moved #1", "it's", "two\nlines: [", "größe"])
def test_the_first_line_of_config_runs_the_run_again(training, name, small_dataset, tmp_path):
    import yaml

    from terrafm.train.driver.pretrain import _write_config
    from terrafm.train.worker.setup import TrainingSetup

    training("17")
    setup = TrainingSetup.open(load_config("demo", []), small_dataset)
    output = str(tmp_path / name)
    _write_config(setup, output)
    text = Path(output, "config.yaml").read_text()
    first = text.splitlines()[0]
    assert first.startswith("# terrafm pretrain ")
    shown = subprocess.run(
        ["bash", "-c", first.removeprefix("# ").replace("terrafm", "printf '%s\\0'", 1)],
        capture_output=True, env={"LC_ALL": "C.UTF-8"}, check=True,
    )  # fmt: skip
    words = os.fsdecode(shown.stdout).split("\0")[:-1]
    assert words == [
        "pretrain", "--config", f"{output}/config.yaml", "--data", small_dataset,
        "--output", output,
    ]  # fmt: skip
    assert yaml.safe_load(text) == yaml.safe_load(setup.config.to_yaml())


def test_the_next_command_of_an_average_is_quoted():
    from terrafm.train.checkpoints.average import describe

    text = describe({"uri": "/a b/#1", "averaged": [{"uri": "x", "step": 1}] * 2})
    words = shlex.split(text.splitlines()[-1])
    assert words[:4] == ["terrafm", "export", "--checkpoint", "/a b/#1"]


# Hosts without a home (18)

NAMELESS = "import sys; from forked import run_terrafm_nameless as run; run(sys.argv[1:])"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs", "list", "--address", "http://127.0.0.1:1"], "cannot reach a cluster"),
        (["cluster", "status"], "no local cluster runs"),
        (["cluster", "down"], "no home directory: name a folder for the cluster in TERRAFM_"),
        (["cluster", "up", "--local"], "no home directory: name a folder for the cluster in TERR"),
        (["doctor", "--cluster"], "no local cluster runs"),
    ],
)
@pytest.mark.parametrize("home", [None, "/proc/no-home", "/dev/null"])
def test_without_a_home_or_a_name_it_is_one_line(training, words, said, home):
    training("18")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": PYTHONPATH}
    if home is not None:
        environment["HOME"] = home
    if words[0] == "doctor":  # One of them from the start, with what is imported there.
        done = subprocess.run(
            [sys.executable, "-c", NAMELESS, *words], capture_output=True, text=True,
            env=environment, timeout=300, check=False,
        )  # fmt: skip
        code, errors = done.returncode, done.stderr
    else:
        code, _, errors = call_in_process(run_terrafm_nameless, words, environment=environment)
    lines = [line for line in errors.splitlines() if line.strip()]
    assert (code, len(lines)) == (2, 1), errors
    if home is not None and said.startswith("no home"):
        said = f"cannot make {home}/.terrafm/cluster ("
    assert said in lines[0]


# An address that is none (18)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "http://127.0.0.1:8265",
            "is the address of a dashboard, which takes jobs: terrafm submit",
        ),
        ("https://ray.example", "is the address of a dashboard"),
        ("127.0.0.1:1", "no Ray cluster answers at RAY_ADDRESS=127.0.0.1:1 (unavailable)"),
        ("no-such-host.invalid:6379", "no Ray cluster answers at RAY_ADDRESS=no-such-host"),
        ("localhost", "Invalid address format: localhost"),
    ],
)
def test_a_wrong_ray_address_is_one_line_soon(training, address, said, tmp_path):
    training("18")
    # A process of its own: one that has started Ray stays with it.
    words = ["ingest", "--source", "synthetic", "--input", "synthetic:cells=1,seed=0,px=264"]
    words += ["--output", str(tmp_path / "t"), "--tile-size", "132"]
    code, _, errors = call_in_process(
        run_terrafm, words, environment=os.environ | {"RAY_ADDRESS": address}, timeout=200
    )
    lines = [line for line in errors.splitlines() if line.strip()]
    assert (code, len(lines)) == (2, 1), errors
    assert said in lines[0]
    assert "RAY_ADDRESS wants the host:port of the cluster's GCS" in lines[0]


# Small files that a crash has cut short (18)

TORN = [b"", b"{", b'{"fingerprint": "ab', b"[]", b"null", b"\x00" * 64, b"\xff\xfe"]


@pytest.mark.parametrize("content", TORN)
def test_a_torn_record_of_the_dataset_starts_a_run_that_has_not_trained(
    training, content, small_dataset, tmp_path
):
    from terrafm.train.driver.checks import check_output, open_setup
    from terrafm.train.driver.pretrain import _write_config

    training("18")
    output, config = str(tmp_path / "run"), load_config("demo", [])
    _write_config(open_setup(config, small_dataset, output), output)
    write_bytes(f"{output}/dataset.json", content)
    setup = open_setup(config, small_dataset, output)
    assert check_output(setup, output).resumed_from == 0
    write_bytes(f"{output}/config.yaml", content)
    assert check_output(open_setup(config, small_dataset, output), output).resumed_from == 0


def read_back(folder):
    """What reads each of the other small files."""
    from terrafm.embed.schema import read_manifest as read_embedding
    from terrafm.train.checkpoints.best import held_reasons, read_best
    from terrafm.train.run_folder import read_failure
    from tuning.trial import _began, read_scores

    return {
        "best.json": lambda: read_best(folder),
        "held.json": lambda: held_reasons(folder),
        "failure.json": lambda: read_failure(folder),
        "origin.json": lambda: _began(folder),
        "scores.jsonl": lambda: read_scores(folder),
        "embedding.json": lambda: read_embedding(folder),
    }


@pytest.mark.parametrize("content", [b"{", b'{"a": 1', b"\xff\xfe"])
@pytest.mark.parametrize(
    "name",
    ["best.json", "held.json", "failure.json", "origin.json", "scores.jsonl", "embedding.json"],
)
def test_a_torn_small_file_is_named_in_one_line(name, content, tmp_path):
    readers = read_back(str(tmp_path))
    name = next(found for found in readers if name.split(".")[0] in found)
    write_bytes(tmp_path / name, content)
    with pytest.raises(TerraFMError) as error:
        readers[name]()
    assert name in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_torn_ids_of_trackers_cost_no_run(tmp_path, caplog):
    from terrafm.train.metrics.trackers import TrackedRun

    write_bytes(tmp_path / "trackers.json", b'{"mlflow": ')
    run = TrackedRun(str(tmp_path))
    assert run.known_id("mlflow") is None
    assert "trackers.json" in caplog.text
    run.remember_id("mlflow", "7")
    assert run.known_id("mlflow") == "7"


# SIGTERM (18)


def test_sigterm_of_a_command_that_waits_is_one_line(training, dashboard):
    training("18")
    process = subprocess.Popen(
        [sys.executable, "-m", "terrafm", "jobs", "logs", "hangs", "--follow", "--address",
         dashboard[0]],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "followed\n"
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    asked, ended = errors.splitlines()
    assert asked.startswith("terrafm: asking the cluster at http://127.0.0.1:")
    assert ended == "terrafm: ended by SIGTERM; what is done stays"


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), OSError("gone")])
def test_what_a_library_makes_of_sigterm_does_not_hide_it(raised):
    """Ray's calls that wait raise another exit in place of ours."""
    from terrafm.cli.ending import TerminatedError, ends_by_sigterm

    def waiting_call():
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(10)
        except SystemExit:
            raise raised from None

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TerminatedError) as end, ends_by_sigterm():
        waiting_call()
    assert end.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    # And without one it is what it was.
    with pytest.raises(type(raised)), ends_by_sigterm():
        raise raised
