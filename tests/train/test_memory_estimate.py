"""What `--dry-run` says of memory, against what a worker under DeepSpeed really takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from terrafm.config import load_config
from terrafm.train.driver.estimate import estimate, state_bytes
from terrafm.train.step.optimizer import reduce_bucket
from terrafm.train.worker.setup import TrainingSetup

# Little work, and a head of 17 M parameters: memory that stands out of the noise.
SETTINGS = (
    "train.steps=2",
    "head.num_prototypes=65536",
    "train.global_batch=4",
    "train.micro_batch=2",
    "data.local_crops=2",
)


def test_the_state_is_counted_once():
    """Floats of weights, gradients, moments and teacher; with ZeRO its copy and its buffers."""
    million = 10**6
    assert state_bytes(million, 0, 1) == 4 * million * (1 + 1 + 2 + 1)
    assert state_bytes(million, 1, 1) == 4 * million * (1 + 1 + 2 + 1 + 1 + 1)
    assert state_bytes(million, 1, 4) == 4 * million * (1 + 1 + 0.5 + 1 + 0.25 + 1)
    assert state_bytes(million, 2, 4) == 4 * million * (1 + 0.25 + 0.5 + 1 + 0.25 + 1)
    assert state_bytes(million, 3, 4) == 4 * million * (1.25 + 0.25 + 0.5 + 1 + 0.25 + 1)
    # Of a large one both buffers are used, and are as large for any.
    large = 300 * million
    assert state_bytes(large, 1, 1) == 4 * (large * (1 + 1 + 2 + 1 + 1) + 100 * million)
    assert state_bytes(large, 3, 1) == 4 * (large * (2 + 1 + 2 + 1 + 1) + 50 * million)


def test_a_buffer_is_as_large_as_the_gradients_and_200_megabytes_at_most():
    assert reduce_bucket(3_000_000) == 3_000_000
    assert 4 * reduce_bucket(10**9) == 200_000_000


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_estimate_is_near_the_resident_memory_of_a_worker(stage, small_dataset, tmp_path):
    overrides = [*SETTINGS, f"train.zero_stage={stage}"]
    setup = TrainingSetup.open(load_config("demo", overrides), small_dataset)
    figures = estimate(setup)
    assert figures["memory_per_worker"] == figures["memory_state"] + figures["memory_activations"]
    script = Path(__file__).with_name("memory_rank.py")
    output = tmp_path / "memory.json"
    given = [script, small_dataset, tmp_path / "rendezvous", output, stage, *overrides]
    subprocess.run(
        [sys.executable, *map(str, given)],
        env=os.environ | {"LOCAL_RANK": "0", "OMP_NUM_THREADS": "1"},
        check=True,
    )
    measured = json.loads(output.read_text())["bytes"]
    assert 0.9 * measured <= figures["memory_per_worker"] <= 1.1 * measured
