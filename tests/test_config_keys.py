"""Each key of the configuration: what it refuses, and in which words."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from terrafm.config import Config, build_config, load_config, settings
from terrafm.config.yaml_text import dump_yaml, parse_yaml
from terrafm.errors import UsageError

NULLABLE = [key for key, kind, *_ in settings() if "none" in kind.split(" | ")]

# Beyond the bounds, of another type, and what the relations between keys forbid.
BAD = {
    "model.name": ["vit", 5], "model.init": [5, "''"],
    "model.frozen": ["blocks", "[head]", "['blocks:0']", "[blocks, blocks]", "[5]"],
    "model.drop_path": [1, -0.1],
    "model.num_queries": [0, 1e6], "head.num_prototypes": [1, 1e12], "head.hidden_dim": [0, 1e9],
    "head.bottleneck_dim": [0, 1e9], "loss.student_temp": [0, 1e-300, 1e9],
    "loss.teacher_temp": [0, 1e-9], "loss.warmup_teacher_temp": [-1, 1e-9], "loss.alpha": [1.1],
    "loss.center_momentum": [-0.1, 2],
    "loss.high_frequency_classes": ["[-1]", "[1.5]", "[10, 10]", 10, "[5000000000]"],
    "loss.centering": ["mean", 1], "loss.koleo_weight": [-1, 1e300],
    "loss.masked_patch_weight": [-1, 1e300],
    "distil.teacher": [5, "''"],
    "data.modalities": ["s1", "[]", "[s3]", "[s1, s1]"], "data.resample_exponent": [2],
    "data.resample_cap": [0, 1e300], "data.region_exponent": [-1], "data.water_keep": [2],
    "data.epoch_length": [0, 1e15], "data.keep_probability": [2], "data.other_date": [1.5],
    "data.fusion": ["yes", 1, "null"],
    "data.global_crops": [0, 1e6], "data.local_crops": [-1, 1e6],
    "data.global_size": [0, 100, 100000], "data.local_size": [8, 17, 4096],
    "data.global_scale": ["[0.5, 0.1]", "[0, 1]", "[0.5, 1.1]", 1, "[1]"],
    "data.crop_on": ["cpu"], "data.rows_per_block": [0], "data.cpus_per_worker": [0, 1e-9, 1e9],
    "data.cache_dir": [1],
    "data.cache_bytes": [0, 1e30, 0.5], "data.on_damage": ["skip"],
    "optim.base_lr": [0, -1, 1e300], "optim.lr_scaling": ["square", 1],
    "optim.layer_decay": [0.9, "[0.9]", "[0, 1]", "[1.1, 1]"], "optim.weight_decay": [-1, 1e9],
    "optim.weight_decay_end": [-1, 1e9],
    "optim.clip_grad": [0, 1e300], "optim.clip_by": ["value", 1],
    "optim.warmup_epochs": [-1, 1e300],
    "optim.teacher_momentum": [1, -1],
    "train.steps": [0, 1.5, 1e300, "1:30"], "train.epochs": [0, 1e300],
    "train.workers": [0, "[2]", "[2, 1]", "[0, 1]", 1e9], "train.global_batch": [0, 1e9],
    "train.micro_batch": [0, 1e9], "train.zero_stage": [4, -1, "true"],
    "train.precision": ["fp16"], "train.activation_checkpointing": ["all"],
    "train.compile": ["on", 0],
    "train.seed": [-1, 2**63, 1.5],
    "train.checkpoint_every": [0], "train.keep_checkpoints": [0], "train.keep_every": [0],
    "train.log_every": [0],
    "train.trackers":
        ["tensorboard", "[neptune]", "[mlflow, mlflow+weights]", "[tensorboard+weights]"],
    "train.profile_steps": [-1], "train.audit_samples": ["y"], "train.max_failures": [-1],
    "train.resize_interval": [-1, 1e300], "train.hang_timeout": [0, 1e-9, 1e300],
    "train.standby": ["no"], "train.cpus_per_worker": [0, 1e9],
    "train.gpu": ["true", 1], "ingest.require_modalities": ["s1", "[s3]", "[s1, s1]"],
    "ingest.allow_missing_bands": ["s1", "[s3]", "[s1, s1]"],
    "ingest.max_bad_fraction": [2], "ingest.max_nodata": [-1], "ingest.ocean_drop": [2],
    "ingest.max_gap_days": [-1, 1e300], "ingest.max_cloud_cover": [101],
    "ingest.dates_per_place": [0, 1.5, 1e9], "ingest.max_tiles": [0],
    "ingest.spread": ["region", "[country]", "[region, region]"],
    "ingest.tiles_per_shard": [0, 1e9], "ingest.codec": ["zip"], "ingest.workers": [-1, 1e9],
    "validation.every_steps": [-1, 7],
    "validation.scores": ["[]", "knn", "[recall]", "[knn, knn]"], "validation.data": [1],
    "validation.samples": [1, 1e12],
    "validation.metric": ["''", 5], "validation.cpus": [0],
    "validation.gpus": [-1, 1.5, 1e9], "tune.space": ["[loss]", 5],
    "tune.arms": [5, "[a]", "{1: {}}", "{a: 5}", "{'': {}}"], "tune.search": ["bayes"],
    "tune.scheduler": ["hyperband"], "tune.trials": [0, 1e9], "tune.seeds": [0, 1e9],
    "tune.max_concurrent": [0], "tune.objectives": ["[]", "loss", "[a, a]"], "tune.labelled": [1],
    "tune.modalities": ["[]", "[s3]", "s1"],

}  # fmt: skip
# Words of the library that checks; never of a user.
FOREIGN = re.compile(
    r"valid (integer|number|string|tuple|list|dict|bool)|constrained|field required|tuple\[|dict\["
    r"|pydantic|input should|value error|\.str\b|\.int\b|finite_number|is_instance",
    re.IGNORECASE,
)


def told(source, overrides):
    """A configuration, or why there is none."""
    try:
        return load_config(source, overrides)
    except UsageError as error:
        return str(error)


def test_every_key_has_bad_values():
    assert list(BAD) == [key for key, *_ in settings()]


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in BAD.items() for value in (*values, ".nan", ".inf", "{b: 2}")],
)
def test_what_a_run_cannot_use_is_refused_in_one_line_that_names_the_key(key, value):
    if (key, value) == ("tune.space", "{b: 2}"):
        # That keys of a space exist is for the sweep to say.
        assert load_config(None, [f"{key}={value}"]).tune.space == {"b": 2}
        return
    with pytest.raises(UsageError) as error:
        load_config(None, [f"{key}={value}"])
    line = str(error.value)
    assert key in line
    assert error.value.exit_code == 2
    assert "\n" not in line
    assert len(line) < 400
    assert not FOREIGN.search(line), line


@pytest.mark.parametrize("word", ["none", "None", "null", "~", ""])
def test_nothing_is_spelled_as_anybody_spells_it(word, tmp_path):
    by_command = load_config(None, [f"{key}={word}" for key in NULLABLE])
    tree = {}
    for key in NULLABLE:
        section, _, name = key.partition(".")
        tree.setdefault(section, []).append(f"  {name}: {word}\n")
    text = "".join(f"{section}:\n{''.join(lines)}" for section, lines in tree.items())
    (tmp_path / "file.yaml").write_text(text)
    assert load_config(str(tmp_path / "file.yaml")) == by_command
    for key in NULLABLE:
        section, _, name = key.partition(".")
        found = getattr(getattr(by_command, section), name)
        assert found == ("none" if name in ("activation_checkpointing", "scheduler") else None), key


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.global_crops=1", "data.local_crops=0"], "raise data.global_crops or data.local_cr"),
        (["validation.every_steps=7"], "a multiple of train.checkpoint_every=175, not 7"),
        (["head.num_prototypes=1e7", "head.bottleneck_dim=32768"], "head.num_prototypes=10000000"),
        (["train.global_batch=1e6", "train.micro_batch=1e6"], "lower train.micro_batch"),
        (["loss.alpha=2", "train.steps=0"], "loss.alpha .*; configuration key train.steps"),
    ],
)
def test_settings_that_do_not_go_together(settings, words):
    with pytest.raises(UsageError, match=words):
        load_config("demo", settings)


# As they are typed after `=`.
TYPED = r"""
    null ~ none None NONE true false True yes no on off y n auto 0 -0 1 -1 010 0o17 0x1F 1:30 1e3
    1e-3 1e300 1e400 -1e400 .inf -.inf .nan 1_000 2021-01-01 12:30 [] {} [1,2] [1,[2]] {a:1} '5' ''
    '~' << = s1 [s1] loss !!int !!str !x &a *a # 9223372036854775808 18446744073709551615 \ " '
    99999999999999999999 [ ] { } , : - ? | > % @ ` "\ud800" "\0" "\n" - ---
"""
SCALARS = (
    st.sampled_from(TYPED.split())
    | st.just("")
    | st.integers().map(str)
    | st.floats().map(lambda number: dump_yaml(number).split("\n")[0])
    | st.text(max_size=12)
    | st.text(max_size=6).map(json.dumps)
    | st.lists(st.floats().map(str) | st.integers().map(str), max_size=3).map(
        lambda items: f"[{', '.join(items)}]"
    )
)


@hypothesis_settings(max_examples=1500)
@given(st.sampled_from(list(BAD)), SCALARS)
def test_any_scalar_for_any_key_is_taken_and_comes_back_or_is_one_line(key, scalar):
    found = told(None, [f"{key}={scalar}"])
    if isinstance(found, Config):
        assert build_config(parse_yaml(found.to_yaml().encode())) == found
    else:
        assert "\n" not in found
        assert not FOREIGN.search(found.partition(", not ")[0])


def test_a_file_and_the_command_line_take_the_same_values(tmp_path):
    file = tmp_path / "one.yaml"
    for key, values in BAD.items():
        section, _, name = key.partition(".")
        for value in (*values, "1e3", "010", "none", "yes", "null", "1", "true", "0.5", "[16, 32]"):
            file.write_text(f"{section}:\n  {name}: {value}\n")
            assert told(str(file), []) == told(None, [f"{key}={value}"]), (key, value)


def test_pages_name_keys_that_there_are():
    root = Path(__file__).resolve().parents[1]
    sections = "|".join({key.partition(".")[0] for key in BAD})
    # And names of files.
    named = re.compile(rf"`(?:--set )?((?:{sections})\.[a-z_]+)(?:=[^`]*)?`")
    known = set(BAD) | {"validation.jsonl", "validation.png", "validation.py", "model.safetensors"}
    pages = [page for page in (root / "docs").glob("*.md") if page.name != "log.md"]
    found = {
        (page.name, key)
        for page in [*pages, root / "README.md", root / "CONTRIBUTING.md"]
        for key in named.findall(page.read_text())
    }
    assert len(found) > 100
    assert not {(page, key) for page, key in found if key not in known}
