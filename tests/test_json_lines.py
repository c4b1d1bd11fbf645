"""JSON lines whose writers are killed, whose disks are full, and that several add to."""

import json
import uuid

import pytest

from terrafm.errors import TerraFMError
from terrafm.storage import (
    append_json_line,
    read_bytes,
    read_json_lines,
    write_bytes,
    write_json_lines,
)
from terrafm.train.driver.events import EventLog, read_events
from terrafm.train.metrics.log import read_metrics
from terrafm.train.metrics.samples import append_quarantine

WHOLE = b'{"a": 1}\n{"a": 2}\n'


@pytest.fixture(params=["disk", "store"])
def uri(request, tmp_path):
    name = "lines.jsonl"
    if request.param == "disk":
        return str(tmp_path / name)
    return f"memory://{uuid.uuid4().hex}/{name}"


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (WHOLE, [1, 2]),
        (WHOLE[:-1], [1, 2]),  # all but the line's end was taken
        (WHOLE[:-4], [1]),
        (b'{"a": 1}\n{"a', [1]),
        (b'{"a": 1}\n{"a": "\xc3', [1]),  # in the middle of a letter
        (b'{"a": 1}\n\x00\x00\x00', [1]),  # a file system after a power cut
        (b'{"a": 1}\n[]\n7\n\n', [1]),
        (b"{", []),
        (b"", []),
    ],
)
def test_a_torn_line_takes_no_other_with_it(before, kept, uri):
    write_bytes(uri, before)
    assert [line["a"] for line in read_json_lines(uri)] == kept
    append_json_line(uri, {"a": 8})
    append_json_line(uri, {"a": 9})
    assert [line["a"] for line in read_json_lines(uri)] == [*kept, 8, 9]
    assert read_bytes(uri).startswith(before)


def test_a_file_that_is_written_whole_is_damaged_where_a_line_is(uri):
    write_json_lines(uri, [{"a": 1}, {"a": "ü\u2028"}])
    assert [line["a"] for line in read_json_lines(uri, "remove it")] == [1, "ü\u2028"]
    write_bytes(uri, WHOLE[:-4])
    with pytest.raises(TerraFMError, match=r"is not readable: line 2: .*: remove it"):
        read_json_lines(uri, "remove it")


def test_a_file_that_is_not_there_has_no_lines(uri):
    assert read_json_lines(uri) == []
    append_json_line(uri, {"a": 1})
    assert read_json_lines(uri) == [{"a": 1}]


def test_two_logs_of_one_run_keep_each_others_events(uri):
    folder = uri.rpartition("/")[0]
    driver, validator = EventLog(folder), EventLog(folder)
    for step in (1, 2):
        driver.add("started", step=step)
        validator.add("validated", step=step)
    assert [(e["event"], e["step"]) for e in read_events(folder)] == [
        ("started", 1),
        ("validated", 1),
        ("started", 2),
        ("validated", 2),
    ]


def test_events_metrics_and_quarantine_after_a_torn_line(tmp_path):
    for name in ("events.jsonl", "metrics.jsonl", "quarantine.jsonl"):
        first = json.dumps({"event": "started", "step": 1, "tile": "a"})
        (tmp_path / name).write_text(first + "\n" + first[: len(first) // 2])
    folder = str(tmp_path)
    EventLog(folder).add("finished", step=2)
    assert [e["event"] for e in read_events(folder)] == ["started", "finished"]
    append_quarantine(folder, [{"tile": "b"}])
    append_quarantine(folder, [{"tile": "b"}])
    lines = read_json_lines(str(tmp_path / "quarantine.jsonl"))
    assert [line["tile"] for line in lines] == ["a", "b"]
    # A torn line in the middle, as earlier versions left it, hides nothing that follows.
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 2}\n')
    assert [line["step"] for line in read_metrics(folder)] == [1, 2]
