"""Records of strangers are held against a schema: one line with file, field and expectation."""

import json
import shutil
import struct

import pyarrow as pa
import pytest
import torch

from terrafm.config import build_config
from terrafm.data.archive import BadCellError
from terrafm.data.ingest.tally import Tally
from terrafm.data.shards.dataset import Dataset
from terrafm.data.sources.folders import read_json
from terrafm.errors import TerraFMError, UsageError
from terrafm.search.footprints import Footprints
from terrafm.storage.records import DEEPEST, Count, parse_json, validated
from terrafm.train.checkpoints.best import held_reasons, read_best
from terrafm.train.checkpoints.files import digest_of
from terrafm.train.checkpoints.store import (
    DamagedCheckpointError,
    contract_of,
    load_checkpoint,
    load_network,
    read_record,
)
from terrafm.train.worker.setup import TrainingSetup

BEST = {"step": 4, "checkpoint": "step_00000004", "metric": "m", "mode": "max", "value": 0.5}


@pytest.mark.parametrize(
    "text",
    ["[" * (DEEPEST + 1), '{"a":' * 100_000, "1" * 400, "1" * 5000, "[1,", "", "\xff"],
    ids=lambda text: text[:4],
)
def test_json_that_is_deep_long_or_none_is_one_line(text):
    with pytest.raises(ValueError, match=r"\w") as fault:
        parse_json(text)
    assert "\n" not in str(fault.value)
    assert len(str(fault.value)) < 400


@pytest.mark.parametrize("value", [True, -1, 1.0, "1", None, 2**63, [1]])
def test_a_count_is_a_whole_number(value):
    with pytest.raises(ValueError, match=r"^a: "):
        validated({"a": value}, dict[str, Count])


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"step": "4"}, "step"),
        ({"step": -1}, "step"),
        ({"mode": "most"}, "mode"),
        ({"value": None}, "value"),
        ({"value": float("nan")}, "value"),
        ({"metric": ["m"]}, "metric"),
    ],
)
def test_the_best_checkpoint_of_a_stranger(change, field, tmp_path):
    (tmp_path / "best.json").write_text(json.dumps(BEST | change))
    with pytest.raises(TerraFMError, match=rf"best\.json is not readable: {field}: .*remove it"):
        read_best(str(tmp_path))


@pytest.mark.parametrize("steps", [None, 4, "24", [None], [[2]], {"2": 4}])
def test_held_checkpoints_of_a_stranger(steps, tmp_path):
    (tmp_path / "held.json").write_text(json.dumps({"steps": steps}))
    with pytest.raises(TerraFMError, match=r"held\.json is not readable: steps"):
        held_reasons(str(tmp_path))


@pytest.mark.parametrize(
    ("section", "value"),
    [("step", "x"), ("saved_at", 5), ("saved_at", "soon"), ("metrics", []), ("config", {"a": 1}),
     ("dataset", {}), ("dataset", "tiles"), ("averaged", [{}])],
)  # fmt: skip
def test_the_state_of_a_strangers_checkpoint(section, value, checkpoint, tmp_path):
    uri, _ = changed_checkpoint(checkpoint, tmp_path, section, value)
    with pytest.raises(DamagedCheckpointError, match=rf"state\.json is not readable: {section}"):
        read_record(uri)


@pytest.mark.parametrize("value", [{}, {"modalities": 5}, {"format": "x"}])
def test_the_contract_of_a_strangers_checkpoint(value, checkpoint, tmp_path):
    uri, _ = changed_checkpoint(checkpoint, tmp_path, "contract", value)
    with pytest.raises(UsageError, match=r"contract in state\.json is broken: \w+: "):
        contract_of(read_record(uri), uri)


def test_tensors_whose_checksum_is_right_and_that_are_none(checkpoint, tmp_path):
    uri, folder = changed_checkpoint(checkpoint, tmp_path)
    mark(folder, "student.safetensors", b"\xff" * 64)
    with pytest.raises(DamagedCheckpointError, match=r"student\.safetensors: "):
        load_network(uri, "student")


def changed_checkpoint(checkpoint, tmp_path, section=None, value=None):
    """A copy whose state says something else, with checksums that are right."""
    folder = tmp_path / "step_00000002"
    shutil.copytree(checkpoint, folder)
    if section is not None:
        state = json.loads((folder / "state.json").read_text()) | {section: value}
        mark(folder, "state.json", json.dumps(state).encode())
    return str(folder), folder


def mark(folder, name, content):
    marker = json.loads((folder / "complete.json").read_text())
    marker["files"][name] = digest_of(content)
    (folder / name).write_bytes(content)
    (folder / "complete.json").write_text(json.dumps(marker))


@pytest.mark.parametrize(
    ("field", "value"),
    [("decisions", {"s1": [{}]}), ("selection", {"cells": "x"}), ("appended", [5]),
     ("quarantine", {"tiles": -1}), ("class_counts_before_selection", {"x": 1})],
)  # fmt: skip
def test_the_report_of_a_strangers_dataset(field, value, small_dataset, tmp_path):
    folder = shutil.copytree(small_dataset, tmp_path / "dataset")
    manifest = json.loads((folder / "manifest.json").read_text()) | {"report": {field: value}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UsageError, match=rf"manifest\.json is not the manifest.*: .*{field}"):
        Dataset.open(str(folder))


def test_what_ingest_counted_is_held_against_what_it_writes():
    stated = json.loads(json.dumps(Tally(codes={10}).to_json()))
    assert Tally.from_json(stated).codes == {10}
    with pytest.raises(UsageError, match=r"counted of part-1 is not readable: sums\.s1\.VV"):
        Tally.from_json(stated | {"sums": {"s1": {"VV": [1, 5, 3]}}}, "part-1")


POLYGON = struct.pack("<BII", 1, 3, 1) + struct.pack(
    "<I10d", 5, *(0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0)
)


@pytest.mark.parametrize("kind", [5, 6, 7, 15])
@pytest.mark.parametrize("depth", [1, 100_000])
def test_nested_geometries_do_not_end_the_process(kind, depth):
    nested = struct.pack("<BII", 1, kind, 1) * depth + POLYGON
    geometry = pa.array([POLYGON, nested], pa.binary())
    if (kind, depth) == (6, 1):
        assert len(Footprints(geometry).centres()) == 2
        return
    with pytest.raises(ValueError, match="Polygon"):
        Footprints(geometry)


def test_metadata_of_an_archive_that_is_nested_is_a_fault_of_its_cell(tmp_path):
    (tmp_path / "metadata.json").write_text('{"a":' * 100_000)
    with pytest.raises(BadCellError, match="nested deeper"):
        read_json(str(tmp_path / "metadata.json"))


def test_tensors_of_another_model_than_the_settings(checkpoint, small_dataset):
    state = load_checkpoint(checkpoint)
    state.engine.student.pop("encoder.cls_token")
    setup = TrainingSetup.open(build_config(state.record["config"]), small_dataset)
    with pytest.raises(UsageError, match=r"is not of the model in its settings: .*cls_token"):
        setup.distillation(lambda student: None, state, torch.device("cpu"))
