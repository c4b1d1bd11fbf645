"""Distillation of a frozen encoder: the loss, what is kept, wrong teachers."""

import itertools
import json
import re
from pathlib import Path

import objective_ranks
import pytest
import torch
from ranks import run_ranks
from safetensors.torch import load_file, save_file

import terrafm
from terrafm.config import load_config
from terrafm.data.samples.batch import normalise
from terrafm.data.samples.loader import make_batches
from terrafm.errors import UsageError
from terrafm.models.encoder import build_encoder
from terrafm.models.weights import WeightsContract, load_encoder, save_released, save_safetensors
from terrafm.train.checkpoints.store import load_checkpoint, load_encoder_state, save_checkpoint
from terrafm.train.driver.pretrain import dry_run, pretrain
from terrafm.train.metrics.flops import sample_flops
from terrafm.train.metrics.log import read_metrics
from terrafm.train.metrics.step_line import Monitor, metrics_line
from terrafm.train.step.engine import PlainEngine
from terrafm.train.step.feature_distillation import FrozenTeacher
from terrafm.train.worker.setup import TrainingSetup

SETTINGS = [
    "train.steps=4",
    "train.global_batch=4",
    "train.micro_batch=2",
    "data.global_size=32",
    "data.local_size=16",
    "data.local_crops=1",
    "model.drop_path=0",
    "optim.base_lr=0.1",
]
SENSORS = {"s1": 2, "s2_l1c": 12, "s2_l2a": 12}


def contract_of(model, sensors=tuple(SENSORS)):
    statistics = {
        m: {"mean": [0.1 * (1 + i) for i in range(SENSORS[m])], "std": [0.3] * SENSORS[m]}
        for m in sensors
    }
    return WeightsContract.build(model, statistics)


def write_teacher(path, model="terrafm_tiny", sensors=tuple(SENSORS)):
    torch.manual_seed(5)
    encoder = build_encoder(model)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    save_safetensors(str(path), encoder.state_dict(), contract_of(model, sensors))
    return str(path)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """Wider than its student, so that the projector's shape shows."""
    return write_teacher(tmp_path_factory.mktemp("teacher") / "small.safetensors", "terrafm_small")


def open_setup(dataset, teacher, *overrides):
    settings = [*SETTINGS, f"distil.teacher={teacher}", *overrides]
    return TrainingSetup.open(load_config("demo", settings), dataset)


def batches_of(setup, step=0):
    layout = setup.layout(0, 1)
    stream = make_batches(**setup.stream_options(layout, step))
    return list(itertools.islice(stream, layout.n_micro))


def tokens_of(encoder, image):
    """(1 + N, D) of one image of any sensors, with the encoder's own parts in their order."""
    rows = torch.zeros(1, dtype=torch.int64)
    tokens = encoder.patch_embed(image, dict.fromkeys(image, rows), 1)
    side = round(tokens.shape[1] ** 0.5)
    tokens = torch.cat([encoder.cls_token, tokens], 1) + encoder.position_embedding(side, side)
    for block in encoder.blocks:
        tokens = block(tokens)
    return encoder.norm(tokens)[0]


def images_of(crops, statistics):
    """Of each crop of one size, the pixels of the sensors that the student's view has drawn."""
    images = [{} for _ in range(crops.size)]
    for m, pixels in crops.pixels.items():
        ready = normalise(pixels, *statistics[m], m)
        for image, on, pixel in zip(crops.image[m].tolist(), crops.student[m], ready, strict=True):
            if on:
                images[image][m] = pixel[None].double()
    return images


