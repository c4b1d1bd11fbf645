"""What may differ where a run goes on, and what its length means to the schedules."""

import json
import shutil
from pathlib import Path

import pytest
import ray

from terrafm.config import load_config, resume_policies
from terrafm.errors import UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import save_safetensors
from terrafm.train.checkpoints.store import load_network, save_checkpoint
from terrafm.train.driver.events import read_events
from terrafm.train.driver.pretrain import dry_run, pretrain
from terrafm.train.metrics.log import read_metrics
from terrafm.train.worker.setup import TrainingSetup

STEPS = 6
BASE = (
    f"train.steps={STEPS}",
    "train.checkpoint_every=3",
    "train.global_batch=4",
    "train.micro_batch=4",
    "head.num_prototypes=32",
    "head.hidden_dim=32",
    "optim.warmup_epochs=0",
)


@pytest.fixture(scope="module")
def halfway(small_dataset, tmp_path_factory):
    """A run of six steps that has done three, made without Ray."""
    output = tmp_path_factory.mktemp("resume") / "run"
    setup = TrainingSetup.open(load_config("demo", BASE), small_dataset)
    distillation = setup.plain_distillation()
    state = setup.state(3, distillation.engine.state(), distillation)
    save_checkpoint(str(output / "checkpoints"), state)
    return str(output)


def look(halfway, small_dataset, *overrides, **options):
    config = load_config("demo", [*BASE, *overrides])
    return dry_run(config, small_dataset, halfway, measure=False, **options)


@pytest.mark.parametrize(
    "override",
    [
        "train.standby=true",
        "train.workers=3",
        "train.micro_batch=2",
        "train.checkpoint_every=2",
        "train.gpu=no",
        "train.cpus_per_worker=2",
        "data.cache_dir=/elsewhere/cache",
        "data.cache_bytes=1000",
        "data.on_damage=quarantine",
        "validation.samples=20",
        "ingest.max_nodata=0.1",
        "tune.trials=3",
        # As many as before, said in another way: 11 tiles in batches of 4.
        "train.epochs=2.18",
    ],
)
def test_what_changes_no_result_may_differ(override, halfway, small_dataset):
    more = ["train.steps=null"] if "epochs" in override else []
    assert look(halfway, small_dataset, *more, override)["steps_done"] == 3


@pytest.mark.parametrize(
    "override",
    [
        "train.seed=1",
        "train.global_batch=8",
        "train.precision=bf16",
        "optim.base_lr=0.01",
        "loss.alpha=1",
        "model.drop_path=0.2",
        "data.local_crops=3",
        "data.water_keep=0.5",
        "data.crop_on=device",
    ],
)
def test_what_would_change_the_result_is_refused_by_its_key(override, halfway, small_dataset):
    key = override.partition("=")[0]
    with pytest.raises(UsageError, match=rf"{key} was .*, now ") as caught:
        look(halfway, small_dataset, override)
    assert "\n" not in str(caught.value)


def test_the_page_of_the_run_folder_lists_what_may_differ():
    page = (Path(__file__).parents[2] / "docs/run_folder.md").read_text()
    for policy in ("free", "told", "extend"):
        (row,) = (line for line in page.splitlines() if line.startswith(f"| {policy} |"))
        keys = {key for key, found in resume_policies().items() if found == policy}
        whole = ("ingest", "validation", "tune") if policy == "free" else ()
        named = {f"`{k}`" for k in keys if k.partition(".")[0] not in whole}
        named |= {f"all of `{section}`" for section in whole}
        assert set(row.split("|")[2].strip().split(", ")) == named


@pytest.mark.parametrize(
    ("override", "steps"),
    [("train.steps=10", 10), ("train.steps=5", 5), ("train.steps=null", 412)],
)
def test_another_length_is_refused_unless_it_is_asked_for(override, steps, halfway, small_dataset):
    with pytest.raises(UsageError, match="--extend") as caught:
        look(halfway, small_dataset, override)
    line = str(caught.value)
    assert f"was to take {STEPS} steps and has done 3" in line
    assert f"with {steps}, " in line
    assert "\n" not in line
    found = look(halfway, small_dataset, override, extend=True)
    assert (found["steps"], found["steps_done"]) == (steps, 3)


@pytest.mark.parametrize("extend", [False, True])
def test_fewer_steps_than_are_done_are_one_line_with_both_numbers(extend, halfway, small_dataset):
    with pytest.raises(UsageError, match=r"has done 3 steps, and train.steps asks for 2 in all"):
        look(halfway, small_dataset, "train.steps=2", extend=extend)


