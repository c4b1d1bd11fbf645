"""Exit codes and messages: 0 done, 1 failed, 2 wrong usage; one clear line, nothing written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from terrafm.cli import main
from terrafm.config import load_config
from terrafm.train.checkpoints.store import save_checkpoint
from terrafm.train.driver.checks import check_output
from terrafm.train.worker.setup import TrainingSetup


def pretrain(data, output, *overrides):
    settings = ["train.steps=4", "train.global_batch=4", "head.num_prototypes=32", *overrides]
    return [
        *("pretrain", "--config", "demo", "--data", data, "--output", output),
        *(part for setting in settings for part in ("--set", setting)),
    ]


def half_done(data, output, *overrides):
    """A run folder with a checkpoint after two steps, made without Ray."""
    config = load_config("demo", pretrain(data, output, *overrides)[8::2])
    setup = TrainingSetup.open(config, data)
    distillation = setup.plain_distillation()
    state = setup.state(2, distillation.engine.state(), distillation)
    return save_checkpoint(str(Path(output) / "checkpoints"), state)


def content(folder):
    return {p: p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_help_lists_every_verb_and_every_key(run):
    code, out, _ = run("--help")
    assert code == 0
    verbs = ("demo", "ingest", "inspect", "verify", "tile", "pretrain", "evaluate", "export")
    for verb in (*verbs, "checkpoint"):
        assert verb in out
    code, out, _ = run("pretrain", "--help")
    assert code == 0
    for key in ("train.zero_stage", "data.resample_exponent", "loss.alpha", "model.init"):
        assert key in out
    # And none that it takes no notice of.
    assert "ingest.workers" not in out
    _, out, _ = run("ingest", "--help")
    assert "ingest.workers" in out
    assert "train.steps" not in out


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["pretrain"], ["pretrain", "--bogus"], ["ingest", "--source", "x"]]
)
def test_wrong_usage_is_exit_2(run, arguments):
    code, _, errors = run(*arguments)
    assert code == 2
    assert "Traceback" not in errors


def test_an_unknown_key_names_its_nearest_relative(refused, small_dataset, tmp_path):
    line = refused(*pretrain(small_dataset, tmp_path / "run", "train.stepz=3"))
    assert "train.stepz (did you mean train.steps?)" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("verb", ["pretrain", "inspect", "evaluate", "verify", "tile", "ingest"])
def test_a_dataset_that_does_not_exist(refused, tmp_path, verb):
    missing = tmp_path / "nothing"
    arguments = {
        "pretrain": pretrain(missing, tmp_path / "run"),
        "inspect": ["inspect", missing],
        "verify": ["verify", missing],
        "tile": ["tile", missing, "a_0_0", "--output", tmp_path / "run"],
        "ingest": [
            *("ingest", "--append", "--source", "geotiff"),
            *("--input", tmp_path, "--output", missing),
        ],
        "evaluate": ["evaluate", "knn", "--weights", missing, "--data", missing],
    }[verb]
    assert str(missing) in refused(*arguments)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_is_no_dataset(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(*pretrain(tmp_path / "empty", tmp_path / "run"))


def test_a_checkpoint_of_another_model(refused, small_dataset, tmp_path):
    output = tmp_path / "run"
    half_done(small_dataset, output)
    before = content(output)
    line = refused(*pretrain(small_dataset, output, "head.num_prototypes=64"))
    assert "another model" in line
    assert "head.num_prototypes was 32, now 64" in line
    assert content(output) == before


def test_settings_that_would_change_the_run(refused, small_dataset, tmp_path):
    output = tmp_path / "run"
    half_done(small_dataset, output)
    before = content(output)
    line = refused(*pretrain(small_dataset, output, "train.seed=5"))
    assert "train.seed was 0, now 5" in line
    assert content(output) == before


def test_trackers_and_profile_may_differ_when_a_run_goes_on(small_dataset, tmp_path):
    half_done(small_dataset, tmp_path / "run")
    overrides = ["train.trackers=[]", "train.profile_steps=2", "train.log_every=3"]
    arguments = pretrain(small_dataset, tmp_path / "run", *overrides)
    setup = TrainingSetup.open(load_config("demo", arguments[8::2]), small_dataset)
    assert check_output(setup, str(tmp_path / "run")).resumed_from == 2


def test_a_tracker_whose_package_is_missing(refused, small_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    line = refused(*pretrain(small_dataset, tmp_path / "run", "train.trackers=[wandb]"))
    assert "train.trackers names wandb" in line
    assert "terrafm[wandb]" in line
    assert not (tmp_path / "run").exists()
    line = refused(*pretrain(small_dataset, tmp_path / "run", "train.trackers=[neptune]"))
    assert "train.trackers" in line


def test_profile_is_a_flag_that_a_setting_overrides(small_dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "terrafm.train.driver.pretrain.dry_run",
        lambda tree, *_, **__: asked.append(tree.train.profile_steps) or {},
    )
    for more in ([], ["--profile"], ["--profile", "--set", "train.profile_steps=7"]):
        with pytest.raises(SystemExit):
            main([*map(str, pretrain(small_dataset, "unused")), "--dry-run", "--json", *more])
    assert asked == [0, 3, 7]


def test_a_dataset_that_changed_under_a_run(refused, make_dataset, small_dataset, tmp_path):
    output, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(small_dataset, data)
    half_done(str(data), output)
    before = content(output)
    shutil.rmtree(data)
    make_dataset(data, seed=1)
    line = refused(*pretrain(data, output))
    assert "has changed" in line
    assert content(output) == before


def test_a_modality_that_the_dataset_lacks_is_told(refused, small_dataset, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_dataset, data)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["groups"] = [g for g in manifest["groups"] if g["modality"] != "s1"]
    for name in ("manifest.json", "manifest-1.json"):
        (data / name).write_text(json.dumps(manifest))
    line = refused(*pretrain(data, tmp_path / "run"))
    assert "s1" in line


def test_an_output_that_holds_something_else(refused, small_dataset, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    assert "cat.jpg" in refused(*pretrain(small_dataset, tmp_path / "photos"))
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.jpg"]


class Malicious:
    def __reduce__(self):
        return (Path.touch, (Path("pwned"),))


@pytest.mark.parametrize("kind", ["unsafe", "truncated", "missing"])
def test_weights_that_cannot_be_used(refused, small_dataset, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights.pth"
    if kind == "unsafe":
        torch.save({"cls_token": Malicious()}, weights)
    elif kind == "truncated":
        torch.save({"cls_token": torch.zeros(1000)}, weights)
        weights.write_bytes(weights.read_bytes()[:500])
    line = refused(*pretrain(small_dataset, tmp_path / "run", f"model.init={weights}"))
    assert "weights.pth" in line
    assert not (tmp_path / "pwned").exists()
    assert not (tmp_path / "run").exists()
    assert "weights.pth" in refused(
        "evaluate", "knn", "--weights", weights, "--data", small_dataset
    )


def test_export_of_what_is_no_checkpoint(refused, tmp_path):
    arguments = ("export", "--output", tmp_path / "out", "--format", "safetensors")
    line = refused(*arguments, "--checkpoint", tmp_path / "step_00000002")
    assert "step_00000002 does not exist" in line
    (tmp_path / "step_00000002").mkdir()
    line = refused(*arguments, "--checkpoint", tmp_path / "step_00000002")
    assert "not a complete checkpoint" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--format", "onnx", "--modality", "s3"), "--modality s3: these weights were trained on"),
        (("--format", "torch-export", "--image-size", "100"), "must be a multiple of 16"),
        (("--format", "released", "--license", "mit"), "--license is for the formats hf"),
        (("--format", "hf", "--scores", "nowhere.json"), "--scores nowhere.json: "),
    ],
)
def test_export_of_what_does_not_fit(refused, checkpoint, tmp_path, arguments, complaint):
    output = tmp_path / "out"
    line = refused("export", "--checkpoint", checkpoint, "--output", output, *arguments)
    assert complaint in line
    assert not output.exists()


@pytest.mark.parametrize("export_format", ["safetensors", "released"])
def test_export_writes_the_teacher_and_a_snippet(run, small_dataset, tmp_path, export_format):
    import terrafm

    checkpoint = half_done(small_dataset, tmp_path / "run")
    code, out, _ = run(
        *("export", "--checkpoint", checkpoint, "--output", tmp_path / "w"),
        *("--format", export_format),
    )
    assert code == 0
    assert "terrafm.load_model" in out
    model = terrafm.load_model("terrafm_tiny", weights=str(tmp_path / "w"))
    assert model.contract.dataset_fingerprint
    assert not model.training


def test_dry_run_says_what_a_run_would_cost_and_writes_nothing(run, small_dataset, tmp_path):
    code, out, _ = run(*pretrain(small_dataset, tmp_path / "run"), "--dry-run", "--json")
    assert code == 0
    figures = json.loads(out)
    assert figures["steps"] == 4
    assert figures["samples"] == 16
    for key in ("bytes_read", "memory_per_worker", "checkpoint_bytes", "step_seconds"):
        assert figures[key] > 0
    assert "hours" in figures
    assert not (tmp_path / "run").exists()
    checkpoint = half_done(small_dataset, tmp_path / "run")
    size = sum(p.stat().st_size for p in Path(checkpoint).iterdir())
    assert figures["checkpoint_bytes"] == pytest.approx(size, rel=0.05)


def test_a_dry_run_reads_well(run, small_dataset, tmp_path):
    code, out, _ = run(*pretrain(small_dataset, tmp_path / "run"), "--dry-run", "--quiet")
    assert code == 0
    names = [line[:20].strip() for line in out.splitlines()]
    assert names == [
        "the run", "the model", "a worker's memory", "", "on the disk", "a step", "all steps",
        "measured on",
    ]  # fmt: skip
    assert max(map(len, out.splitlines())) <= 80
    assert "4 steps, 16 samples" in out


def test_inspect_prints_json_and_a_table(run, small_dataset):
    code, out, _ = run("inspect", small_dataset, "--json", "--set", "data.resample_exponent=1")
    assert code == 0
    found = json.loads(out)
    assert found["tiles"] == 11
    counts = found["resampled_class_counts"]
    assert sum(counts.values()) == 11
    assert max(counts.values()) - min(counts.values()) <= 1
    code, out, _ = run("inspect", small_dataset)
    assert code == 0
    assert found["fingerprint"][:8] in out


def test_verify_says_what_is_wrong_and_ends_with_1(run, make_dataset, tmp_path):
    # Longer than a line of any terminal.
    data = Path(make_dataset(tmp_path / ("long_" * 30) / "data"))
    code, out, _ = run("verify", data)
    assert code == 0
    assert any(f"{data} is whole" in line for line in out.splitlines())
    shard = data / "shards" / "part-00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    code, out, errors = run("verify", data, "--json")
    assert code == 1
    assert {fault["shard"] for fault in json.loads(out)["faults"]} == {"shards/part-00002.parquet"}
    assert errors.count("\n") == 1
    assert "faults, in shards/part-00002.parquet: restore" in errors
    code, out, _ = run("verify", data)
    assert code == 1
    assert "is cut short" in " ".join(out.split())


def test_a_tile_as_geotiffs(run, refused, small_dataset, tmp_path):
    code, out, _ = run("tile", small_dataset, "tile_03", "--output", tmp_path, "--quiet")
    assert code == 0
    assert len(out.splitlines()) == len(list(tmp_path.glob("tile_03_*.tif"))) == 7
    assert "nearest ids are" in refused("tile", small_dataset, "tile_3", "--output", tmp_path)