@torch.no_grad()
@pytest.mark.parametrize("weights", [(1, 1), (1, 0)])
def test_the_loss_is_that_of_each_image_alone_in_float64(small_dataset, teacher, weights):
    """Student and teacher see the same sensors, each normalised by statistics of its own."""
    setup = open_setup(small_dataset, teacher, "train.global_batch=2")
    step = setup.plain_distillation()
    (batch,) = batches_of(setup)
    batch.samples.weight = torch.tensor(weights, dtype=torch.float32)
    with torch.enable_grad():
        found = step.forward_backward([batch], setup.schedules.at(0)).means()
    frozen = FrozenTeacher.load(setup.config)
    student, wide = step.engine.student.double(), frozen.encoder.double()
    by_cls, by_patch, drawn = [0.0, 0.0], [0.0, 0.0], set()
    for crops in (batch.global_crops, batch.local_crops):
        pairs = zip(
            images_of(crops, setup.statistics), images_of(crops, frozen.statistics), strict=True
        )
        for number, (ours, theirs) in enumerate(pairs):
            drawn.add(tuple(sorted(ours)))
            s, t = tokens_of(student.encoder, ours), tokens_of(wide, theirs)
            sample = number % 2
            error = ((student.head["cls"](s[0]) - t[0]) ** 2).mean().item()
            by_cls[sample] += error / 3  # Two global crops and a local one.
            if crops is batch.global_crops:
                errors = ((student.head["patch"](s[1:]) - t[1:]) ** 2).mean(-1)
                by_patch[sample] += errors.mean().item() / 2
    assert len(drawn) > 1
    count = sum(weights)
    expected = {
        "cls_error": sum(w * e for w, e in zip(weights, by_cls, strict=True)) / count,
        "patch_error": sum(w * e for w, e in zip(weights, by_patch, strict=True)) / count,
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-4), name
    assert found["loss"] == pytest.approx(sum(expected.values()), rel=1e-4)


def train(setup, step, number):
    settings = setup.schedules.at(number)
    statistics = step.forward_backward(batches_of(setup, number), settings)
    assert step.finish(settings)[0]
    return statistics


def test_it_is_learned_and_a_checkpoint_goes_on_bit_for_bit(small_dataset, teacher, tmp_path):
    setup = open_setup(small_dataset, teacher, "optim.teacher_momentum=0.5")
    straight = setup.plain_distillation()
    before = {n: p.clone() for n, p in straight.teacher.named_parameters()}
    for number in range(2):
        train(setup, straight, number)
    uri = save_checkpoint(str(tmp_path), setup.state(2, straight.engine.state(), straight))
    # The average of the student is what is exported, of the student's size and not the teacher's.
    average = dict(straight.teacher.named_parameters())
    assert not torch.equal(average["encoder.blocks.0.mlp.fc1.weight"], straight.engine.state()
                           .student["encoder.blocks.0.mlp.fc1.weight"])  # fmt: skip
    assert not torch.equal(average["head.cls.weight"], before["head.cls.weight"])
    exported = load_encoder_state(uri, "teacher")
    assert {k: t.shape for k, t in exported.items()} == {
        k: t.shape for k, t in build_encoder("terrafm_tiny").state_dict().items()
    }
    config = setup.config

    def plain_engine(student):
        return PlainEngine(student, config.optim, precision="float32", device=torch.device("cpu"))

    resumed = setup.distillation(plain_engine, load_checkpoint(uri), torch.device("cpu"))
    for number in (2, 3):
        left, right = train(setup, resumed, number), train(setup, straight, number)
        assert left.means() == right.means()
    for name, tensor in straight.engine.state().student.items():
        assert torch.equal(resumed.engine.state().student[name], tensor), name
    for name, parameter in resumed.teacher.named_parameters():
        assert torch.equal(parameter, dict(straight.teacher.named_parameters())[name]), name
    frozen = load_encoder(teacher).state_dict()
    for name, tensor in straight._frozen.state_dict().items():
        assert torch.equal(tensor, frozen[name]), name
    with pytest.raises(UsageError, match=r"distil\.teacher was .*, now None"):
        TrainingSetup.open(load_config("demo", SETTINGS), small_dataset).check_continues(
            load_checkpoint(uri).record, uri
        )
    # A checkpoint's own file is no weights.
    with pytest.raises(UsageError, match="file of a checkpoint"):
        load_encoder(f"{uri}/student.safetensors")


def test_a_teacher_is_imitated(small_dataset, teacher):
    """The same batch again and again: half of the error is gone."""
    setup = open_setup(small_dataset, teacher, "train.steps=60", "optim.base_lr=0.3")
    step, batches = setup.plain_distillation(), batches_of(setup)
    losses = []
    for number in range(60):
        settings = setup.schedules.at(number)
        losses.append(step.forward_backward(batches, settings).means()["loss"])
        assert step.finish(settings)[0]
    assert losses[-1] < 0.5 * losses[0]


