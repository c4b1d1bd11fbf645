import json
import re

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from terrafm.config import Config, build_config, load_config, recipe_names, settings
from terrafm.config.removed import REMOVED
from terrafm.errors import UsageError


def test_defaults_are_the_papers_and_dinos_numbers():
    config = Config()
    assert (config.loss.alpha, config.loss.center_momentum) == (0.8, 0.9)
    assert (config.loss.student_temp, config.loss.teacher_temp) == (0.1, 0.06)
    assert (config.head.num_prototypes, config.head.hidden_dim) == (65536, 2048)
    assert (config.data.global_crops, config.data.local_crops) == (2, 8)
    assert (config.data.keep_probability, config.data.resample_exponent) == (0.5, 0.5)
    assert (config.optim.clip_grad, config.optim.teacher_momentum) == (3.0, 0.996)
    assert config.model.num_queries == 5


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_a_round_trip(name, tmp_path):
    config = load_config(name)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert load_config(str(path)) == config


def test_overrides_come_after_the_file_and_keep_its_other_keys():
    config = load_config("demo", ["loss.alpha=1", "train.steps=7", "optim.base_lr=1e-3"])
    assert (config.loss.alpha, config.train.steps, config.optim.base_lr) == (1.0, 7, 1e-3)
    assert config.model.name == "terrafm_tiny"


def test_lists_and_none_are_read_as_yaml():
    config = load_config(None, ["data.modalities=[s1, s2_l2a]", "train.steps=null"])
    assert config.data.modalities == ("s1", "s2_l2a")
    assert config.train.steps is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.stepz=3",
            r"unknown configuration key train\.stepz \(did you mean train\.steps\?\)",
        ),
        ("trian.steps=3", r"unknown configuration key trian \(did you mean train\?\)"),
        ("loss.alpha=2", r"loss\.alpha takes a number from 0 to 1, not 2$"),
        ("train.zero_stage=4", r"train\.zero_stage"),
        ("train.steps=many", r"train\.steps takes none or an integer from 1 to 1e9, not 'many'$"),
        ("alpha=0.5", r"section\.key=value"),
        (".steps=5", r"section\.key=value, not '\.steps=5'"),
        ("train.=5", r"section\.key=value, not 'train\.=5'"),
        ("train={steps: 5}", r"section\.key=value"),
        ("steps.x=5", r"unknown configuration key steps \(did you mean train\.steps\?\)"),
        ("loss.alpha", r"section\.key=value"),
        (
            "data.modalities=[s3]",
            r"one or more, each s1, s2_l1c or s2_l2a, not \['s3'\]$",
        ),
        ("data.modalities=s1", r"modalities takes a list of one or more, each s1.*, not 's1'$"),
        ("data.modalities=[s1, s1]", r"modalities takes a list in which nothing stands twice"),
        ("data.global_size=100", r"data\.global_size takes .*, a multiple of 16, not 100$"),
        (
            "data.global_scale=[0.5, 0.1]",
            r"global_scale takes the smaller one first, not \[",
        ),
        ("train.workers=[2]", r"workers takes an integer .*the fewest and the most\), not \[2\]$"),
        ("train.workers=[3, 1]", r"train\.workers takes the smaller one first, not \[3, 1\]$"),
        (
            "data.global_scale=[0.1, 0.5, 0.9]",
            r"data\.global_scale takes a list of 2, each a number",
        ),
        (
            "tune.space=[loss]",
            r"tune\.space takes none, text or a mapping \(names of spaces",
        ),
        ("tune.objectives=[]", r"tune\.objectives takes a list of one or more"),
        (
            "tune.arms={0.5: {loss.alpha: 0.5}}",
            r"takes names that are text, such as '0\.5'",
        ),
        ("tune.arms={a: 5}", r"tune\.arms takes a mapping \(name -> settings"),
        ("data.fusion=yes", r"data\.fusion takes true or false, not 'yes'$"),
        ("data.fusion=1", r"data\.fusion takes true or false, not 1$"),
        ("train.gpu=true", r"train\.gpu takes auto, yes or no, not true$"),
        ("train.zero_stage=true", r"train\.zero_stage takes an integer from 0 to 3, not true$"),
        ("train.steps=true", r"train\.steps takes none or an integer .*, not true$"),
        ("train.steps='5'", r"train\.steps takes none or an integer .*, not '5'$"),
        ("train.steps=1_000", r"train\.steps takes none or an integer .*, not '1_000'$"),
        ("data.cache_dir=5", r"data\.cache_dir takes none or text, not 5$"),
        ("data.global_scale=none", r"data\.global_scale takes a list of 2, .*, not 'none'$"),
        ("data.cache_dir={a: 1, a: 2}", "not a YAML value: the key 'a' stands twice"),
        ("loss.alpha={a", r"is not a YAML value"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override, message):
    with pytest.raises(UsageError, match=message) as error:
        load_config("demo", [override])
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_names_its_nearest_relative():
    with pytest.raises(UsageError, match=r"no recipe named 'demp' \(did you mean demo\?\)"):
        load_config("demp")


