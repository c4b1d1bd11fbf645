"""YAML and JSON documents as trees: reading, changing a copy, and the part of kustomize in use."""

import copy
import json
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"
OVERLAYS = sorted(path.name for path in (KUBERAY / "overlays").iterdir())

ABSENT = object()


def load(path):
    return yaml.safe_load(path.read_text())


def schema(name):
    return json.loads((Path(__file__).parent / "schemas" / f"{name}.schema.json").read_text())


def broken(tree, path, value):
    """A copy with something else at a path like "spec/groups/0/name"; ABSENT takes it out."""
    operation = "remove" if value is ABSENT else "add"
    changed = copy.deepcopy(tree)
    _apply(changed, {"op": operation, "path": "/" + path, "value": value}, overwrite=True)
    return changed


def rendered(folder):
    """What `kubectl kustomize` prints of a folder, as far as the folders here use of it.

    That is `resources`, JSON 6902 patches in files, replacements that create one field, and the
    annotation that leaves a document out.
    """
    kustomization = load(folder / "kustomization.yaml")
    assert set(kustomization) <= {"apiVersion", "kind", "resources", "patches", "replacements"}
    documents = []
    for name in kustomization["resources"]:
        path = folder / name
        documents += rendered(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in kustomization.get("patches", []):
        document = _find(documents, patch["target"])
        for operation in load(folder / patch["path"]):
            _apply(document, operation)
    for replacement in kustomization.get("replacements", []):
        source = replacement["source"]
        value = _find(documents, source)[source["fieldPath"]]
        for target in replacement["targets"]:
            assert target["options"] == {"create": True}
            for path in target["fieldPaths"]:
                operation = {"op": "add", "path": "/" + path.replace(".", "/"), "value": value}
                _apply(_find(documents, target["select"]), operation)
    return [document for document in documents if not _is_local(document)]


def _find(documents, target):
    (found,) = [
        document
        for document in documents
        if document["kind"] == target["kind"] and document["metadata"]["name"] == target["name"]
    ]
    return found


def _is_local(document):
    notes = document["metadata"].get("annotations", {})
    return notes.get("config.kubernetes.io/local-config") == "true"


def _apply(tree, operation, overwrite=False):
    """One operation of RFC 6902; "add" into a list puts in between unless told to overwrite."""
    *parents, last = [
        part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]
    ]
    for part in parents:
        tree = tree[int(part) if isinstance(tree, list) else part]
    key = int(last) if isinstance(tree, list) else last
    kind = operation["op"]
    if kind in ("replace", "remove"):
        tree[key]  # it must be there
    if kind == "remove":
        del tree[key]
    elif isinstance(tree, list) and kind == "add" and not overwrite:
        tree.insert(key, copy.deepcopy(operation["value"]))
    else:
        tree[key] = copy.deepcopy(operation["value"])