def test_a_line_of_the_metrics_has_its_terms_and_no_alarm(small_dataset, teacher):
    setup = open_setup(small_dataset, teacher)
    step = setup.plain_distillation()
    assert step.frozen_model == "terrafm_small"
    monitor = Monitor(setup.config, setup.schedules, 1, torch.device("cpu"), step.frozen_model)
    statistics = train(setup, step, 0)
    monitor.timer.step_done(4)
    settings = setup.schedules.at(0)
    line = metrics_line(100, statistics, settings, step, grad_norm=1.0, skipped=0)
    line = monitor.complete(line | {"loss": 50.0})
    assert {"cls_error", "patch_error", "effective_rank", "tflops_per_worker"} <= line.keys()
    assert not {"teacher_entropy", "center_norm", "prototype_perplexity", "alarm"} & line.keys()


def test_operations_are_those_that_pytorch_counts(small_dataset, teacher):
    from torch.utils.flop_counter import FlopCounterMode

    one = ["data.modalities=[s2_l2a]", "train.micro_batch=4"]
    setup = open_setup(small_dataset, teacher, *one)
    step, (batch,) = setup.plain_distillation(), batches_of(setup)
    with FlopCounterMode(display=False) as counter:
        step.forward_backward([batch], setup.schedules.at(0))
    found = 4 * sample_flops(setup.config, "terrafm_small").total
    assert found == pytest.approx(counter.get_total_flops(), rel=0.02)


def look(dataset, teacher, tmp_path, *overrides):
    settings = [*SETTINGS, f"distil.teacher={teacher}", *overrides]
    return dry_run(load_config("demo", settings), dataset, str(tmp_path / "run"), measure=False)


def test_the_estimate_counts_the_teacher(small_dataset, teacher, tmp_path):
    size = sum(p.numel() for p in load_encoder(teacher).parameters())
    small = write_teacher(tmp_path / "tiny.safetensors")
    less = sum(p.numel() for p in load_encoder(small).parameters())
    with_it = look(small_dataset, teacher, tmp_path)
    figures = look(small_dataset, small, tmp_path)
    heads = 2 * (384 - 96) * 97
    assert with_it["parameters"] - figures["parameters"] == heads
    # The teacher once; the projectors as weights, gradients, two moments, average and ZeRO's.
    assert with_it["memory_state"] - figures["memory_state"] == 4 * (size - less) + 4 * 7 * heads


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: str(folder / "none.safetensors"), r"none\.safetensors do not exist"),
        (lambda folder: write_teacher(folder / "a.safetensors", sensors=("s1", "s2_l2a")),
         r"was trained on s1, s2_l2a and does not know s2_l1c: take another"),
        (lambda folder: patched(folder, 8), r"conv2d_.*the model needs \(288, \d+, 16, 16\)"),
        (lambda folder: stated(folder, 8), r"patches of 8 pixels, the student of 16"),
        (lambda folder: released(folder), r"has no fusion.*set data\.fusion=false"),
        (lambda folder: noise(folder), "cls_token|not TerraFM weights"),
    ],
)  # fmt: skip
def test_a_wrong_teacher_is_one_line_before_ray_starts(
    make, words, small_dataset, tmp_path, monkeypatch, refused
):
    """At the command line, where Ray cannot even be asked for."""
    import terrafm.ray.runtime

    def never(*_, **__):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(terrafm.ray.runtime, "ensure_ray", never)
    line = refused(
        *("pretrain", "--config", "demo", "--data", small_dataset, "--output", tmp_path / "run"),
        *(word for s in (*SETTINGS, f"distil.teacher={make(tmp_path)}") for word in ("--set", s)),
    )
    # That nothing is there is seen before anything is loaded.
    assert ("distil.teacher: " in line) == ("do not exist" not in line)
    assert re.search(words, line), line
    assert not (tmp_path / "run").exists()


def patched(folder, side):
    uri = write_teacher(folder / "a.safetensors")
    state = load_file(uri)
    for m in SENSORS:
        name = f"patch_embed.conv2d_{m}.weight"
        state[name] = state[name][..., :side, :side].contiguous()
    save_file(state, uri)
    return uri


def stated(folder, side):
    encoder = build_encoder("terrafm_tiny")
    contract = contract_of("terrafm_tiny").model_copy(update={"patch_size": side})
    save_safetensors(str(folder / "b.safetensors"), encoder.state_dict(), contract)
    return str(folder / "b.safetensors")


def released(folder):
    encoder = build_encoder("terrafm_tiny")
    save_released(str(folder / "c.pth"), encoder.state_dict(), contract_of("terrafm_tiny"))
    return str(folder / "c.pth")


