"""Whole commands on places whose names would mean their neighbours as patterns, on real servers."""

from dataclasses import replace
from pathlib import Path

import pytest

from terrafm import storage
from terrafm.train.checkpoints.retention import Retention, prune_checkpoints
from terrafm.train.checkpoints.store import list_checkpoints, load_checkpoint, save_checkpoint

# Each beside what it would mean.
NAMES = {"lr[12]": ("lr1", "lr2"), "*": ("a", "lr[12]"), "a?b": ("axb", "a"), "[!x]*": ("y1", "!")}
SLOW = [("s3", "a?b"), ("s3", "[!x]*"), *(("real s3", name) for name in NAMES)]
names = pytest.mark.parametrize(
    ("root", "name", "neighbours"),
    [
        pytest.param(
            *(place, name, neighbours),
            id=f"{place}-{name}",
            marks=[pytest.mark.slow] if (place, name) in SLOW else [],
        )
        for place in ("disk", "s3", "real s3")
        for name, neighbours in NAMES.items()
    ],
    indirect=["root"],
)


@pytest.fixture
def root(request, tmp_path):
    if request.param == "disk":
        return str(tmp_path / "place")
    fixture = {"s3": "s3_bucket", "real s3": "real_bucket"}[request.param]
    return f"{request.getfixturevalue(fixture)}/place"


def everything(root):
    """All files under a folder: URI -> content."""
    filesystem, path = storage.resolve(root)
    filesystem.invalidate_cache()
    files = filesystem.find(path)
    below = [storage.join(root, file.removeprefix(f"{path}/")) for file in files]
    return {file: storage.read_bytes(file, 1 << 30) for file in below}


@pytest.fixture
def done(run):
    """Runs a command that must succeed; what it printed."""

    def command(*words):
        code, out, said = run(*words)
        assert code == 0, said
        return out

    return command


@names
def test_checkpoints_are_pruned_averaged_and_exported_alone(
    name, neighbours, root, checkpoint, done
):
    state = load_checkpoint(checkpoint)
    runs = {one: storage.join(root, one) for one in (name, *neighbours)}
    for run in runs.values():
        for step in (2, 4, 6):
            save_checkpoint(storage.join(run, "checkpoints"), replace(state, step=step))
    before = everything(root)
    ours, folder = runs[name], storage.join(runs[name], "checkpoints")

    # As the writer of a run prunes after each checkpoint.
    prune_checkpoints(folder, Retention(last=2), 6)
    assert [step for step, _ in list_checkpoints(folder)] == [4, 6]
    gone = storage.join(folder, "step_00000002/")
    kept = {uri: content for uri, content in before.items() if not uri.startswith(gone)}
    assert len(kept) == len(before) - 6
    assert everything(root) == kept

    assert done("checkpoint", "list", ours).count("last") == 2
    done("checkpoint", "verify", ours)
    newest = storage.join(folder, "step_00000006")
    mean, weights = storage.join(root, "mean", name), storage.join(root, "weights", name)
    done("checkpoint", "average", storage.join(folder, "step_00000004"), newest, "--output", mean)
    done("export", "--checkpoint", mean, "--format", "safetensors", "--output", weights)
    done("export", "--checkpoint", newest, "--format", "hf", "--output", storage.join(weights, "x"))
    after = everything(root)
    assert {uri: content for uri, content in after.items() if uri in kept} == kept
    new = {uri.removeprefix(f"{root}/") for uri in after.keys() - kept.keys()}
    assert all(uri.startswith((f"mean/{name}/", f"weights/{name}")) for uri in new), new


@names
def test_a_dataset_is_verified_and_its_tiles_are_written_alone(
    name, neighbours, root, small_dataset, done
):
    files = [file for file in Path(small_dataset).rglob("*") if file.is_file()]
    for one in (name, *neighbours):
        for file in files:
            inside = str(file.relative_to(small_dataset))
            storage.upload(file, storage.join(root, "tiles", one, inside))
    # A neighbour is damaged: whoever takes its files for these sees it.
    broken = storage.join(root, "tiles", neighbours[0], "manifest.json")
    storage.write_bytes(broken, b"{}")
    before = everything(root)
    ours = storage.join(root, "tiles", name)
    assert "11 tiles" in done("inspect", ours)
    done("verify", ours)
    assert everything(root) == before
    output = storage.join(root, "out", name)
    printed = done("tile", ours, "tile_03", "--output", output)
    after = everything(root)
    assert {uri: content for uri, content in after.items() if uri in before} == before
    new = after.keys() - before.keys()
    assert new
    assert all(f"wrote {uri}" in printed and uri.startswith(f"{output}/tile_03_") for uri in new)
