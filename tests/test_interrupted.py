"""What a command says when Ctrl-C or SIGTERM ends it: how to go on."""

import os
import signal

import pytest

from terrafm import early
from terrafm.cli.ending import command_to_go_on

PRETRAIN = ["pretrain", "--config", "demo", "--data", "my tiles", "--output", "run"]
GO_ON = "terrafm: go on with: terrafm pretrain --config demo --data 'my tiles' --output run"


@pytest.fixture
def ended_by(monkeypatch):
    """A signal comes while a dataset is looked at."""

    def end(number):
        monkeypatch.setattr(early, "check_dataset", lambda *_: os.kill(os.getpid(), number))

    return end


def test_ctrl_c_leaves_the_command_that_goes_on(run, ended_by):
    ended_by(signal.SIGINT)
    code, _, errors = run(*PRETRAIN)
    assert code != 0
    assert errors.splitlines()[-1] == GO_ON


def test_sigterm_does_too(run, ended_by):
    ended_by(signal.SIGTERM)
    code, _, errors = run(*PRETRAIN)
    assert (code, errors.splitlines()) == (
        143, [GO_ON, "terrafm: ended by SIGTERM; what is done stays"]
    )  # fmt: skip


def test_a_verb_that_only_reads_has_nothing_to_go_on_with(run, monkeypatch):
    monkeypatch.setattr(early, "check_report", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    code, _, errors = run("report", "run", "--output", "page.html")
    assert code != 0
    assert "go on with" not in errors


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["sweep", "--data", "d"], "terrafm sweep --data d --resume"),
        (["sweep", "--resume", "--data", "d"], "terrafm sweep --resume --data d"),
        (["ingest", "--set", "ingest.bands=[a b]"], "terrafm ingest --set 'ingest.bands=[a b]'"),
        ([*PRETRAIN, "--dry-run"], None),
        (["inspect", "d"], None),
        (["evaluate", "compare", "--data", "d"], None),
        (
            ["evaluate", "table", "--data", "d", "--features", "f"],
            "terrafm evaluate table --data d --features f",
        ),
        (
            ["evaluate", "compare", "--data", "d", "--features", "f"],
            "terrafm evaluate compare --data d --features f",
        ),
        ([], None),
    ],
)
def test_the_command_can_be_pasted(words, command):
    assert command_to_go_on(words) == command
