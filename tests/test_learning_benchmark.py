"""benchmarks/learning.py: its parts against plain references, and that it runs to its end."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from terrafm.config import load_config
from terrafm.eval.retrieval.ranks import Ranks
from terrafm.eval.retrieval.tasks import make_tasks
from terrafm.models.weights import load_encoder
from terrafm.train.worker.setup import TrainingSetup

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import rotation
from harness import found_again
from harness.objectives import nt_xent
from harness.plain_training import Training, keep_encoders, train
from harness.transfer import contestants, sources

ROOT = Path(__file__).resolve().parents[1]

SETTINGS = (
    "train.steps=3", "train.global_batch=4", "train.micro_batch=4", "head.num_prototypes=32",
    "data.global_size=32",
)  # fmt: skip


def naive_nt_xent(features):
    """SimCLR's equation 1, a pair at a time, in float64."""
    rows = features.double().numpy()
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    count, total = len(rows), 0.0
    for i in range(count):
        partner = (i + count // 2) % count
        others = sum(np.exp(rows[i] @ rows[k] / 0.1) for k in range(count) if k != i)
        total -= np.log(np.exp(rows[i] @ rows[partner] / 0.1) / others)
    return total / count


def test_nt_xent_is_simclr_s():
    features = torch.randn(10, 6, generator=torch.Generator().manual_seed(0))
    assert float(nt_xent(features)) == pytest.approx(naive_nt_xent(features), rel=1e-5)


@pytest.mark.parametrize("objective", ["distillation", "contrastive"])
def test_objectives_train_the_stems_of_all_sensors(objective, small_dataset):
    # In views of both sensors, so that fusion is trained too.
    config = load_config("real_cpu", [*SETTINGS, "data.keep_probability=0.9"])
    setup = TrainingSetup.open(config, small_dataset)
    states, lines = [], []
    for reached in train(setup, 1, objective):
        states.append({k: v.clone() for k, v in reached.encoder.state_dict().items()})
        lines.append(reached.line)
    assert len(lines) == 3
    assert all(np.isfinite(line["loss"]) for line in lines)
    first, last = states[0], states[-1]
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    stems = {name for name in first if name.startswith("patch_embed.") and name.endswith("weight")}
    still = {name for name in stems if "l2a" in name}
    assert still
    assert {name for name in stems if "l2a" not in name} <= moved
    assert "cls_token" in moved


def test_kept_encoders_are_not_trained_twice(small_dataset, tmp_path):
    overrides = (*SETTINGS, "data.modalities=[s2_l1c]")
    training = Training("ours", small_dataset, "real_cpu", overrides, 1, "distillation", 2)
    keep_encoders(training, tmp_path)
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert names == ["step_00000002.safetensors", "step_00000003.safetensors"]
    assert load_encoder(str(tmp_path / names[0])).contract.image_size == 32
    written = {name: (tmp_path / name).stat().st_mtime_ns for name in names}
    keep_encoders(training, tmp_path)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in names} == written
    # Another recipe is another training.
    other = Training(
        "ours", small_dataset, "real_cpu", (*overrides, "optim.base_lr=0.1"), 1, "distillation", 2
    )
    keep_encoders(other, tmp_path)
    assert all((tmp_path / name).stat().st_mtime_ns != written[name] for name in names)


