"""What a target is: a sound sample in a folder, its mutation, and its readers."""

import hashlib
import io
from abc import ABC, abstractmethod
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TESTS = Path(__file__).resolve().parents[2]


def load_module(path):
    spec = spec_from_file_location(path.stem, path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def parquet_bytes(table, **options):
    """A Parquet file of any table, whatever its own schema says of nulls."""
    sink = io.BytesIO()
    table = table.cast(pa.schema([_nullable(field) for field in table.schema]))
    pq.write_table(table, sink, **options)
    return sink.getvalue()


def _nullable(field):
    kind = field.type
    if pa.types.is_struct(kind):
        kind = pa.struct([_nullable(inner) for inner in kind])
    return pa.field(field.name, kind)


class Target(ABC):
    """One kind of input in a folder of its own.

    Attributes:
        share: of all inputs, in parts; dear ones get fewer.
    """

    share = 1

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def build(self) -> None:  # noqa: B027 - not all need one
        """Writes a sound sample into the folder."""

    @abstractmethod
    def mutate(self, rng) -> dict[str, bytes]:
        """The files of a case: path in the folder -> content."""

    @abstractmethod
    def read(self) -> None:
        """Reads everything as the commands do; any error but the declared ones is a finding."""

    def load(self) -> None:
        """Reads the sound sample once, before mutations begin."""
        self.sound = {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }


def shown(renderable):
    """Rendered as a terminal would get it."""
    from terrafm.terminal import PlainConsole

    PlainConsole(file=io.StringIO(), width=120).print(renderable)
