"""Reports of people who train and use models, by the folders of cases/training."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import terrafm
from terrafm.config import load_config
from terrafm.export import ExportOptions, export_checkpoint
from terrafm.train.checkpoints.store import save_checkpoint
from terrafm.train.worker.setup import TrainingSetup

CLI = [sys.executable, "-m", "terrafm"]
SMALL = (
    "train.global_batch=8",
    "train.micro_batch=8",
    "head.num_prototypes=64",
    "head.hidden_dim=32",
    "train.checkpoint_every=3",
)


@pytest.fixture(scope="module")
def weights(checkpoint, tmp_path_factory):
    """As the cases name it: weights/terrafm_tiny.safetensors of a run."""
    folder = tmp_path_factory.mktemp("cases") / "weights"
    written, _ = export_checkpoint(checkpoint, str(folder), "safetensors")
    assert Path(written[0]).name == "terrafm_tiny.safetensors"
    return Path(written[0])


def run_script(case, folder, *arguments):
    """A case's own script, in a folder that has what it asks for."""
    environment = os.environ | {"PYTHONPATH": str(Path(terrafm.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, case / "run.py", *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=500,
    )  # fmt: skip


def settings(*overrides):
    return [part for setting in (*SMALL, *overrides) for part in ("--set", setting)]


def pretrain(data, output, *overrides):
    given = ("pretrain", "--config", "demo", "--data", data, "--output", output)
    return [*given, *settings(*overrides)]


@pytest.fixture(scope="module")
def finished(small_dataset, tmp_path_factory):
    """(steps, *settings) -> a new folder of a run that has done so many of six steps."""

    def make(steps=6, *overrides):
        config = load_config("demo", [*SMALL, "train.steps=6", *overrides])
        setup = TrainingSetup.open(config, small_dataset)
        distillation = setup.plain_distillation()
        state = setup.state(steps, distillation.engine.state(), distillation)
        output = tmp_path_factory.mktemp("run") / "run"
        save_checkpoint(str(output / "checkpoints"), state)
        return output

    return make


def test_02_integer_images_are_refused_by_a_line_that_says_float(cases, weights):
    cases("training/02")
    contract = terrafm.load_model("terrafm_tiny", weights=weights).contract
    generator = torch.Generator().manual_seed(0)
    s1 = torch.randint(-30, 0, (1, 2, 64, 64), generator=generator)
    s2 = torch.randint(0, 3, (1, 12, 64, 64), generator=generator)
    for dtype in (torch.int8, torch.int16, torch.int32, torch.int64):
        with pytest.raises(ValueError, match="give dB as float"):
            contract.normalise(s1.to(dtype), "s1")
        with pytest.raises(ValueError, match="give reflectance as float"):
            contract.normalise(s2.to(dtype), "s2_l2a")
    # As rasterio reads Sentinel-2, and as it is right.
    numbers = torch.from_numpy((s2 * 1000).numpy().astype(np.uint16))
    with pytest.raises(ValueError, match=r"uint16.*images\.float\(\) \* 0\.0001"):
        contract.normalise(numbers, "s2_l2a")
    right = contract.normalise(numbers.float() * 1e-4, "s2_l2a")
    assert right.abs().max() < 10


def test_03_an_infinite_pixel_is_a_missing_one(cases, weights):
    folder = cases("training/03")
    done = run_script(folder, weights.parent.parent)
    assert done.returncode == 0, done.stderr
    assert "nan" not in done.stdout.split("embedding")[1].split("the encoder")[0]
    assert "the encoder by itself: s1 images hold NaN or infinite pixels" in done.stdout
    model = terrafm.load_model("terrafm_tiny", weights=weights)
    images = torch.full((1, 2, 64, 64), -12.0)
    embeddings = []
    for missing in (torch.nan, -torch.inf, torch.inf):
        images[0, 0, 3, 3] = missing
        pixels = model.contract.normalise(images, "s1")
        assert pixels[0, 0, 3, 3] == 0
        embeddings.append(model(pixels, modality="s1"))
    assert torch.equal(embeddings[0], embeddings[1])
    assert torch.equal(embeddings[0], embeddings[2])


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_03_in_graphs_too(cases, checkpoint, tmp_path, format):
    cases("training/03")
    if format == "onnx":
        for name in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(name)
    options = ExportOptions("s1", 64)
    (uri, _), _ = export_checkpoint(checkpoint, str(tmp_path / "g"), format, options=options)
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(uri, providers=["CPUExecutionProvider"])

        def graph(image):
            return torch.from_numpy(session.run(["embedding"], {"image": image.numpy()})[0])
    else:
        program = torch.export.load(uri).module()

        def graph(image):
            return program(image)[0]

    images = torch.full((1, 2, 64, 64), -12.0)
    found = []
    for missing in (torch.nan, -torch.inf, torch.inf):
        images[0, 0, 3, 3] = missing
        found.append(graph(images))
    assert torch.isfinite(found[0]).all()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    # Integers: refused, or what the same numbers as float give.
    whole = torch.full((1, 2, 64, 64), -12)
    if format == "onnx":
        with pytest.raises(Exception, match="float"):
            graph(whole.to(torch.int16))
    else:
        torch.testing.assert_close(graph(whole.to(torch.int16)), graph(whole.float()))


@pytest.mark.parametrize(
    "override",
    ["train.standby=true", "data.cache_dir=cache", "data.cache_bytes=1000"],
)
def test_11_a_finished_run_takes_settings_that_change_nothing(
    cases, finished, small_dataset, run, override
):
    cases("training/11")
    output = finished()
    code, out, errors = run(*pretrain(small_dataset, output, "train.steps=6", override))
    assert code == 0, errors
    assert "nothing to do" in out


@pytest.mark.parametrize("now", ["gone", "moved", "null"])
def test_12_a_run_goes_on_without_the_weights_that_it_began_from(
    cases, finished, small_dataset, weights, run, tmp_path, now
):
    cases("training/12")
    began, moved = tmp_path / "w.safetensors", tmp_path / "moved.safetensors"
    shutil.copy(weights, began)
    output = finished(3, f"model.init={began}")
    began.rename(moved)
    init = {"gone": began, "moved": moved, "null": "null"}[now]
    arguments = pretrain(small_dataset, output, "train.steps=6", f"model.init={init}")
    code, out, errors = run(*arguments, "--dry-run", "--json")
    assert code == 0, errors
    assert json.loads(out)["steps_done"] == 3


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (4, "has done 6 steps, and train.steps asks for 4 in all"),
        (3, "has done 6 steps, and train.steps asks for 3 in all"),
        (10, "was to take 6 steps and has done 6; with 10"),
    ],
)
def test_13_another_number_of_steps_is_one_line(
    cases, finished, small_dataset, refused, steps, message
):
    cases("training/13")
    line = refused(*pretrain(small_dataset, finished(), f"train.steps={steps}"))
    assert message in line
    assert ("--extend" in line) == (steps == 10)


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optim.base_lr=0.01"], "optim.base_lr was 0.004, now 0.01"),
        (["train.trackers=[mlflow]", "train.steps=6"], "train.trackers names mlflow"),
        (["train.steps=7"], "--extend"),
        (["train.steps=2"], "has done 3 steps"),
        (["head.num_prototypes=32"], "another model"),
        (["validation.every_steps=3", "validation.metric=nonsense"], "validation.metric=nonsense"),
        (["validation.every_steps=3", "validation.data=nowhere"], "nowhere"),
        (["loss.high_frequency_classes=[99]"], "no tile that is sampled"),
        (["data.modalities=[s1, s2_l2a]"], "data.modalities"),
    ],
)
def test_15_the_dry_run_refuses_what_the_run_refuses(
    cases, finished, small_dataset, refused, monkeypatch, overrides, message, more
):
    cases("training/15")
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "mlflow" else find(name)
    )
    steps = (
        ()
        if any("steps=" in o and o.startswith("train") for o in overrides)
        else ("train.steps=6",)
    )
    arguments = pretrain(small_dataset, finished(3), *steps, *overrides)
    assert message in refused(*arguments, *more)