@pytest.mark.slow
def test_the_benchmark_runs_to_its_end(shared_folder, tmp_path):
    command = [
        *(sys.executable, str(ROOT / "benchmarks" / "learning.py"), "--json", "--quick"),
        *("--seeds", "0", "1", "--work", str(tmp_path)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    names = [line["name"] for line in lines]
    assert len(set(names)) == len(names)
    assert sum(line["bar"] is not None for line in lines) >= 8
    for part in (
        "s2_l1c>later, recall1 over the best baseline",
        "s1>s2_l1c, recall10 over untrained",
        "EuroSAT, knn20",
        "ours less contrastive",
    ):
        assert any(name.startswith(part) for name in names), part


@pytest.fixture
def archive_of_names(tmp_path):
    """Cities by the names of their files alone; `far` has radar at one date."""
    for city in ("here", "there_e", "there_w", "far", "near"):
        (tmp_path / city / "s1_vv").mkdir(parents=True)
        for date in (1,) if city == "far" else (1, 2):
            (tmp_path / city / "s1_vv" / f"orbit7_t{date}.tif").touch()
    return tmp_path


def test_every_city_with_radar_is_held_out_once_and_neighbours_together(archive_of_names):
    folds = rotation._folds(archive_of_names, 2)
    assert sorted(city for fold in folds for city in fold) == ["here", "near", "there_e", "there_w"]
    assert any({"there_e", "there_w"} <= set(fold) for fold in folds)


def test_groups_put_together_are_ranked_within_themselves():
    def ranks(*before):
        return Ranks(np.array(before), np.zeros(len(before), int), np.full(len(before), 9))

    tables = [{"weights": [ranks(0, 3), ranks(1, 1)]}, {"weights": [ranks(5), ranks(0)]}]
    together = rotation._put_together(tables)["weights"]
    assert [r.before.tolist() for r in together] == [[0, 3, 5], [1, 1, 0]]


def test_the_same_date_asks_for_the_query_itself():
    places, dates = np.array([4, 4, 5, 5, 6]), ("a", "b", "a", "b", "a")
    (task,) = make_tasks({"s2_l1c": np.ones(5, bool)}, places, {"s2_l1c": dates})
    same = found_again.same_date(task)
    assert same.name == "s2_l1c>same date"
    assert same.query_rows.tolist() == same.gallery_rows.tolist() == [0, 2]
    assert same.partners.tolist() == [0, 1]


def names_of_figures(script, work, *options):
    """Of a benchmark's quick run, each once."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--json", "--quick"]
    done = subprocess.run(
        [*command, "--work", str(work), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    names = [json.loads(line)["name"] for line in done.stdout.splitlines()]
    assert len(set(names)) == len(names)
    return names


@pytest.mark.slow
def test_the_rotation_runs_to_its_end(shared_folder, tmp_path):
    options = ("--seeds", "0", "--folds", "2", "--only", "ours")
    names = names_of_figures("rotation.py", tmp_path, *options)
    for part in ("ours: s2_l1c>later, recall10, gain over", "ours: s1>s2_l1c, recall10", "milano"):
        assert any(name.startswith(part) for name in names), part


@pytest.mark.slow
def test_the_question_of_transfer_runs_to_its_end(shared_folder, tmp_path):
    names = names_of_figures("learning.py", tmp_path, "--transfer", "--seeds", "0")
    for one in ("adapted", "adapted, frozen", "distilled"):
        for other in ("scratch", "source"):
            assert f"{one} less {other}: s2_l1c>later, recall10, lower end" in names


def test_what_is_used_begins_with_the_weights_of_its_own_seed(tmp_path):
    base = Training("ours", "few", "real_cpu", ("train.steps=8",), 0, "distillation", 2)
    for source in sources(base, "many", (0, 3)):
        folder = source.folder(tmp_path)
        folder.mkdir(parents=True)
        for step in (4, 8):
            (folder / f"step_{step:08d}.safetensors").touch()
        newest = str(folder / "step_00000008.safetensors")
        for training in contestants(base, source, tmp_path):
            config = load_config(training.recipe, training.overrides)
            assert (training.seed, training.data) == (source.seed, "few")
            assert config.train.steps == 8
            starts = {config.model.init, config.distil.teacher} - {None}
            assert starts == (set() if training.name == "scratch" else {newest})
            assert bool(config.model.frozen) == (training.name == "adapted, frozen")
            # As large, and on the same crops and batches.
            for key in ("name", "drop_path"):
                assert getattr(config.model, key) == getattr(load_config("real_cpu").model, key)
            assert config.data == load_config("real_cpu").data.model_copy(
                update={"rows_per_block": config.data.rows_per_block}
            )
            assert config.train.global_batch == 96
