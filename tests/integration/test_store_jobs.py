"""A dataset and a run that live on a real S3 server, from the first tile to the last step."""

import json
import random
import time

import pytest
from commands import PATIENCE, ingest, kill_session, start_ingest, terrafm
from s3_servers import forget_clients

from terrafm.data.shards.dataset import Dataset
from terrafm.data.shards.manifest import list_versions
from terrafm.storage import exists, join, list_names, read_bytes, write_bytes
from terrafm.train.checkpoints.store import load_network

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

RUN = [
    *("--config", "demo", "--set", "train.steps=10", "--set", "train.global_batch=4"),
    *("--set", "train.checkpoint_every=5", "--set", "head.num_prototypes=32"),
    *("--set", "data.local_crops=2", "--set", "data.on_damage=quarantine"),
]


def verdict(uri, environment, check=0):
    done = terrafm("verify", uri, "--json", environment=environment | PATIENCE, check=check)
    return json.loads(done.stdout)


@pytest.mark.parametrize("place", ["local", "s3"])
def test_an_append_killed_three_times_ends_in_the_same_version(
    place, archive, more_places, real_server, real_bucket, tmp_path
):
    here = real_server.environment
    out = str(tmp_path / "grown") if place == "local" else join(real_bucket, "grown")
    calm = str(tmp_path / "calm")
    for folder, environment in ((calm, {}), (out, here)):
        ingest(archive, folder, environment)
    ingest(more_places, calm, {}, "--append")
    first = Dataset.open(out).fingerprint
    moments = random.Random(f"append {place}")
    for _ in range(3):
        job = start_ingest(more_places, out, here, "--append")
        before = _written(out)
        deadline = time.monotonic() + 60
        while job.poll() is None and _written(out) <= before and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 0.4))
        kill_session(job)
        forget_clients()
        # Whatever it had done: a reader sees the old version whole, or the new one whole.
        assert len(Dataset.open(out)) in (40, 72)
    ingest(more_places, out, here, "--append")
    grown, expected = Dataset.open(out), Dataset.open(calm)
    assert grown.fingerprint == expected.fingerprint != first
    assert list_versions(out) == [1, 2]
    assert not exists(join(out, "appending"))
    for name in ("shards", "entries"):
        assert list_names(join(out, name)) == list_names(join(calm, name))
    assert verdict(out, here)["faults"] == []
    assert Dataset.open(out, fingerprint=first).manifest.version == 1


def _written(out):
    """Files of the new version and of its staging so far."""
    staged = list_names(join(out, "appending"))
    inner = [len(list_names(join(out, "appending", key, "entries"))) for key in staged]
    new = [name for name in list_names(join(out, "shards")) if name.startswith("v2-")]
    return sum(inner) + len(new)


def test_a_run_on_a_store_leaves_damage_out_and_says_so(archive, real_server, real_bucket):
    here = real_server.environment | PATIENCE
    data, output = join(real_bucket, "dataset"), join(real_bucket, "run")
    ingest(archive, data, real_server.environment)
    dataset = Dataset.open(data)
    place = dataset.locations([5]).to_pylist()[0]
    shard = bytearray(read_bytes(join(data, place["shard"])))
    shard[place["s2_l2a_10m.offset"] + 9] ^= 1
    write_bytes(join(data, place["shard"]), bytes(shard))
    found = verdict(data, here, check=1)["faults"]
    assert {(f["tile"], f["cell"]) for f in found if f["tile"]} == {
        (dataset.tile_ids[5], "s2_l2a_10m")
    }
    # Ten steps of four are an epoch of these 40 tiles: the damaged one is met.
    command = ["pretrain", *RUN, "--data", data, "--output", output]
    done = terrafm(*command, environment=here, timeout=900)
    assert "10 steps" in done.stdout
    records = [json.loads(x) for x in read_bytes(join(output, "quarantine.jsonl")).splitlines()]
    assert records
    assert {r["tile"] for r in records} == {dataset.tile_ids[5]}
    lines = [json.loads(x) for x in read_bytes(join(output, "metrics.jsonl")).splitlines()]
    assert lines[-1]["step"] == 10
    assert any(name.startswith("events.") for name in list_names(join(output, "tensorboard")))
    assert load_network(join(output, "checkpoints", "step_00000010"), "teacher")
    assert "nothing to do" in terrafm(*command, environment=here).stdout
