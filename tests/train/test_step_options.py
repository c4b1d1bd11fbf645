"""Options of the step change how it is computed, not what: parity with the eager step."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# The ranks beside this file; tests are not a package.
sys.path.insert(0, str(Path(__file__).parent))
from golden_curve import OVERRIDES
from option_ranks import CASES, STAGES, run

from terrafm.config import load_config
from terrafm.data.samples.loader import make_batches
from terrafm.errors import UsageError
from terrafm.train.step.distillation import build_student_and_teacher
from terrafm.train.worker.setup import TrainingSetup

SCRIPT = Path(__file__).with_name("option_ranks.py")

needs_compiler = pytest.mark.skipif(
    not any(shutil.which(name) for name in ("g++", "c++", "clang++")),
    reason="torch.compile needs a C++ compiler on a CPU",
)


@pytest.fixture(scope="module")
def eager(small_dataset):
    return run(small_dataset, [])


def assert_same(found, expected, tolerance):
    losses, student = found
    assert losses == pytest.approx(expected[0], rel=tolerance)
    assert list(student) == list(expected[1])
    for name, tensor in student.items():
        # Of the whole tensor: AdamW moves a weight whose gradient is rounding noise by the full
        # rate, and which way depends on the processor.
        reference = expected[1][name]
        apart = float((tensor - reference).norm())
        assert apart <= tolerance * (1 + float(reference.norm())), f"{name}: {apart}"


def test_activation_checkpointing_is_bit_for_bit(eager, small_dataset):
    """The masks of drop path (0.1 here) are functions of keys: a second forward pass has them."""
    losses, student = run(small_dataset, CASES["checkpointing"])
    assert losses == eager[0]
    for name, tensor in student.items():
        assert torch.equal(tensor, eager[1][name]), name


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("case", ["compiled", "both"])
def test_compiled_blocks_agree_with_eager_ones(eager, small_dataset, case):
    assert_same(run(small_dataset, CASES[case]), eager, 1e-5)


@needs_compiler
@pytest.mark.slow
def test_there_is_one_graph_of_each_block_and_none_after_the_first_step(small_dataset):
    """Student and teacher, a middle block and the last one: four graphs, whatever was drawn."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    setup = TrainingSetup.open(
        load_config("demo", [*OVERRIDES, "train.compile=true"]), small_dataset
    )
    distillation = setup.plain_distillation()
    layout = setup.layout(0, 1)
    batches = make_batches(**setup.stream_options(layout, 0))
    graphs, drawn = [], set()
    for step in range(6):
        micro = list(itertools.islice(batches, layout.n_micro))
        drawn |= {len(x) for each in micro for x in each.global_crops.pixels.values()}
        distillation.forward_backward(micro, setup.schedules.at(step))
        assert distillation.finish(setup.schedules.at(step))[0]
        graphs.append(counters["stats"]["unique_graphs"])
    assert len(drawn) > 3
    assert graphs == [4] * 6
    assert not counters["graph_break"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        "plain",
        "checkpointing",
        pytest.param("compiled", marks=needs_compiler),
        pytest.param("both", marks=needs_compiler),
    ],
)
def test_every_zero_stage_takes_the_options(eager, small_dataset, case, tmp_path):
    output = tmp_path / "results.pt"
    done = subprocess.run(
        [
            *(sys.executable, str(SCRIPT), small_dataset),
            *(str(tmp_path / "rendezvous"), str(output), case),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "LOCAL_RANK": "0"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = torch.load(output, weights_only=False)
    for stage in STAGES:
        assert_same(results[case, stage], eager, 1e-5)


def test_attention_is_computed_in_a_fused_kernel():
    from terrafm.models.encoder import build_encoder

    encoder = build_encoder("terrafm_tiny")
    with torch.profiler.profile() as seen:
        encoder(torch.zeros(1, 2, 32, 32), "s1").sum().backward()
    ran = {event.key for event in seen.key_averages()}
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in ran
    assert "aten::_scaled_dot_product_flash_attention_for_cpu_backward" in ran


def test_a_machine_without_a_compiler_is_one_line(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda _: None)
    config = load_config("demo", ["train.compile=true"])
    with pytest.raises(UsageError, match=r"train.compile needs a compiler .* install g\+\+, or"):
        build_student_and_teacher(config)
