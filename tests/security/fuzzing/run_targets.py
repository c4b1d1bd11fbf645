"""Targets of a run: its checkpoints and its small files."""

import json

import torch
from mutations import change, flip, json_text, mutate_json, mutate_lines
from samples import Target, sha256, shown


class State(Target):
    """A checkpoint's state.json and complete.json, with small tensors."""

    share = 12
    files = ("state.json", "complete.json")

    def build(self):
        from terrafm.config import load_config
        from terrafm.modalities import MODALITIES
        from terrafm.models.contract import WeightsContract
        from terrafm.train.checkpoints.store import write_checkpoint

        tensors = self.tensors()
        statistics = {
            n: {"mean": [0.3] * m.channels, "std": [0.1] * m.channels}
            for n, m in MODALITIES.items()
        }
        contract = WeightsContract.build("terrafm_tiny", statistics, dataset_fingerprint="ab" * 32)
        config = load_config("demo", ["train.steps=4"]).model_dump(mode="json")
        record = {
            "cursor": {"seed": 0, "epoch": 0, "position": 8, "consumed": 8, "plan": "cd" * 32},
            "dataset": {"uri": "tiles", "fingerprint": "ab" * 32},
            "contract": contract.model_dump(mode="json"),
            "config": config,
            "versions": {"terrafm": "0.1", "torch": "2.11", "ray": "2.60", "deepspeed": "0.19"},
        }
        for step in (2, 4):
            head = {
                "step": step,
                "metrics": {"step": step, "loss": 3.5, "lr": 1e-3, "trackers_off": {}},
            }
            folder = self.folder / "run" / "checkpoints"
            folder.mkdir(parents=True, exist_ok=True)
            write_checkpoint(str(folder / f"step_{step:08d}"), tensors, head | record, folder)
        (self.folder / "run" / "config.yaml").write_text("{}\n")

    def tensors(self):
        names = ("student", "teacher", "optimizer", "centers")
        return {name: {"w": torch.zeros(2)} for name in names}

    def load(self):
        super().load()
        self.uri = str(self.folder / "run")
        self.at = "run/checkpoints/step_00000004/"
        self.checkpoint = str(self.folder / self.at[:-1])

    def mutate(self, rng):
        if rng.random() < 0.25:
            return {
                self.at + "complete.json": mutate_json(self.sound[self.at + "complete.json"], rng)
            }
        return self.marked("state.json", mutate_json(self.sound[self.at + "state.json"], rng))

    def marked(self, name, content):
        marker = json.loads(self.sound[self.at + "complete.json"])
        marker["files"][name] = {"bytes": len(content), "sha256": sha256(content)}
        return {self.at + name: content, self.at + "complete.json": json.dumps(marker).encode()}

    def read(self):
        from terrafm.errors import TerraFMError
        from terrafm.train.checkpoints import intact, inventory, store
        from terrafm.train.checkpoints.average import _check_same_model
        from terrafm.train.driver.checks import _recorded_fingerprint

        failed = []

        def use(reader, *arguments):
            try:
                return reader(*arguments)
            except TerraFMError as error:
                failed.append(error)

        use(lambda: shown(inventory.render_list(inventory.list_run(self.uri))))
        use(lambda: shown(inventory.render_verify(inventory.verify(self.uri))))
        use(intact.newest_intact, self.checkpoint.rpartition("/")[0])
        use(_recorded_fingerprint, self.uri)
        use(lambda: store.load_checkpoint(self.checkpoint).step + 1)
        use(lambda: store.contract_of(store.read_record(self.checkpoint), self.checkpoint))
        use(self._average, store, _check_same_model)
        use(self._go_on, store)
        if failed:
            raise failed[0]

    def _average(self, store, check):
        other = self.checkpoint.replace("00000004", "00000002")
        for one, two in ((self.checkpoint, other), (other, self.checkpoint)):
            check(one, store.read_record(one), two, store.read_record(two))

    def _go_on(self, store):
        from terrafm.train.worker.setup import _config_of

        record = store.read_record(self.checkpoint)
        _config_of(record, self.checkpoint)
        store.part_of(record, "dataset", self.checkpoint)["fingerprint"][:12]
        int(record["step"])


