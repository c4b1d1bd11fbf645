"""Configurations that meant something else than they said, or that no run could use."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from typer.main import get_command

from terrafm.cli import app
from terrafm.config import load_config
from terrafm.errors import UsageError
from terrafm.jobs.arguments import read_command
from terrafm.jobs.package import build
from terrafm.jobs.submit import check_config_travels


@pytest.fixture
def case(cases, tmp_path):
    """(number) -> a copy of a case's folder."""

    def copy(number):
        return Path(shutil.copytree(cases(f"training/{number}"), tmp_path / number))

    return copy


def test_a_key_that_stands_twice_is_refused_by_name(case, refused, small_dataset, tmp_path):
    folder = case("04")
    run = ["pretrain", "--data", small_dataset, "--output", tmp_path / "run", "--dry-run"]
    line = refused(*run, "--config", folder / "two.yaml")
    assert "the key 'train' stands twice, on lines 2 and 4" in line
    with pytest.raises(UsageError, match="the key 'a' stands twice, on lines 4 and 5"):
        load_config(str(folder / "arms.yaml"))


@pytest.mark.parametrize(
    ("text", "steps"), [("true", None), ("010", 10), ("1:30", None), ("1e3", 1000)]
)
def test_numbers_are_what_a_person_means(text, steps, tmp_path):
    file = tmp_path / "x.yaml"
    file.write_text(f"base: demo\ntrain: {{steps: {text}}}\n")
    for source, overrides in ((str(file), []), ("demo", [f"train.steps={text}"])):
        if steps is None:
            with pytest.raises(UsageError, match=r"train\.steps takes none or an integer"):
                load_config(source, overrides)
        else:
            assert load_config(source, overrides).train.steps == steps


@pytest.mark.parametrize("word", ["none", "None", "null"])
@pytest.mark.parametrize(
    "key",
    ["model.init", "data.cache_dir", "validation.data", "train.keep_every"],
)
def test_none_means_nothing(key, word):
    section, _, name = key.partition(".")
    assert getattr(getattr(load_config("demo", [f"{key}={word}"]), section), name) is None


@pytest.mark.parametrize(
    ("setting", "takes"),
    [
        ("model.drop_path=1", "a number from 0 to below 1, not 1"),
        ("train.epochs=.inf", "a number above 0, up to 1e6, not inf"),
        ("train.epochs=1e300", "a number above 0, up to 1e6, not 1e\\+300"),
        ("data.global_scale=[0.5,1.5]", "a list of 2, each a number"),
        ("data.global_size=100000", "an integer from 16 to 2048, a multiple of 16, not 100000"),
        ("optim.base_lr=.inf", "a number above 0, up to 1e30, not inf"),
        ("optim.base_lr=1e400", "a number above 0, up to 1e30, not inf"),
    ],
)
def test_values_that_no_training_can_use(setting, takes):
    with pytest.raises(UsageError, match=f"{setting.partition('=')[0]} takes {takes}"):
        load_config("demo", ["train.steps=null", setting])


def test_a_dry_run_refuses_them_in_one_line(refused, small_dataset, tmp_path):
    run = ["pretrain", "--config", "demo", "--data", small_dataset, "--output", tmp_path / "run"]
    line = refused(*run, "--dry-run", "--set", "train.steps=none", "--set", "train.epochs=1e300")
    assert "train.epochs" in line


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.workers=[2]", "key train.workers takes an integer .* or a list of 2, .*fewest"),
        ("train.workers=0", "key train.workers takes an integer from 1"),
        (
            "data.modalities=s1",
            "key data.modalities takes a list .* s1, s2_l1c or s2_l2a, not",
        ),
        ("tune.space=[centering, loss]", "key tune.space takes none, text or a mapping"),
        (".steps=5", "--set takes section.key=value, not '.steps=5'"),
        ("data.global_scale=[0.1,0.5,0.9]", "key data.global_scale takes a list of 2"),
        ("tune.objectives=[]", "key tune.objectives takes a list of one or more"),
    ],
)
def test_errors_are_in_the_words_of_a_user(setting, words):
    with pytest.raises(UsageError, match=words) as error:
        load_config("demo", [setting])
    assert "constrained" not in str(error.value)
    assert "tuple" not in str(error.value)


def test_a_dotted_key_in_a_file_is_told_how_to_be_written(tmp_path):
    (tmp_path / "dotted.yaml").write_text("base: demo\ntrain.steps: 5\n")
    with pytest.raises(UsageError, match=r"train: \{steps: \.\.\.\} for the key train\.steps"):
        load_config(str(tmp_path / "dotted.yaml"))


@pytest.mark.parametrize("where", ["..", ".", "conf"])
def test_a_base_is_looked_for_beside_its_file(case, monkeypatch, where):
    folder = case("21")
    monkeypatch.chdir(folder / where)
    top = {"..": "21/conf/top.yaml", ".": "conf/top.yaml", "conf": "top.yaml"}[where]
    assert load_config(top).train.steps == 44
    assert load_config(str(folder / "conf" / "top.yaml")).model.name == "terrafm_tiny"


def test_a_base_that_is_not_there_is_told_with_its_place(case):
    top = case("21") / "conf" / "top.yaml"
    (top.parent / "base.yaml").rename(top.parents[1] / "base.yaml")
    with pytest.raises(UsageError) as error:
        load_config(str(top))
    assert f"looked for as {top.parent / 'base.yaml'}" in str(error.value)
    top.write_text("base: ../base.yaml\n")
    assert load_config(str(top)).train.steps == 44


def test_submit_notices_a_base_that_would_stay(case, monkeypatch, tmp_path):
    folder = case("21")
    monkeypatch.chdir(folder)
    run = ["pretrain", "--config", "conf/top.yaml", "--data", "s3://b/d", "--output", "s3://b/r"]
    command = read_command(get_command(app), run, Path())
    packed = build(Path(), tmp_path / "package.zip")
    check_config_travels(command, Path(), packed)
    without = replace(packed, files=packed.files - {"conf/base.yaml"})
    with pytest.raises(UsageError, match=r"^conf/base\.yaml stays here"):
        check_config_travels(command, Path(), without)
    for outside in (tmp_path / "far.yaml", "../far.yaml", folder / "conf" / "base.yaml"):
        (tmp_path / "far.yaml").write_text("base: demo\n")
        Path("conf/top.yaml").write_text(f"base: {str(outside).replace('../', '../../')}\n")
        with pytest.raises(UsageError, match=r"of conf/top\.yaml does not travel"):
            check_config_travels(command, Path(), packed)
