"""What the writers work on: a dataset, an archive, weights, checkpoints; and what they leave."""

import hashlib
import importlib.util
import re
import shutil
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2]
VERBS = ("ingest", "append", "pretrain", "sweep", "embed", "average")
_SMALL = (
    "train.global_batch=4", "train.micro_batch=4", "head.num_prototypes=32", "data.local_crops=2",
    "data.global_size=32", "data.local_size=16", "train.log_every=1", "train.cpus_per_worker=1",
    "model.name=terrafm_tiny",
)  # fmt: skip
# Names that hold a time, a process or a number drawn anew.
_DRAWN = (
    (re.compile(r"events\.out\.tfevents\.[^/]*"), "events.out.tfevents"),
    (re.compile(r"searcher-state-[^/]*|experiment_state-[^/]*"), "tune-state"),
    (re.compile(r"search_gen_state-[^/]*"), "tune-state"),
)


class Scenes:
    """Inputs of all verbs in one folder; outputs on a disk or in a bucket.

    Args:
        folder: on this machine.
        store: "disk" or "s3".
        bucket: of the server that AWS_ENDPOINT_URL names.
        environment: of the commands.
    """

    def __init__(self, folder, store, bucket, environment):
        self.store, self.environment = store, environment
        self._folder, self._bucket = Path(folder), bucket
        (self._folder / "logs").mkdir()

    def prepare(self):
        """Makes all inputs, with the product's own code."""
        from terrafm.data.sources.synthetic import SyntheticSpec, write_archive

        module = _load(TESTS / "conftest.py")
        module.make_small_dataset(self._folder / "small")
        for which in (0, 1):
            spec = SyntheticSpec(cells=2, seed=which, px=192)
            write_archive(spec, str(self._folder / f"archive-{which}"))
            self._weights(which)
            self._checkpoint(which)
        if self.store == "s3":
            import s3fs

            s3fs.S3FileSystem().mkdirs(self._bucket, exist_ok=True)
        from terrafm.config import IngestConfig
        from terrafm.data.ingest.job import ingest

        ingest(
            "major-tom", str(self._folder / "archive-1"), str(self._folder / "dataset"),
            tile_size=96, config=IngestConfig(workers=0),
            worldcover=str(self._folder / "archive-1" / "worldcover"),
        )  # fmt: skip

    def _weights(self, which):
        import torch

        from terrafm.models.encoder import build_encoder
        from terrafm.models.weights import WeightsContract, save_safetensors

        torch.manual_seed(which)
        statistics = {"s1": {"bands": ["VV", "VH"], "mean": [-14.0, -14.0], "std": [7.0, 7.0]}}
        contract = WeightsContract.build("terrafm_tiny", statistics)
        state = build_encoder("terrafm_tiny").state_dict()
        save_safetensors(str(self._folder / f"weights-{which}.safetensors"), state, contract)

    def _checkpoint(self, which):
        import torch

        from terrafm.config import load_config
        from terrafm.train.checkpoints.store import save_checkpoint
        from terrafm.train.worker.setup import TrainingSetup

        config = load_config("demo", [*_SMALL, "train.steps=4"])
        setup = TrainingSetup.open(config, str(self._folder / "small"))
        torch.manual_seed(which)
        distillation = setup.plain_distillation()
        state = setup.state(2, distillation.engine.state(), distillation)
        save_checkpoint(str(self._folder / f"run-{which}" / "checkpoints"), state)

    # -- commands -------------------------------------------------------------------------------

    def words(self, verb, which, place):
        """The command line of a verb; `which` of two, which differ in what they write."""
        small, archive = self._folder / "small", self._folder / f"archive-{which}"
        sets = [word for key in (*_SMALL, f"train.seed={which}") for word in ("--set", key)]
        ingest = [
            "--source", "major-tom", "--input", archive, "--output", place, "--tile-size", "96",
            "--worldcover", archive / "worldcover", "--set", "ingest.workers=0",
        ]  # fmt: skip
        checkpoints = [
            next((self._folder / f"run-{w}" / "checkpoints").iterdir()) for w in (which, 1 - which)
        ]
        return {
            "ingest": ["ingest", *ingest],
            "append": ["ingest", "--append", *ingest],
            "pretrain": [
                "pretrain", "--config", "demo", "--data", small, "--output", place, *sets,
                "--set", "train.steps=4", "--set", "train.checkpoint_every=1",
            ],
            "sweep": [
                "sweep", "--config", "sweep_demo", "--data", small, "--output", place, *sets,
                "--set", "train.steps=2", "--set", "train.checkpoint_every=1",
                "--set", "tune.trials=1", "--set", "tune.max_concurrent=1",
            ],
            "embed": [
                "embed", "--weights", self._folder / f"weights-{which}.safetensors",
                "--data", small, "--output", place, "--size", "32", "--workers", "0",
            ],
            "average": [
                "checkpoint", "average", *checkpoints, "--output", place,
            ],
        }[verb]  # fmt: skip

    # -- places ---------------------------------------------------------------------------------

    def place(self, number, start=None):
        """A folder of its own for one number, which holds a dataset at first or is not there."""
        if self.store == "disk":
            place = self._folder / "places" / str(number) / "out"
            place.parent.mkdir(parents=True)
            if start:
                shutil.copytree(self._folder / start, place)
            return str(place)
        from commands import ask

        uri = f"s3://{self._bucket}/{number}/out"
        if start:
            ask(_upload, str(self._folder / start), uri, environment=self.environment)
        return uri

    def clear(self, place):
        """Removes what a held test has left."""
        if self.store == "disk":
            shutil.rmtree(Path(place).parent)
            return
        from commands import ask

        ask(_clear, place, environment=self.environment)

    def log(self, number, which):
        """File for what a command prints."""
        return self._folder / "logs" / f"{number}-{which}"

    @staticmethod
    def changes(command):
        """How many changes a command has made that ran to its end."""
        return int(Path(f"{command.log}.changes").read_text())

    @staticmethod
    def holder(place):
        """The process that the lease names."""
        from terrafm.storage.files import read_bytes
        from terrafm.storage.lease_record import LEASE_FILE, Holder

        try:
            found = Holder.read(read_bytes(f"{place}/{LEASE_FILE}"))
        except FileNotFoundError:
            return None
        return None if found is None else found.process

    @staticmethod
    def tree(place):
        """{name: SHA-256} of all that lies there; names that are drawn anew are made alike."""
        from terrafm.storage.files import resolve

        filesystem, root = resolve(place)
        found = {}
        for path in filesystem.find(root):
            name = path[len(root) :].lstrip("/")
            for pattern, alike in _DRAWN:
                name = pattern.sub(alike, name)
            found[name] = hashlib.sha256(filesystem.cat_file(path)).hexdigest()
        return found


def _upload(folder, uri):
    from terrafm.storage.files import resolve

    filesystem, root = resolve(uri)
    for path in sorted(Path(folder).rglob("*")):
        if path.is_file():
            filesystem.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())


def _clear(uri):
    from terrafm.storage.files import resolve

    filesystem, root = resolve(uri)
    for path in filesystem.find(root):
        filesystem.rm_file(path)


def _load(path):
    spec = importlib.util.spec_from_file_location("small_dataset", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