class Tensors(State):
    """Tensors of a checkpoint whose checksums are right."""

    share = 4

    def tensors(self):
        student = {name: p.detach() for name, p in _network().named_parameters()}
        moments = {f"{key}.{n}": t for key in ("exp_avg", "exp_avg_sq") for n, t in student.items()}
        counts = {f"step.{n}": torch.tensor(4.0) for n in ("decay", "no_decay", "prototypes")}
        return super().tensors() | {"student": student, "optimizer": moments | counts}

    def mutate(self, rng):
        name = rng.choice(("student", "teacher", "optimizer", "centers")) + ".safetensors"
        return self.marked(name, mutate_safetensors(self.sound[self.at + name], rng))

    def read(self):
        from terrafm.config import OptimConfig
        from terrafm.train.checkpoints import store
        from terrafm.train.step.engine import PlainEngine, check_optimizer
        from terrafm.train.step.schedules import StepSettings
        from terrafm.train.worker.setup import _restore

        state, network = store.load_checkpoint(self.checkpoint), _network()
        _restore(network, state.engine.student, state.file("student"))
        check_optimizer(network, state.engine.optimizer, state.file("optimizer"))
        cpu = torch.device("cpu")
        engine = PlainEngine(network, OptimConfig(), precision="float32", device=cpu)
        engine.load_optimizer(state.engine.optimizer)
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        engine.step(StepSettings(1e-3, 0.04, 0.04, 0.99, False))


def _network():
    """A parameter of each group."""
    network = torch.nn.Module()
    network.last_layer = torch.nn.Linear(2, 2)
    network.layer = torch.nn.Linear(3, 2)
    return network


def mutate_safetensors(content, rng):
    """Its header by structure, or any of its bytes."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.4:
        return flip(content, rng)
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    contract = metadata.get("terrafm_contract")
    if contract is not None and rng.random() < 0.6:
        metadata["terrafm_contract"] = mutate_json(contract.encode(), rng).decode(
            "utf-8", "replace"
        )
    else:
        header = change(header, rng)
    text = json_text(header, rng)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


_BEST = {"step": 4, "metric": "knn20/s1/accuracy", "mode": "max", "value": 0.5}
_SMALL = {
    "run/checkpoints/best.json": _BEST | {"checkpoint": "step_00000004"},
    "run/checkpoints/held.json": {"steps": [2, 4]},
    "run/dataset.json": {"uri": "tiles", "fingerprint": "ab" * 32},
    "run/trackers.json": {"mlflow": "abc", "wandb": "def"},
    "run/failure.json": {"message": "no data", "code": 2},
    "run/origin.json": {"checkpoint": "run/checkpoints/step_00000004", "step": 4},
}
_LINES = {
    "run/validation.jsonl": [
        {
            "step": step,
            "checkpoint": f"checkpoints/step_{step:08d}",
            "metrics": {"knn20/s1/accuracy": 0.5, "x": None},
            "per_class": {"s1": {"10": {"accuracy": 0.5}}},
            "tail": ["class 10"],
            "seconds": 1.5,
        }
        for step in (2, 4)
    ],
    "run/metrics.jsonl": [{"step": s, "loss": 3.5, "lr": 1e-3, "off": {}} for s in (1, 2, 3)],
    "run/events.jsonl": [{"time": 1.5, "event": "started", "workers": 2, "step": 2}] * 2,
    "run/quarantine.jsonl": [{"tile": "a", "shard": "b", "cell": "c", "reason": "d"}],
    "run/scores.jsonl": [
        {"step": s, "run": "run-0", "collapsed": False, "alarm": [], "knn": 0.5} for s in (2, 4)
    ],
}


class Pointers(State):
    """best.json and held.json, and a run's other small files."""

    share = 6

    def build(self):
        super().build()
        for name, value in _SMALL.items():
            (self.folder / name).write_text(json.dumps(value))
        for name, values in _LINES.items():
            (self.folder / name).write_text("".join(json.dumps(v) + "\n" for v in values))

    def mutate(self, rng):
        if rng.random() < 0.65:
            name = rng.choice(tuple(_SMALL))
            return {name: mutate_json(self.sound[name], rng)}
        name = rng.choice(tuple(_LINES))
        return {name: mutate_lines(self.sound[name], rng)}

    def read(self):
        from small_files import read_run

        read_run(self.uri, shown)
