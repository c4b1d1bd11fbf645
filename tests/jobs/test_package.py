"""What travels to a cluster: code and configuration; neither data nor secrets."""

import os
import zipfile
from pathlib import Path

import pytest

from terrafm.errors import UsageError
from terrafm.jobs import package
from terrafm.jobs.package import build
from terrafm.jobs.private_files import secret_in


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "project"
    travel = ["my.yaml", "sources/mine.py", "tokenizer.py", "deep/er/arms.yml", "pyproject.toml"]
    stay = [
        "tiles/part-0.parquet", "image.tif", "weights.pth", "notes.txt", "archive.zip",
        ".env", ".aws/credentials", ".git/config", ".ray/auth_token", ".hidden.yaml",
        "auth_token", "secrets.yaml", "my-credentials.yml", "kubeconfig.yaml", "key.pem",
        "venv/pyvenv.cfg", "venv/lib/module.py", "__pycache__/a.py", "node_modules/b.py",
        "ignored.yaml", "deep/ignored_too.py", "secrets/anything.yaml", "deep/credentials/a.py",
        "prod_keys.yaml", "api-key.toml", "kube.yaml", "service_account.yml", "keys/ours.toml",
    ]  # fmt: skip
    for name in (*travel, *stay):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("hush")
    (root / ".gitignore").write_text("ignored.yaml\n")
    (root / "deep" / ".rayignore").write_text("ignored_*\n")
    outside = tmp_path / "outside.yaml"
    outside.write_text("hush")
    os.symlink(outside, root / "link.yaml")
    os.symlink(tmp_path, root / "way_out")
    return root, set(travel)


def own(names):
    return {name for name in names if name.partition("/")[0] in package.OWN_PACKAGES}


def test_code_and_configuration_travel_and_nothing_else(folder, tmp_path):
    root, travel = folder
    packed = build(root, tmp_path / "a.zip")
    rest = {n for n in packed.files - own(packed.files) if ".dist-info/" not in n}
    assert rest == travel


def test_our_packages_travel_whole(folder, tmp_path):
    packed = build(folder[0], tmp_path / "a.zip")
    assert {
        "terrafm/cli/verbs.py", "terrafm/recipes/demo.yaml", "ray_jobs/__main__.py",
        "tuning/cli.py", "terrafm/report/page.html.j2", "terrafm/report/assets/page.css",
    } <= packed.files  # fmt: skip
    assert not any("__pycache__" in name for name in packed.files)
    assert any(name.endswith(".dist-info/entry_points.txt") for name in packed.files)
    assert "files, " in str(packed)


def test_the_same_content_is_the_same_archive(folder, tmp_path):
    root, _ = folder
    build(root, tmp_path / "a.zip")
    os.utime(root / "my.yaml", (1, 1))
    build(root, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    (root / "my.yaml").write_text("other")
    build(root, tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() != (tmp_path / "b.zip").read_bytes()


def test_a_checkout_does_not_take_the_place_of_what_runs_here(tmp_path):
    (tmp_path / "terrafm").mkdir()
    (tmp_path / "terrafm" / "cli.py").write_text("another")
    packed = build(tmp_path, tmp_path / "a.zip")
    assert zipfile.ZipFile(packed.path).read("terrafm/cli/verbs.py") != b"another"


@pytest.mark.parametrize(("limit", "value"), [("LIMIT_BYTES", 10**6), ("_LIMIT_FILES", 200)])
def test_too_much_is_one_line(folder, tmp_path, monkeypatch, limit, value):
    root, _ = folder
    for number in range(40):
        (root / f"m{number}.py").write_text("#" * 40_000)
    monkeypatch.setattr(package, limit, value)
    with pytest.raises(UsageError, match=r"project holds .* of code, too much .*\.rayignore"):
        build(root, tmp_path / "a.zip")


def test_no_folder(tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        build(tmp_path / "nothing", tmp_path / "a.zip")


KEYS = {
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----\nMIIE",
    "an AWS key": "key: AKIA" + "IOSFODNN7EXAMPLE",
    "an AWS secret": "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/bPxRfiCY" + "EXAMPLEKEY",
    "a Hugging Face token": "token = 'hf_" + "a" * 34 + "'",
    "a GitHub token": "ghp_" + "A1" * 18,
    "a service account": '{"type": "service_account", "private_key' + '_id": "1"}',
    "a cluster's credentials": "    client-key-data: " + "LS0t" * 10,
    "a Weights & Biases key": "WANDB_API_KEY: " + "0f" * 20,
    "a password in an address": "redis://user:" + "hush@10.0.0.5:6379",
}


@pytest.mark.parametrize("what", KEYS)
@pytest.mark.parametrize("name", ["settings.yaml", "run.py"])
def test_a_file_that_holds_a_key_is_refused_by_name(tmp_path, what, name):
    (tmp_path / name).write_text(f"# mine\n{KEYS[what]}\n")
    with pytest.raises(UsageError, match=f"{name} seems to hold {what}") as error:
        build(tmp_path, tmp_path / "a.zip")
    assert KEYS[what].split()[-1] not in str(error.value)
    assert not (tmp_path / "a.zip").exists()
    (tmp_path / ".rayignore").write_text(name)
    assert build(tmp_path, tmp_path / "a.zip").own == ()


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("s3://KEY:SECRET@bucket/x, or https://user:password@host.", False),
        ("s3://KEY:" + "SECRET@bucket.s3.amazonaws.com/x", True),
        ("postgresql://me:" + "Tr0ub4dor@db/mlflow", True),
        ("https://user:password@host then https://me:" + "hush@host", True),
    ],
)
def test_what_documentation_writes_for_a_password_is_none(text, is_one):
    assert (secret_in(text.encode()) is not None) == is_one


def test_a_checkout_of_this_project_can_be_submitted():
    root = Path(package.__file__).parents[2]
    folders = ("terrafm", "tests", "cluster", "benchmarks", "docs", "ray_jobs", "tuning")
    texts = (".py", ".yaml", ".yml", ".md", ".toml", ".json", ".sh", ".txt")
    paths = [path for folder in folders for path in (root / folder).rglob("*")]
    for path in [*root.glob("*.*"), *paths]:
        if path.suffix in texts and path.is_file():
            assert secret_in(path.read_bytes()) is None, path