def test_a_missing_or_broken_file_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match=r"no\.yaml does not exist"):
        load_config(str(tmp_path / "no.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(UsageError, match="not valid YAML"):
        load_config(str(broken))
    broken.write_text("- 1\n- 2\n")
    with pytest.raises(UsageError, match="must map sections to settings"):
        load_config(str(broken))


# A billion values in 400 bytes.
NINE_EACH = [f"&a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11)]
LAUGHS = ", ".join(["&a0 [ha]", *NINE_EACH])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"data: {{cache_dir: [{LAUGHS}]}}", "not valid YAML: more than 100,000 values"),
        (f"tune: {{space: {{a: [{LAUGHS}]}}}}", "not valid YAML: more than 100,000 values"),
        ("tune: {space: &a {a: *a}}", "not valid YAML: more than 100,000 values"),
        ("data: " + "[" * 1000 + "]" * 1000, "not valid YAML: nested too deeply"),
        (f"train: {{seed: 0x{'f' * 5000}}}", "not valid YAML: a number of more than 64 bits"),
        ("train: {steps: 1}\ntrain: {steps: 2}", "the key 'train' stands twice, on lines 1 and 2"),
        (
            "data: {cache_dir: [[[[[1]]]]]}",
            r"cache_dir takes none or text, not \[\[\[\.\.\.\]\]\]",
        ),
        (
            f"data: {{crop_on: {'x' * 5000}}}",
            r"takes workers or device, not 'xxx.*\.\.\..*xxx'$",
        ),
        (b"data: \xff", "not valid YAML"),
    ],
    ids=lambda text: text[:40],
)
def test_a_file_that_says_more_than_can_be_told_is_one_short_line(content, message, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError, match=message) as caught:
        load_config(str(path))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@given(st.text(max_size=40))
def test_any_text_is_either_an_override_or_a_usage_error(text):
    said = ""
    try:
        load_config(None, [text])
    except UsageError as error:
        said = str(error)
    assert len(said.splitlines()) < 2


@pytest.mark.parametrize("key", ["train.a\nb", "a\nb.c", "a\n.steps", "train.\x1b[31m"])
def test_a_key_of_several_lines_is_told_in_one(key, tmp_path):
    (tmp_path / "file.yaml").write_text(json.dumps({key: {"x": 1}}))
    (tmp_path / "inner.yaml").write_text(json.dumps({"train": {key: 1}}))
    for source, overrides in (
        (None, [f"{key}=1"]),
        (None, [f"{key}=[1"]),
        (str(tmp_path / "file.yaml"), []),
        (str(tmp_path / "inner.yaml"), []),
    ):
        with pytest.raises(UsageError) as error:
            load_config(source, overrides)
        assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.steps: 5", r"write train: \{steps: \.\.\.\} for the key train\.steps"),
        ("steps: 5", "'steps' at the top is a section, which takes keys with values, not 5"),
        ("train: 5", "'train' at the top is a section"),
        ("train: []", "'train' at the top is a section"),
        ("train: false", "'train' at the top is a section"),
        ("1: {a: 2}", r"unknown configuration key 1"),
        ("train: {5: 3}", r"unknown configuration key train\.5"),
        ("train: {null: 3}", r"unknown configuration key train\.None"),
        ("base: 5", "base takes a recipe's name or a .yaml file, not 5"),
        ("base: [demo]", "base takes a recipe's name or a .yaml file"),
        (
            "base: demp",
            r"named 'demp', which .*top\.yaml stands on \(did you mean demo\?\)",
        ),
        ("base: ''", "no recipe named ''"),
        ("just text", "must map sections to settings"),
    ],
)
def test_a_file_of_another_form_is_one_clear_line(text, message, tmp_path):
    (tmp_path / "top.yaml").write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        load_config(str(tmp_path / "top.yaml"))
    assert "\n" not in str(error.value)


def test_an_empty_section_changes_nothing(tmp_path):
    (tmp_path / "top.yaml").write_text("base: demo\ntrain:\nloss: {}\n")
    assert load_config(str(tmp_path / "top.yaml")) == load_config("demo")


def test_an_arm_without_settings_is_the_configuration_as_it_is():
    assert load_config(None, ["tune.arms={a: , b: {}}"]).tune.arms == {"a": {}, "b": {}}


def test_every_key_has_a_description():
    for key, kind, default, description in settings():
        assert description, key
        assert kind, key
        yaml.safe_dump(default)


@pytest.mark.parametrize("word", ["yes", "no", "auto"])
def test_a_bare_yes_is_a_word_and_no_truth_value(word):
    assert load_config(None, [f"train.gpu={word}"]).train.gpu == word


def test_what_an_earlier_version_wrote_is_still_read(tmp_path):
    old = {"train": {"keep_best": None, "async_checkpoints": True, "steps": 5},
           "optim": {"betas": [0.9, 0.999]}}  # fmt: skip
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    assert load_config(str(tmp_path / "config.yaml")) == load_config(None, ["train.steps=5"])


@pytest.mark.parametrize("key", REMOVED)
def test_a_removed_key_has_one_value(key):
    value = REMOVED[key].value
    section, _, name = key.partition(".")
    assert build_config({section: {name: value}}) == load_config()
    assert key not in {known for known, *_ in settings()}
    other = "something else"
    with pytest.raises(UsageError, match=rf"{re.escape(key)} is no setting any more"):
        build_config({section: {name: other}})
    # What a run was begun with is of no account where it changed no result.
    if REMOVED[key].changes_result:
        with pytest.raises(UsageError, match="is no setting any more"):
            build_config({section: {name: other}}, of_run=True)
    else:
        assert build_config({section: {name: other}}, of_run=True) == load_config()


def test_a_tree_full_of_mistakes_is_still_one_line():
    with pytest.raises(UsageError, match=r"; and 92 more$") as error:
        build_config({"data": {f"key_{number}" * 9: 1 for number in range(100)}})
    assert len(str(error.value)) < 3000