def test_extend_of_a_run_as_long_as_before_is_nothing_new(halfway, small_dataset):
    assert look(halfway, small_dataset, extend=True)["steps_done"] == 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory, checkpoint):
    """Weights to start from; the contract's statistics do not matter."""
    from terrafm.export import export_checkpoint

    folder = tmp_path_factory.mktemp("init")
    export_checkpoint(checkpoint, str(folder / "w.safetensors"), "safetensors")
    return folder / "w.safetensors"


def test_a_run_that_is_past_its_start_needs_no_weights_to_start_from(
    weights, small_dataset, tmp_path
):
    """Gone, moved, of another name, or none: the checkpoint has every tensor."""
    began = tmp_path / "began.safetensors"
    shutil.copy(weights, began)
    config = load_config("demo", [*BASE, f"model.init={began}"])
    setup = TrainingSetup.open(config, small_dataset)
    distillation = setup.plain_distillation()
    output = str(tmp_path / "run")
    save_checkpoint(
        f"{output}/checkpoints", setup.state(3, distillation.engine.state(), distillation)
    )
    began.unlink()
    for init in (str(began), str(tmp_path / "moved.safetensors"), "null", "relative.safetensors"):
        found = look(output, small_dataset, f"model.init={init}")
        assert found["steps_done"] == 3
    # Another run of this name needs them.
    with pytest.raises(UsageError, match=r"began\.safetensors do not exist"):
        look(str(tmp_path / "fresh"), small_dataset, f"model.init={began}")


def test_weights_of_another_model_are_found_before_a_run_and_in_its_dry_run(
    small_dataset, tmp_path, checkpoint
):
    from terrafm.train.checkpoints.store import read_record

    small = build_encoder("terrafm_small")
    contract = TrainingSetup.open(load_config("demo", BASE), small_dataset).contract
    assert read_record(checkpoint)["contract"]["model"] == contract.model
    uri = str(tmp_path / "small.safetensors")
    save_safetensors(uri, small.state_dict(), contract)
    with pytest.raises(UsageError, match=r"the model needs"):
        look(str(tmp_path / "run"), small_dataset, f"model.init={uri}")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_extended_run_goes_on_with_the_longer_schedules_and_says_so(
    small_dataset, tmp_path, caplog
):
    """Case of three kinds: extended when it is done, gone on again, and asked for too little."""
    output = str(tmp_path / "run")
    weights = tmp_path / "w.safetensors"
    setup = TrainingSetup.open(load_config("demo", BASE), small_dataset)
    save_safetensors(str(weights), build_encoder("terrafm_tiny").state_dict(), setup.contract)
    base = [*BASE, "train.log_every=1"]
    try:
        pretrain(load_config("demo", [*base, f"model.init={weights}"]), small_dataset, output)
        weights.unlink()
        longer = load_config("demo", [*base, "train.steps=9"])
        with pytest.raises(UsageError, match="--extend"):
            pretrain(longer, small_dataset, output)
        result = pretrain(longer, small_dataset, output, extend=True)
        assert (result.steps, result.resumed_from) == (9, 6)
        # Of the new length now: nothing has to be asked for any more.
        again = pretrain(longer, small_dataset, output)
    finally:
        ray.shutdown()
    assert (again.steps, again.resumed_from) == (9, 9)
    (event,) = [e for e in read_events(output) if e["event"] == "extended"]
    assert (event["step"], event["steps_before"], event["steps"]) == (6, 6, 9)
    longer_setup = TrainingSetup.open(longer, small_dataset)
    lines = {line["step"]: line for line in read_metrics(output)}
    for key in ("lr", "weight_decay"):
        before = getattr(setup.schedules.at(5), key)
        after = getattr(longer_setup.schedules.at(6), key)
        assert event[key] == pytest.approx([before, after])
        assert (lines[6][key], lines[7][key]) == (pytest.approx(before), pytest.approx(after))
    assert "the run takes 9 steps, 6 before; from step 6 on: learning rate" in caplog.text
    assert f"model.init was {weights}, now None" in caplog.text
    assert "--extend" in Path(output, "config.yaml").read_text().splitlines()[0]
    record = json.loads(Path(result.checkpoint, "state.json").read_text())
    assert record["config"]["train"]["steps"] == 9
    assert load_network(result.checkpoint, "teacher")
