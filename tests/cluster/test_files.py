"""The other files of cluster/: images, lock, CI, SkyPilot, Slurm, systemd, scripts' syntax."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from documents import ABSENT, CLUSTER, ROOT, broken, load
from jsonschema import Draft7Validator
from packaging.requirements import Requirement
from ray.scripts.scripts import cli as ray_cli

from terrafm.config import load_config

SCRIPTS = sorted([*CLUSTER.glob("*.sh"), CLUSTER / "slurm.sbatch", ROOT / ".ci" / "run"])
PROGRAMS = Path(sys.executable).parent

# The keys of a SkyPilot task that are in use here. SkyPilot's own schema has more; its package,
# with every cloud's client, is too large to be installed for one file.
SKYPILOT = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name", "resources", "file_mounts", "setup", "run"],
    "properties": {
        "name": {"type": "string"},
        "file_mounts": {
            "type": "object",
            "propertyNames": {"pattern": "^~/terrafm/[A-Za-z]"},
            # Never the whole folder, nothing above it, and nothing hidden.
            "additionalProperties": {"type": "string", "pattern": r"^\./\w+(/\w+)*(\.\w+)?$"},
        },
        "envs": {"type": "object", "additionalProperties": {"type": "string"}},
        "setup": {"type": "string", "minLength": 1},
        "run": {"type": "string", "minLength": 1},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "required": ["accelerators", "use_spot"],
            "properties": {
                "accelerators": {"type": "object", "additionalProperties": {"type": "integer"}},
                "use_spot": {"const": True},
                "disk_size": {"type": "integer", "minimum": 100},
            },
        },
    },
}


def lint(program, *arguments, text=None):
    return subprocess.run(
        [PROGRAMS / program, *arguments], input=text, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_sound(path):
    checked = lint("shellcheck", "-x", "--source-path", str(ROOT), str(path))
    assert checked.returncode == 0, checked.stdout
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_an_unsound_script_is_refused():
    text = "#!/bin/bash\ncd $1\nrm -rf $1/*\n"
    assert "SC2086" in lint("shellcheck", "-", text=text).stdout


def test_the_dockerfile_is_sound():
    checked = lint("hadolint", str(CLUSTER / "Dockerfile"))
    assert checked.returncode == 0, checked.stdout


def dockerfile_problems(text):
    """What is wrong with the stages of a Dockerfile: root, versions, files that do not exist."""
    problems = []
    stages = re.split(r"^(?=FROM )", text, flags=re.M)[1:]
    names = {stage.split()[3]: stage for stage in stages}
    for target in ("cpu", "cuda"):
        if target not in names:
            problems.append(f"no target {target}")
        elif "USER 1000:1000" not in names[target].split("RUN ")[-1]:
            problems.append(f"{target} runs as root")
    for name, stage in names.items():
        image = stage.split()[1]
        if image not in names and not re.search(r":\d+\.\d+\.\d+-", image):
            problems.append(f"{name}: {image} is not pinned")
        for line in re.findall(r"^COPY (.*)$", stage, re.M):
            for source in [word for word in line.split() if not word.startswith("--")][:-1]:
                if not (ROOT / source).exists():
                    problems.append(f"{name}: there is no {source}")
                if not _in_context(source):
                    problems.append(f"{name}: .dockerignore leaves {source} out")
    return problems


def _in_context(source):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    return "*" in lines and f"!{source}" in lines


def test_the_images_are_as_they_should_be():
    assert dockerfile_problems((CLUSTER / "Dockerfile").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("FROM cuda-dependencies AS cuda\n", "FROM cuda-dependencies AS gpu\n", "no target cuda"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("python:3.11.14-slim-bookworm", "python:latest", "not pinned"),
        ("COPY terrafm terrafm", "COPY terafm terafm", "there is no"),
        ("COPY terrafm terrafm", "COPY docs docs", "leaves docs out"),
    ],
)
def test_a_broken_image_is_refused(old, new, reason):
    text = (CLUSTER / "Dockerfile").read_text()
    assert old in text
    assert reason in str(dockerfile_problems(text.replace(old, new)))


def pins(text):
    """Requirements of a lock file whose lines are continued by hashes."""
    lines = text.replace("\\\n", " ").splitlines()
    return [
        Requirement(line.partition(" --hash=")[0])
        for line in lines
        if line and not line.startswith("#")
    ]


def lock_problems(text):
    """What pyproject.toml asks for and the lock lacks, or holds at another version."""
    locked = {pin.name.lower(): pin.specifier for pin in pins(text)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    problems = []
    for wanted in map(Requirement, [*project["dependencies"], "boto3", "aiohttp-cors"]):
        pin = str(locked.get(wanted.name.lower(), ""))
        if not pin.startswith("=="):
            problems.append(f"{wanted.name} is not pinned")
        elif pin[2:] not in wanted.specifier:
            problems.append(f"{wanted.name} {pin} is not {wanted.specifier}")
    return problems


def test_the_lock_holds_what_the_project_asks_for():
    assert lock_problems((CLUSTER / "requirements.txt").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("ray==2.60.0", "ray==2.59.0"), ("timm==", "timm2=="), ("deepspeed==", "deepspeed>=")],
)
def test_a_lock_that_lags_behind_is_refused(old, new):
    text = (CLUSTER / "requirements.txt").read_text()
    assert old in text
    assert len(lock_problems(text.replace(old, new))) == 1


def test_every_package_of_the_lock_has_the_hashes_of_its_files():
    text = (CLUSTER / "requirements.txt").read_text().replace("\\\n", " ")
    locked = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert len(locked) > 100
    for line in locked:
        assert re.search(r" --hash=sha256:[0-9a-f]{64}\b", line), line


def test_the_images_take_nothing_without_a_hash_but_pytorchs_builds_for_cpus(tmp_path):
    """Runs the very commands of the Dockerfile over the lock, without installing."""
    text = (CLUSTER / "Dockerfile").read_text()
    assert "uv pip install --require-hashes -r cluster/requirements.txt" in text
    script = text.split("AS cpu-dependencies\nRUN ", 1)[1].split("&& uv pip install", 1)[0]
    script = script.replace("/tmp/", f"{tmp_path}/").replace("\\\n", "\n").rstrip(" &\n")
    lines = [line.strip() for line in script.splitlines() if line.strip()]
    subprocess.run(["bash", "-euc", " ".join(lines)], cwd=ROOT, check=True)
    kept = (tmp_path / "requirements.txt").read_text()
    names = {pin.name for pin in pins(kept)}
    loose = [pin.name for pin in pins((tmp_path / "torch.txt").read_text())]
    assert sorted(loose) == ["torch", "torchvision"]
    assert "--hash" not in (tmp_path / "torch.txt").read_text()
    everything = {pin.name for pin in pins((CLUSTER / "requirements.txt").read_text())}
    left_out = {n for n in everything if n.startswith(("nvidia-", "triton", "cuda-"))}
    assert names == everything - left_out - set(loose)
    assert kept.count(" --hash=") >= len(names)


def test_actions_are_named_by_their_commits():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        used = re.findall(r"uses: (\S+)(.*)", path.read_text())
        assert used
        for action, comment in used:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action), action
            assert re.fullmatch(r" # v\d+\.\d+\.\d+", comment), action


def test_the_list_of_what_the_images_hold_is_made(tmp_path):
    made = tmp_path / "sbom.cdx.json"
    command = ["cyclonedx_py", "requirements", "cluster/requirements.txt", "--output-file", made]
    command += ["--pyproject", "pyproject.toml", "--output-reproducible"]
    subprocess.run([sys.executable, "-m", *map(str, command)], cwd=ROOT, check=True)
    listed = json.loads(made.read_text())
    assert listed["bomFormat"] == "CycloneDX"
    versions = {one["name"]: one["version"] for one in listed["components"]}
    assert versions["ray"] == "2.60.0"
    assert len(versions) > 100


def kuberay_version_problems(text):
    locked = re.search(r"^ray==(\S+)", text, re.M).group(1)
    cluster = load(CLUSTER / "kuberay" / "base" / "raycluster.yaml")
    return [] if cluster["spec"]["rayVersion"] == locked else [f"rayVersion is not {locked}"]


def test_kuberay_and_the_images_have_the_same_ray():
    text = (CLUSTER / "requirements.txt").read_text()
    assert kuberay_version_problems(text) == []
    assert kuberay_version_problems(text.replace("ray==2.60.0", "ray==2.60.1"))


def workflow_problems(path):
    schema = "--builtin-schema=vendor.github-workflows"
    checked = lint("check-jsonschema", schema, str(path))
    return checked.stdout if checked.returncode else ""


@pytest.mark.parametrize("name", ["ci.yml", "nightly.yml"])
def test_ci_and_the_nightly_run_are_workflows(name):
    assert workflow_problems(ROOT / ".github" / "workflows" / name) == ""


def test_the_nightly_run_finds_every_file_with_a_slow_test():
    steps = load(ROOT / ".github" / "workflows" / "nightly.yml")["jobs"]["list"]["steps"]
    line = steps[-1]["run"].removeprefix('echo "files=$(').partition(" | jq ")[0]
    found = subprocess.run(
        ["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert sorted(found) == files_with_slow_tests()


def files_with_slow_tests():
    return [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"mark[.]slow", path.read_text())
    ]


def test_every_slow_test_has_its_place_among_those_of_a_change():
    script = (ROOT / ".ci" / "run").read_text().replace("$IN", "tests/integration")
    listed = script.partition("<<EOF\n")[2].partition("EOF")[0].split()
    assert all((ROOT / name).exists() for name in listed)
    missing = [
        name
        for name in files_with_slow_tests()
        if not any(name == there or name.startswith(f"{there}/") for there in listed)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("old", "new"), [("runs-on:", "run-on:"), ("timeout-minutes: 120", "timeout-minutes: [1]")]
)
def test_a_broken_workflow_is_refused(tmp_path, old, new):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    assert old in text
    (tmp_path / "ci.yml").write_text(text.replace(old, new))
    assert workflow_problems(tmp_path / "ci.yml")


def test_ci_runs_the_checks_and_builds_both_images():
    workflow = load(ROOT / ".github" / "workflows" / "ci.yml")
    assert workflow["permissions"] == {"contents": "read"}
    assert {"run": ".ci/run"} in workflow["jobs"]["checks"]["steps"]
    images = workflow["jobs"]["images"]
    assert images["strategy"]["matrix"]["target"] == ["cpu", "cuda"]
    assert any(
        "docker build -f cluster/Dockerfile --target ${{ matrix.target }}" in step.get("run", "")
        for step in images["steps"]
    )
    assert all("timeout-minutes" in job for job in workflow["jobs"].values())


def test_the_skypilot_task_is_as_it_should_be():
    assert list(Draft7Validator(SKYPILOT).iter_errors(load(CLUSTER / "skypilot.yaml"))) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("resources/use_spott", True),
        ("resources/use_spot", False),
        ("resources/accelerators/L4", "one"),
        ("run", ABSENT),
        ("envs/BUCKET", 7),
        ("workdir", "."),
        ("file_mounts", ABSENT),
        ("file_mounts/~", "."),
        ("file_mounts", {"~/terrafm": "."}),
        ("file_mounts", {"~/terrafm/env": "./.env"}),
        ("file_mounts", {"~/terrafm/env": "./terrafm/../.env"}),
        ("file_mounts", {"~/terrafm/aws": "~/.aws"}),
    ],
)
def test_a_broken_skypilot_task_is_refused(path, value):
    task = broken(load(CLUSTER / "skypilot.yaml"), path, value)
    assert list(Draft7Validator(SKYPILOT).iter_errors(task))


def test_the_skypilot_task_sends_code_and_nothing_beside_it(tmp_path):
    """What an installation takes is there, and files in the user's folder are not."""
    task = load(CLUSTER / "skypilot.yaml")
    home = tmp_path / "home"
    for target, source in task["file_mounts"].items():
        to, origin = home / target.removeprefix("~/"), ROOT / source
        to.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(origin, to)
        assert to.name == origin.name
    sent = {path.name for path in (home / "terrafm").iterdir()}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {name.rstrip("*") for name in packages["packages"]["find"]["include"]}
    assert sent == wanted | {"pyproject.toml", "README.md", "LICENSE", "cluster"}
    assert [path.name for path in (home / "terrafm" / "cluster").iterdir()] == ["requirements.txt"]
    assert not [path for path in (home / "terrafm").rglob(".*") if path.name != ".gitignore"]
    assert task["setup"].startswith("cd ~/terrafm\n")