def test_15_a_folder_of_something_else(cases, small_dataset, refused, tmp_path):
    cases("training/15")
    (tmp_path / "letter.txt").write_text("dear")
    for more in ((), ("--dry-run",)):
        assert "holds no run" in refused(*pretrain(small_dataset, tmp_path), *more)
    for more in ((), ("--dry-run",)):
        missing = pretrain(small_dataset, tmp_path / "new", "model.init=nowhere.pth")
        assert "nowhere.pth do not exist" in refused(*missing, *more)


def test_19_prefixes_are_no_other_model(cases, weights, checkpoint, tmp_path):
    folder = cases("training/19")
    shutil.copytree(weights.parent, tmp_path / "weights")
    shutil.copytree(checkpoint, tmp_path / "run/checkpoints/step_00000350")
    done = run_script(folder, tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:3] == [
        f"{prefix} loaded" for prefix in ("module.", "_orig_mod.", "teacher.backbone.")
    ]
    assert "terrafm export" in lines[3]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_11_12_13_as_real_commands(cases, small_dataset, weights, tmp_path):
    """One run by commands: begun from weights, gone on without them and with other places, and
    extended."""
    cases("training/13")
    began = tmp_path / "w.safetensors"
    shutil.copy(weights, began)
    output = tmp_path / "run"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}

    def command(*overrides, more=()):
        given = [*pretrain(small_dataset, output, "train.log_every=1", *overrides), *more]
        return subprocess.run(
            [*CLI, *map(str, given)],
            env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip

    # A relative spelling, although the workers run elsewhere.
    first = command("train.steps=6", "model.init=w.safetensors")
    assert first.returncode == 0, first.stderr
    began.unlink()
    shutil.rmtree(output / "checkpoints" / "step_00000006")
    second = command("train.steps=6", "model.init=w.safetensors", "data.cache_bytes=1000")
    assert second.returncode == 0, second.stderr
    assert "resumed at 3" in second.stdout
    assert command("train.steps=10").returncode == 2
    longer = command("train.steps=8", "data.cache_dir=cache", more=["--extend"])
    assert longer.returncode == 0, longer.stderr
    assert "the run takes 8 steps, 6 before" in longer.stderr
    assert "8 steps, resumed at 6" in longer.stdout
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9))
