"""The arrows between the folders, held against the imports in the code."""

import ast
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
KNOW_RAY = {
    "terrafm/clusters/joining.py",
    "terrafm/clusters/keeper.py",
    "terrafm/clusters/private.py",
    "terrafm/jobs/client.py",
    "terrafm/jobs/package.py",
    "terrafm/ray/actors.py",
    "terrafm/clusters/patience.py",
    "terrafm/ray/runtime.py",
    "terrafm/ray/standby.py",
    "terrafm/data/ingest/works.py",
    "terrafm/data/samples/stream.py",
    "terrafm/train/metrics/operators.py",
    "terrafm/train/worker/control.py",
    "terrafm/train/worker/heartbeat.py",
    "terrafm/train/worker/loop.py",
    "terrafm/train/driver/supervisor.py",
    "terrafm/train/driver/validator.py",
    "terrafm/train/driver/monitor.py",
}
LINES_LIMIT = 500
OPENS_RASTERS = {"rasterio.open", "MemoryFile", "memory.open"}
# Beside `storage`: files that the project, or the user's own Ray, has just written.
OPEN_FILES = {
    "terrafm/config/files.py",
    "terrafm/data/shards/index.py",
    "terrafm/export/graphs.py",
    "terrafm/jobs/package.py",
    "terrafm/report/page.py",
    "terrafm/storage/json_lines.py",
    "terrafm/storage/lease_record.py",
    "terrafm/storage/local.py",
    "terrafm/storage/parquet.py",
    "terrafm/train/driver/estimate.py",
    "terrafm/train/metrics/log.py",
    "terrafm/train/worker/profiler.py",
    "tuning/searchers.py",
}


def modules(*folders):
    folders = folders or ("terrafm", "ray_jobs")
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def importers(prefix, folder):
    """Files under a folder that import a package or something in it."""
    return {
        str(path.relative_to(ROOT))
        for path in modules()
        if str(path.relative_to(ROOT)).startswith(folder)
        and any(name == prefix or name.startswith(prefix + ".") for name in imports(path))
    }


@pytest.mark.parametrize("folder", ["terrafm/models", "terrafm/losses"])
@pytest.mark.parametrize("package", ["ray", "terrafm.data", "terrafm.train", "terrafm.eval"])
def test_models_and_losses_stand_alone(folder, package):
    assert importers(package, folder) == set()


def test_only_named_files_know_ray():
    assert importers("ray", "terrafm") == KNOW_RAY


@pytest.mark.parametrize("package", ["terrafm.models", "terrafm.losses", "terrafm.train"])
def test_data_knows_no_model(package):
    assert importers(package, "terrafm/data") == set()


def test_training_does_not_evaluate():
    assert importers("terrafm.eval", "terrafm/train") == set()


@pytest.mark.parametrize("package", ["ray_jobs", "tuning", "cluster"])
def test_the_library_imports_no_outer_folder(package):
    assert importers(package, "terrafm") == set()


@pytest.mark.parametrize("folder", ["data", "models", "losses", "train", "eval", "export"])
def test_nothing_below_embeds(folder):
    assert importers("terrafm.embed", f"terrafm/{folder}") == set()


@pytest.mark.parametrize("package", ["ray", "deepspeed", "terrafm.train", "terrafm.export"])
def test_adapters_stand_in_other_tools_environments(package):
    assert importers(package, "terrafm/adapters") == set()
    users = importers("terrafm.adapters", "terrafm")
    assert all(path.startswith("terrafm/adapters/") for path in users)


def test_embedding_does_not_train():
    assert importers("terrafm.train", "terrafm/embed") == set()


@pytest.mark.parametrize("package", ["terrafm.data", "terrafm.train", "terrafm.jobs"])
@pytest.mark.parametrize("below", ["terrafm/clusters", "terrafm/ray/runtime.py"])
def test_what_joins_a_cluster_knows_no_work(package, below):
    assert importers(package, below) == set()


@pytest.mark.parametrize("package", ["terrafm", "terrafm/data", "terrafm/eval", "terrafm/train"])
def test_imports_run_one_way_between_the_rooms_of_a_package(package):
    """A room is a subfolder, or a file beside the subfolders."""
    graph = {}
    for path in (ROOT / package).rglob("*.py"):
        room = path.relative_to(ROOT / package).parts[0].removesuffix(".py")
        if room != "__init__":
            graph.setdefault(room, {}).update(_rooms_used(path, package))
    for room, used in graph.items():
        used.pop(room, None)
    while graph:
        lowest = {room for room, used in graph.items() if not used.keys() & graph.keys()}
        circle = {
            room: {u: f for u, f in used.items() if u in graph} for room, used in graph.items()
        }
        assert lowest, circle
        graph = {room: used for room, used in graph.items() if room not in lowest}


