"""The files of cluster/monitoring: what Grafana and Prometheus read."""

import importlib.util
import json
import re

import pytest
import yaml
from documents import ABSENT, CLUSTER, broken, load, schema
from jsonschema import Draft7Validator
from kubernetes_validate import validate

from terrafm.train.metrics.operators import GAUGES

MONITORING = CLUSTER / "monitoring"
DASHBOARD = MONITORING / "terrafm-dashboard.json"


def complaints(document):
    """Of Grafana's schema of a dashboard (Grafana's foundation SDK, Apache-2.0), and of ours."""
    found = [error.message for error in
             Draft7Validator(schema("grafana_dashboard")).iter_errors(document)]  # fmt: skip
    if found:
        return found
    places = set()
    for panel in document["panels"]:
        where = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(where["x"], where["x"] + where["w"])
            for y in range(where["y"], where["y"] + where["h"])
        }
        if cells & places:
            found.append(f"{panel['title']} lies over another panel")
        places |= cells
        found += [f"{panel['title']} has no query" for _ in [0] if not panel.get("targets")]
    if max(x for x, _ in places) > 23:
        found.append("a panel lies outside of the grid")
    return found


def document():
    return json.loads(DASHBOARD.read_text())


def test_the_dashboard_is_what_its_code_writes():
    file = MONITORING / "dashboard.py"
    spec = importlib.util.spec_from_file_location("monitoring_dashboard", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert document() == module.dashboard(), "run cluster/monitoring/dashboard.py"


def test_grafana_takes_the_dashboard():
    assert complaints(document()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("schemaVersion", ABSENT),
        ("panels/0/typ", "stat"),
        ("panels/3/gridPos/x", "left"),
        ("panels/0/gridPos/x", 4),
        ("panels/0/gridPos/w", 40),
        ("panels/2/targets", []),
        ("templating/list/0/type", "prometheus"),
    ],
)
def test_a_broken_dashboard_is_refused(path, value):
    assert complaints(broken(document(), path, value))


def test_the_dashboard_shows_all_that_is_reported():
    text = DASHBOARD.read_text()
    for name, _ in GAUGES.values():
        assert f"ray_{name}" in text, name
    for name in ("alarm", "restarts", "workers", "total_steps", "checkpoint_seconds_bucket"):
        assert f"ray_terrafm_{name}" in text, name
    # Every query is of the chosen runs alone.
    for panel in document()["panels"]:
        for target in panel["targets"]:
            for selector in re.findall(r"ray_\w+(\{[^}]*\})?", target["expr"]):
                assert selector == '{run=~"$run"}', target["expr"]


def test_prometheus_finds_the_nodes_where_ray_lists_them():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = load(MONITORING / "prometheus.yml")["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]


def test_only_prometheus_comes_through_the_wall():
    monitor, policy = yaml.safe_load_all((MONITORING / "kubernetes.yaml").read_text())
    assert monitor["kind"] == "PodMonitor"
    cluster = load(CLUSTER / "kuberay" / "base" / "raycluster.yaml")["spec"]
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    wanted = monitor["spec"]["selector"]["matchLabels"]
    for pod in pods:
        assert wanted.items() <= pod["template"]["metadata"]["labels"].items()
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    validate(policy, "1.33", strict=True)
    assert policy["spec"]["podSelector"]["matchLabels"] == wanted
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8080}]
    (source,) = rule["from"]
    assert source["namespaceSelector"]["matchLabels"]
    assert source["podSelector"]["matchLabels"]
