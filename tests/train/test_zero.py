"""ZeRO stages 0 to 3 against a plain AdamW, over worker counts, resumes and NaN.

Also the contract test for the private names of DeepSpeed that terrafm.train.step.zero uses.
"""

from pathlib import Path

import pytest
import torch
from ranks import run_ranks

from terrafm.config import OptimConfig
from terrafm.train.step.engine import PlainEngine

SCRIPT = Path(__file__).with_name("zero_ranks.py")
STAGES = (0, 1, 2, 3)


def load_script():
    import importlib.util

    spec = importlib.util.spec_from_file_location("zero_ranks", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    """The same six steps with plain PyTorch in one process."""
    ranks = load_script()
    results = {}
    cases = {"straight": (None, {})}
    cases |= {n: (ranks.poisoned_step(n), options) for n, options in ranks.MORE_CASES.items()}
    for name, (poison_at, options) in cases.items():
        student, teacher = ranks.network(name), ranks.network().requires_grad_(False)
        engine = PlainEngine(
            student,
            OptimConfig(clip_grad=0.5, **options),
            precision="float32",
            device=torch.device("cpu"),
        )
        norms = ranks.train(engine, teacher, 0, ranks.STEPS, 0, 1, poison_at)
        state = engine.state()
        results[name] = {
            "student": ranks.flat(state.student),
            "optimizer": ranks.flat(state.optimizer),
            "teacher": ranks.flat(dict(teacher.named_parameters())),
            "norms": norms,
        }
    return results


@pytest.fixture(
    scope="module", params=[2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))]
)
def world_size(request):
    return request.param


@pytest.fixture(scope="module")
def results(world_size, tmp_path_factory):
    return run_ranks(SCRIPT, world_size, tmp_path_factory.mktemp("ranks"))


def assert_close(found, expected):
    for part in ("student", "optimizer", "teacher"):
        torch.testing.assert_close(found[part], expected[part], rtol=1e-5, atol=2e-6)
    wanted = expected["norms"][-len(found["norms"]) :]
    assert found["norms"] == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_like_plain_adamw(results, reference, stage):
    assert_close(results[f"straight_{stage}"], reference["straight"])


def test_small_parameters_that_stay_whole_train_like_those_in_pieces(results, reference):
    assert_close(results["persistent"], reference["straight"])


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_at_the_same_stage_is_bit_for_bit(results, world_size, stage):
    straight, resumed = results[f"straight_{stage}"], results[f"resumed_{stage}_{stage}"]
    # Shards of three ranks start at odd addresses, where vectorised sums may round otherwise.
    slack = 0.0 if world_size < 3 else 1e-7
    for part in ("student", "optimizer", "teacher"):
        torch.testing.assert_close(straight[part], resumed[part], rtol=0, atol=slack)


@pytest.mark.parametrize("stage", STAGES)
def test_resuming_at_another_stage_goes_on_the_same_way(results, reference, stage):
    assert_close(results[f"resumed_{(stage + 1) % 4}_{stage}"], reference["straight"])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", ["poisoned", "clipped_poisoned", "frozen_poisoned"])
def test_nan_on_one_rank_changes_nothing_on_any(results, reference, case, stage):
    poisoned = results[f"{case}_{stage}"]
    assert poisoned["norms"][4] == -1.0
    assert_close(poisoned, reference[case])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_clips_single_parameters_like_plain_pytorch(results, reference, stage):
    assert_close(results[f"clipped_{stage}"], reference["clipped"])


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_gives_layers_their_rates(results, reference, stage):
    assert_close(results[f"layered_{stage}"], reference["layered"])
    apart = reference["layered"]["student"] - reference["straight"]["student"]
    assert float(apart.abs().max()) > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_leaves_a_frozen_part_alone_and_goes_on_at_another(results, reference, stage):
    assert_close(results[f"frozen_{stage}"], reference["frozen"])
    assert_close(results[f"frozen_resumed_{stage}"], reference["frozen"])
    apart = reference["frozen"]["student"] - reference["clipped"]["student"]
    assert float(apart.abs().max()) > 1e-3


def test_a_frozen_part_has_no_gradient_and_no_moments():
    ranks = load_script()
    student, teacher = ranks.network("frozen"), ranks.network().requires_grad_(False)
    engine = PlainEngine(student, OptimConfig(), precision="float32", device=torch.device("cpu"))
    ranks.train(engine, teacher, 0, 4, 0, 1)
    state, before = engine.state(), dict(ranks.network().named_parameters())
    assert student.patch_embed.weight.grad is None
    for name in ("patch_embed.weight", "patch_embed.bias"):
        assert torch.equal(state.student[name], before[name])
        assert torch.equal(dict(teacher.named_parameters())[name], before[name])
    assert not torch.equal(state.student["norm.weight"], before["norm.weight"])
    assert not [name for name in state.optimizer if "patch_embed" in name]


def test_gradients_were_clipped_in_some_step(reference):
    assert max(reference["straight"]["norms"]) > 0.5
    apart = reference["clipped"]["student"] - reference["straight"]["student"]
    assert float(apart.abs().max()) > 1e-3


def test_frozen_prototypes_keep_no_trace_of_the_frozen_steps():
    ranks = load_script()
    student, teacher = ranks.network(), ranks.network().requires_grad_(False)
    engine = PlainEngine(student, OptimConfig(), precision="float32", device=torch.device("cpu"))
    ranks.train(engine, teacher, 0, 2, 0, 1)
    state = engine.state()
    before = dict(ranks.network().named_parameters())["last_layer.weight"]
    assert torch.equal(state.student["last_layer.weight"], before)
    assert not state.optimizer["exp_avg.last_layer.weight"].any()
    assert not state.optimizer["exp_avg_sq.last_layer.weight"].any()
    assert state.optimizer["step.prototypes"] == 0
    assert state.optimizer["step.decay"] == 2
