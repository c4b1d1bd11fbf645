"""Fixtures that several folders share: a small dataset, the configuration for it."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import pickle
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pyarrow as pa
import pytest

# The servers and helpers beside the tests; tests are not a package.
sys.path.insert(0, str(Path(__file__).parent / "s3"))
sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from s3_servers import moto_server, proxied, real_bucket, real_server, s3_bucket  # noqa: F401

# A busy machine is no fault of an example.
hypothesis.settings.register_profile("terrafm", deadline=None)
hypothesis.settings.load_profile("terrafm")

SHARED = Path(__file__).resolve().parents[2] / "shared"

TILE_SIZE = 96
CLASSES = (10, 10, 10, 30, 30, 80, 40, 10, 30, 10, 50)


@pytest.fixture(scope="session", autouse=True)
def patience():
    """A Ray that a test starts itself may take as long as one that the product starts."""
    from terrafm.clusters.patience import patient_start

    with patient_start():
        yield


@pytest.fixture(scope="module")
def local_ray():
    """A Ray of three CPUs, which all modules share that a process of pytest runs.

    A module that needs another one, or none, ends it (`ray.shutdown`); the next one starts it.
    """
    import ray

    if not (ray.is_initialized() and _is_of_three_cpus(ray)):
        ray.shutdown()
        ray.init(address="local", num_cpus=3, include_dashboard=False, logging_level="error")


def _is_of_three_cpus(ray):
    # Not of a test that has ended its raylet.
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [node["Resources"].get("CPU") for node in nodes] == [3.0]


@pytest.fixture(scope="session")
def shared_folder():
    """Real satellite samples and the released model's outputs, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip(f"no real samples: {SHARED} does not exist")
    return SHARED


@pytest.fixture(scope="session")
def small_dataset(tmp_path_factory):
    """URI of a dataset of 11 tiles of smooth noise, all modalities at native GSD."""
    return make_small_dataset(tmp_path_factory.mktemp("small") / "dataset")


@pytest.fixture(scope="session")
def make_dataset():
    """Writes such a dataset anywhere, from any seed."""
    return make_small_dataset


@pytest.fixture(scope="session")
def checkpoint(small_dataset, tmp_path_factory):
    """URI of a checkpoint after two steps, made without Ray; teacher and student differ."""
    import torch

    from terrafm.config import load_config
    from terrafm.train.checkpoints.store import save_checkpoint
    from terrafm.train.worker.setup import TrainingSetup

    settings = ["train.steps=4", "train.global_batch=4", "head.num_prototypes=32"]
    setup = TrainingSetup.open(load_config("demo", settings), small_dataset)
    distillation = setup.plain_distillation()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in distillation.teacher.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    state = setup.state(2, distillation.engine.state(), distillation)
    return save_checkpoint(str(tmp_path_factory.mktemp("run") / "checkpoints"), state)


@pytest.fixture
def run(capfd):
    """Runs a command in this process; returns exit code, output and errors."""

    from terrafm.cli import main

    def run_command(*arguments):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in arguments])
        printed = capfd.readouterr()
        return end.value.code, printed.out, printed.err

    return run_command


@pytest.fixture
def refused(run):
    """Runs a command that must be refused: exit 2, one line."""

    def check(*arguments, code=2):
        found, _, errors = run(*arguments)
        assert found == code, errors
        lines = [line for line in errors.splitlines() if line]
        assert len(lines) == 1, errors
        assert lines[0].startswith("terrafm: error: ")
        return lines[0]

    return check


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def proof(tmp_path):
    """The folder that is there once the code of `hostile` has run."""
    return tmp_path / "code-has-run"


@pytest.fixture
def hostile(proof):
    """(n,) Arrow column that runs code when its values are listed, as a stranger would write it."""
    # Importing it registers the type that unpickles, as in every process of a run.
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    def column(count=1):
        kind = ArrowPythonObjectType()
        content = [pickle.dumps(Payload(proof))] * count
        return pa.ExtensionArray.from_storage(kind, pa.array(content, kind.storage_type))

    return column


def make_small_dataset(
    folder, seed=0, tile_id="tile_{:02d}", class_name="class {}", classes=CLASSES
):
    """Writes a dataset in which a class is a level and a texture, as land cover is."""
    from terrafm.data.shards.commit import commit_dataset
    from terrafm.data.shards.entry import TileRecord
    from terrafm.data.shards.manifest import CellGroup
    from terrafm.data.shards.writer import write_shard
    from terrafm.modalities import MODALITIES

    generator = np.random.default_rng(seed)
    groups = []
    for name, sensor in MODALITIES.items():
        for gsd in sorted(set(sensor.gsd)):
            bands = tuple(b for b, g in zip(sensor.bands, sensor.gsd, strict=True) if g == gsd)
            side = TILE_SIZE * 10 // gsd
            groups.append(CellGroup(name, gsd, bands, side, side))

    def pixels(group, code):
        shape = group.shape
        noise = generator.normal(size=shape)
        rough = np.kron(generator.normal(size=(shape[0], 4, 4)), np.ones((shape[1] // 4,) * 2))
        texture = rough * (code % 40) / 20 + noise
        if group.modality == "s1":
            return np.clip(-1500 + 200 * texture + code, -4000, 500).astype(np.int16)
        return np.clip(2000 + 400 * texture + 20 * code, 1, 9000).astype(np.uint16)

    records = [
        TileRecord(
            tile_id=tile_id.format(i),
            arrays={g.name: pixels(g, code) for g in groups},
            land_cover=code,
            histogram={code: TILE_SIZE**2},
            crs="EPSG:32633",
            transform=(10.0, 0.0, 500000.0 + i * 960, 0.0, -10.0, 10000.0),
            latitude=0.05,
            longitude=15.0 + i / 100,
            products={
                m: {"product_id": f"{m}_{i}", "time": "2021-01-01T00:00:00Z", "offset": 0}
                for m in MODALITIES
            },
        )
        for i, code in enumerate(classes)
    ]
    entries = [
        write_shard(str(folder), f"part-{k:05d}", records[4 * k : 4 * k + 4], groups)
        for k in range(-(-len(classes) // 4))
    ]
    statistics = {
        name: {
            "bands": list(sensor.bands),
            "mean": [-14.0 if name == "s1" else 0.27] * sensor.channels,
            "std": [3.0 if name == "s1" else 0.07] * sensor.channels,
        }
        for name, sensor in MODALITIES.items()
    }
    commit_dataset(
        str(folder),
        entries,
        tile_size=TILE_SIZE,
        gsd=10,
        groups=groups,
        statistics=statistics,
        legend={code: class_name.format(code) for code in sorted(set(classes))},
        report={},
    )
    return str(folder)