def test_the_slurm_job_asks_for_what_it_uses():
    text = (CLUSTER / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", text, re.M))
    # Ray wants one process a node, and Slurm reads options only above the first command.
    assert options["ntasks-per-node"] == "1"
    assert text.rindex("#SBATCH") < text.index("set -euo pipefail")
    assert "--num-gpus=" + options["gpus-per-node"] in text
    most = int(options["nodes"]) * int(options["gpus-per-node"])
    assert f"train.workers=[{options['nodes']},{most}]" in text
    assert {"exclusive", "no-kill"} <= set(options)
    start = {name for option in ray_cli.commands["start"].params for name in option.opts}
    own = {name for o in ray_cli.commands["symmetric-run"].params for name in o.opts}
    used = re.findall(r"(--[a-z-]+)[= ]", text.partition("symmetric-run")[2].partition(" -- ")[0])
    assert set(used) <= start | own


def page_problems(text):
    """What a page of commands names that does not exist, or that a shell cannot read."""
    problems = [
        f"there is no {target}"
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
        if not (CLUSTER / target).exists()
    ]
    for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S):
        read = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        problems += read.stderr.splitlines()
        for verb in re.findall(r"^\W*ray ([a-z-]+)", block, re.M):
            if verb not in ray_cli.commands:
                problems.append(f"there is no ray {verb}")
        for path in re.findall(r"(?<!terrafm/)\bcluster/[\w./*-]+", block):
            if not list(ROOT.glob(path)):
                problems.append(f"there is no {path}")
        for module in re.findall(r"(?:python -m ray_jobs\.|terrafm submit )(\w+)", block):
            if not (ROOT / "ray_jobs" / f"{module}.py").exists():
                problems.append(f"there is no job {module}")
    return problems