def _rooms_used(path, package):
    """{room: a file that uses it}, of one file."""
    prefix = package.replace("/", ".") + "."
    return {
        name.removeprefix(prefix).partition(".")[0]: str(path.relative_to(ROOT))
        for name in imports(path)
        if name.startswith(prefix)
    }


def test_files_of_arrow_are_opened_in_one_place():
    """Anywhere else a stranger's file could run code: tests/security/test_hostile_files.py."""
    opens = {"ParquetFile", "ParquetDataset", "read_table", "read_parquet", "open_file"}
    found = {
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in modules("terrafm", "ray_jobs", "tuning")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in opens
    }
    assert {line.partition(":")[0] for line in found} == {"terrafm/storage/parquet.py"}, found


def test_rasters_are_opened_in_one_place():
    """Anywhere else a stranger's file could be a VRT, or a bomb: tests/security."""
    found = set()
    for path in modules("terrafm", "ray_jobs", "tuning"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in OPENS_RASTERS:
                values = [*node.args, *(word.value for word in node.keywords)]
                modes = {value.value for value in values if isinstance(value, ast.Constant)}
                if not modes & {"w", "w+"}:
                    found.add(str(path.relative_to(ROOT)))
    # And read back what they have just written.
    writes = {"dense", "dense_files", "synthetic", "tile_export"}
    assert {name for name in found if Path(name).stem not in writes} == {
        "terrafm/data/rasters/opening.py"
    }


def test_files_of_a_disk_are_opened_in_few_places():
    """Anywhere else a pipe could hang it: tests/security/test_special_files.py."""
    found = {}
    for path in modules("terrafm", "ray_jobs", "tuning"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            mode = next((ast.unparse(a) for a in node.args[1:2]), "'r'")
            reads = called == "open" and "w" not in mode and "os." not in ast.unparse(node.args[0])
            if reads or called.endswith((".read_text", ".read_bytes", "OSFile", "memory_map")):
                found.setdefault(str(path.relative_to(ROOT)), set()).add(ast.unparse(node))
    assert set(found) == OPEN_FILES, found


def test_file_systems_are_asked_for_exact_names():
    """Calls that take patterns would meet other files: tests/security/test_names.py."""
    literal = {
        "call_s3", "cat_file", "connect", "cp_file", "exists", "find", "get_file", "info", "isdir",
        "ls", "open", "pipe_file", "put_file", "rm_file", "rmdir", "size",
    }  # fmt: skip
    found = {
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in modules("terrafm", "ray_jobs", "tuning")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value).rpartition(".")[2].lstrip("_") in ("filesystem", "fs")
        and node.func.attr not in literal
    }
    assert found == set()


def test_terminals_are_written_to_from_one_place():
    """Anywhere else a name from a file could steer the terminal: tests/test_terminal.py."""
    makers = {"Console", "get_console"}
    sources = modules("terrafm", "ray_jobs", "tuning")
    found = {
        f"{path.relative_to(ROOT)}: {ast.unparse(node)}"
        for path in sources
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in makers)
        or (isinstance(node, ast.ClassDef) and makers & {ast.unparse(b) for b in node.bases})
    }
    assert {line.partition(":")[0] for line in found} == {"terrafm/terminal.py"}, found
    # rich.print, and markup that is read whatever the console does.
    known = {name for path in sources for name in imports(path) if name.startswith("rich")}
    assert known <= {"rich.console", "rich.progress", "rich.segment", "rich.table", "rich.text"}


def test_what_tests_and_benchmarks_import_is_there():
    """Those that run at night only would tell of a moved name a day late."""
    own = ("terrafm", "tuning", "ray_jobs")
    wanted = {
        (node.module, alias.name)
        for path in modules("tests", "benchmarks")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] in own
        for alias in node.names
    }
    assert {name for name in wanted if not _is_there(*name)} == set()


def _is_there(module, name):
    found = import_module(module)
    is_package = found.__spec__.submodule_search_locations is not None
    return hasattr(found, name) or (is_package and find_spec(f"{module}.{name}") is not None)


def test_no_file_is_too_long():
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := _lines(p)) > LINES_LIMIT}
    assert long == {}


def _lines(path):
    return path.read_text().count("\n")