def noise(folder):
    save_file({"weight": torch.zeros(3)}, str(folder / "d.safetensors"))
    return str(folder / "d.safetensors")


def test_weights_without_statistics_get_those_of_the_dataset(
    small_dataset, tmp_path, caplog, monkeypatch
):
    uri = released(tmp_path)
    (tmp_path / "c.json").unlink()
    alone = ["data.fusion=false"]
    assert look(small_dataset, uri, tmp_path, *alone)["steps"] == 4
    assert "states no statistics of its input" in caplog.text
    setup = open_setup(small_dataset, uri, *alone)
    assert FrozenTeacher.load(setup.config).statistics is None
    means = train(setup, setup.plain_distillation(), 0).means()
    assert means["loss"] > 0


def test_the_contract_of_a_distilled_student_is_its_own(small_dataset, teacher):
    setup = open_setup(small_dataset, teacher)
    assert setup.contract.model == "terrafm_tiny"
    saved = json.loads(setup.contract.to_json())
    assert set(saved["modalities"]) == set(SENSORS)


@pytest.fixture(scope="module")
def with_frozen_parts(teacher, tmp_path_factory):
    """Overrides of a distillation into weights of which parts are frozen."""
    start = write_teacher(tmp_path_factory.mktemp("start") / "start.safetensors")
    return [
        f"model.init={start}",
        "model.frozen=[patch_embed, blocks:1]",
        f"distil.teacher={teacher}",
    ]


@pytest.fixture(
    scope="module", params=[2, pytest.param(1, marks=pytest.mark.slow)], ids="{}_ranks".format
)
def ranks(request, small_dataset, with_frozen_parts, tmp_path_factory):
    folder, script = tmp_path_factory.mktemp("ranks"), Path(objective_ranks.__file__)
    return run_ranks(script, request.param, folder, small_dataset, *with_frozen_parts)


@pytest.fixture(scope="module")
def alone(small_dataset, with_frozen_parts):
    return objective_ranks.run(small_dataset, with_frozen_parts)


@pytest.mark.parametrize("stage", objective_ranks.STAGES)
def test_ranks_of_every_stage_distil_like_one_process(ranks, alone, stage, with_frozen_parts):
    by_rank, student = ranks[stage]
    for step, expected in enumerate(alone[0]):
        assert expected.keys() == {"loss", "cls_error", "patch_error"}
        for name, value in expected.items():
            mean = sum(means[step][name] for means in by_rank) / len(by_rank)
            assert mean == pytest.approx(value, rel=2e-5), (step, name)
    start = load_encoder(with_frozen_parts[0].partition("=")[2]).state_dict()
    for name, tensor in alone[1].items():
        apart = float((student[name] - tensor).norm())
        assert apart <= 1e-3 * (1 + float(tensor.norm())), (name, apart)
        if name.startswith("encoder.blocks.0."):
            assert torch.equal(student[name], start[name.removeprefix("encoder.")]), name


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_of_two_workers_distils_with_frozen_parts_and_goes_on(
    small_dataset, with_frozen_parts, tmp_path, local_ray
):
    """ZeRO stage 3, which holds frozen weights in pieces too; gone on with at stage 1."""
    start = with_frozen_parts[0].partition("=")[2]
    output = str(tmp_path / "run")
    settings = [
        *SETTINGS,
        *with_frozen_parts,
        "train.checkpoint_every=2",
        "train.log_every=1",
        "data.cpus_per_worker=0.4",
    ]
    first = load_config(
        "demo", [*settings, "train.steps=2", "train.workers=2", "train.zero_stage=3"]
    )
    pretrain(first, small_dataset, output)
    result = pretrain(
        load_config("demo", [*settings, "train.zero_stage=1"]), small_dataset, output, extend=True
    )
    assert (result.steps, result.resumed_from) == (4, 2)
    lines = read_metrics(output)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(line["patch_error"] > 0 and "teacher_entropy" not in line for line in lines)
    exported = load_encoder(result.exported[0])
    before = load_encoder(start).state_dict()
    for name, tensor in exported.state_dict().items():
        part = name.startswith(("patch_embed.", "blocks.0."))
        still = part and not name.startswith("patch_embed.fusion.")
        assert torch.equal(tensor, before[name]) == still, name
    assert exported.contract.model == "terrafm_tiny"
    page = tmp_path / "page.html"
    terrafm.report([output], str(page))
    assert "Error of the distilled tokens" in page.read_text()