def test_the_page_names_what_exists():
    assert page_problems((CLUSTER / "README.md").read_text()) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("ray up", "ray upp"),
        ("overlays/gpu-elastic", "overlays/gpu-elastisch"),
        ("terrafm submit pretrain", "terrafm submit train"),
        ("done\n", "\n"),
        ("(../docs/security.md)", "(../docs/safety.md)"),
    ],
)
def test_a_page_that_names_what_does_not_exist_is_refused(old, new):
    text = (CLUSTER / "README.md").read_text()
    assert old in text
    assert page_problems(text.replace(old, new))


def pretrain_commands():
    """Every pretraining that a file or the page starts, as words."""
    job = load(CLUSTER / "kuberay" / "overlays" / "rayjob" / "rayjob.yaml")["spec"]["entrypoint"]
    texts = [
        job,
        load(CLUSTER / "skypilot.yaml")["run"],
        (CLUSTER / "slurm.sbatch").read_text(),
        (CLUSTER / "README.md").read_text(),
        (ROOT / "docs" / "jobs.md").read_text(),
    ]
    found = []
    for text in texts:
        joined = text.replace("\\\n", " ")
        found += re.findall(
            r"^[^`\n]*(?:-m ray_jobs\.|terrafm submit )pretrain (.*)$", joined, re.M
        )
    return [shlex.split(command) for command in found]


def test_every_pretraining_has_a_recipe_and_keys_that_exist():
    commands = pretrain_commands()
    assert len(commands) == 5
    for words in commands:
        options = list(zip(words[::2], words[1::2], strict=True))
        known = {"--config", "--data", "--output", "--set", "--address"}
        assert {name for name, _ in options} <= known
        overrides = [value for name, value in options if name == "--set"]
        load_config(dict(options)["--config"], overrides)


def test_the_unit_starts_the_watcher():
    unit = configparser.ConfigParser(interpolation=None, strict=True)
    unit.optionxform = str
    unit.read(CLUSTER / "spot-notice.service")
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["User"] == load(CLUSTER / "aws.yaml")["auth"]["ssh_user"]
    for name in re.findall(
        r"/home/ubuntu/terrafm/(cluster/\S+?\.sh)", unit["Service"]["ExecStart"]
    ):
        assert (ROOT / name).exists()
    assert "spot_notice.sh" in unit["Service"]["ExecStart"]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd to ask")
def test_systemd_understands_the_unit(tmp_path):
    def complaints(text):
        unit = tmp_path / "spot-notice.service"
        unit.write_text(text)
        command = ["systemd-analyze", "verify", str(unit)]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    text = (CLUSTER / "spot-notice.service").read_text()
    assert "spot-notice.service" not in complaints(text)
    assert "spot-notice.service" in complaints(text.replace("Restart=always", "Restart=ever"))
