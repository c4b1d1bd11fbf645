"""Writes terrafm-dashboard.json beside this file: what Grafana shows of a run.

python cluster/monitoring/dashboard.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("terrafm-dashboard.json")
SOURCE = {"type": "prometheus", "uid": "${source}"}
OF_RUN = '{run=~"$run"}'
WIDTH, STAT_HEIGHT, CHART_HEIGHT = 24, 4, 8

# Title, query, unit, and from which value on it is orange or red.
STATS: list[tuple[str, str, str, list[float]]] = [
    ("Done", f"max by (run) (ray_terrafm_step{OF_RUN}) / max by (run) "
             f"(ray_terrafm_total_steps{OF_RUN})", "percentunit", []),
    ("Tiles per second", f"sum by (run) (ray_terrafm_tiles_per_second{OF_RUN})", "none", []),
    ("Workers", f"max by (run) (ray_terrafm_workers{OF_RUN})", "none", []),
    ("Waiting for data", f"max by (run) (ray_terrafm_data_wait_ratio{OF_RUN})", "percentunit",
     [0.15, 0.4]),
    ("Restarts", f"sum by (run) (ray_terrafm_restarts{OF_RUN})", "none", [1, 10]),
    ("Alarms", f"sum by (run) (ray_terrafm_alarm{OF_RUN})", "none", [1, 2]),
]  # fmt: skip

# Title, what it says, unit, and its queries with the legend of each.
CHARTS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("Loss", "Chance is ln K for K prototypes. It does not tell success from collapse.", "none",
     [(f"ray_terrafm_loss_nats{OF_RUN}", "{{run}}")]),
    ("Entropies, nats", "Near 0 or near ln K: see docs/collapse.md.", "none",
     [(f"ray_terrafm_teacher_entropy_nats{OF_RUN}", "teacher {{run}}"),
      (f"ray_terrafm_student_entropy_nats{OF_RUN}", "student {{run}}")]),
    ("Prototypes in use", "A fall to a handful is a collapse.", "none",
     [(f"ray_terrafm_prototype_perplexity{OF_RUN}", "{{run}}")]),
    ("Effective rank", "Directions that the features use.", "none",
     [(f"ray_terrafm_effective_rank{OF_RUN}", "{{run}}")]),
    ("Alarms", "1 while one holds; what each means: docs/metrics.md.", "none",
     [(f"ray_terrafm_alarm{OF_RUN}", "{{alarm}} {{run}}")]),
    ("Gradient norm", "Before clipping.", "none",
     [(f"ray_terrafm_gradient_norm{OF_RUN}", "{{run}}")]),
    ("Tiles per second", "All workers together.", "none",
     [(f"ray_terrafm_tiles_per_second{OF_RUN}", "{{run}}")]),
    ("Model FLOPs utilisation", "Only of GPUs whose peak is known.", "percentunit",
     [(f"ray_terrafm_mfu_ratio{OF_RUN}", "{{run}}")]),
    ("Where the time goes", "Shares in which training stands still, of rank 0.", "percentunit",
     [(f"ray_terrafm_data_wait_ratio{OF_RUN}", "data {{run}}"),
      (f"ray_terrafm_checkpoint_wait_ratio{OF_RUN}", "saving {{run}}")]),
    ("Restarts", "Of the workers since the run began, by reason.", "none",
     [(f"ray_terrafm_restarts{OF_RUN}", "{{reason}} {{run}}")]),
    ("Seconds of a checkpoint", "Writing and uploading, beside training: the median and the "
     "slowest tenth.", "s",
     [(f"histogram_quantile({q}, sum by (le, run) "
       f"(rate(ray_terrafm_checkpoint_seconds_bucket{OF_RUN}[$__rate_interval])))", f"{name} "
       "{{run}}") for q, name in ((0.5, "median"), (0.9, "90 %"))]),
    ("Memory of rank 0", "Peaks of its process and of its GPU.", "bytes",
     [(f"ray_terrafm_process_memory_bytes{OF_RUN}", "process {{run}}"),
      (f"ray_terrafm_device_memory_bytes{OF_RUN}", "GPU {{run}}")]),
    ("Learning rate", "", "none", [(f"ray_terrafm_learning_rate{OF_RUN}", "{{run}}")]),
    ("Steps left out", "Not finite; their tiles stand in nonfinite.jsonl.", "none",
     [(f"ray_terrafm_skipped_steps{OF_RUN}", "{{run}}")]),
]  # fmt: skip


def dashboard() -> dict[str, Any]:
    """The document that Grafana imports."""
    panels = [_stat(number, *each) for number, each in enumerate(STATS)]
    panels += [_chart(number, *each) for number, each in enumerate(CHARTS)]
    return {
        "uid": "terrafm-runs",
        "title": "TerraFM: pretraining runs",
        "description": "What a pretraining reports to Ray's metrics: docs/metrics.md.",
        "tags": ["terrafm"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": []},
        "templating": {"list": [_source_variable(), _run_variable()]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _source_variable() -> dict[str, Any]:
    return {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"}


def _run_variable() -> dict[str, Any]:
    return {
        "name": "run", "label": "Run", "type": "query", "datasource": SOURCE,
        "query": "label_values(ray_terrafm_step, run)",
        "refresh": 2, "multi": True, "includeAll": True, "allValue": ".*", "sort": 1,
        "current": {"text": "All", "value": "$__all"},
    }  # fmt: skip


def _stat(number: int, title: str, query: str, unit: str, limits: list[float]) -> dict[str, Any]:
    width = WIDTH // len(STATS)
    steps = [{"value": None, "color": "green"}]
    colours = ("orange", "red")
    steps += [{"value": limit, "color": c} for limit, c in zip(limits, colours, strict=False)]
    return {
        "type": "stat", "title": title, "datasource": SOURCE,
        "gridPos": {"h": STAT_HEIGHT, "w": width, "x": number * width, "y": 0},
        "targets": _targets([(query, "{{run}}")]),
        "fieldConfig": {
            "defaults": {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}},
            "overrides": [],
        },
        "options": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "none"},
    }  # fmt: skip


def _chart(
    number: int, title: str, says: str, unit: str, queries: list[tuple[str, str]]
) -> dict[str, Any]:
    row, column = divmod(number, 2)
    return {
        "type": "timeseries", "title": title, "description": says, "datasource": SOURCE,
        "gridPos": {
            "h": CHART_HEIGHT, "w": WIDTH // 2,
            "x": column * WIDTH // 2, "y": STAT_HEIGHT + row * CHART_HEIGHT,
        },
        "targets": _targets(queries),
        "fieldConfig": {
            "defaults": {"unit": unit, "custom": {"drawStyle": "line", "showPoints": "never"}},
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True,
                               "calcs": []},
                    "tooltip": {"mode": "multi", "sort": "none"}},
    }  # fmt: skip


def _targets(queries: list[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {"refId": chr(ord("A") + n), "expr": expr, "legendFormat": legend, "datasource": SOURCE}
        for n, (expr, legend) in enumerate(queries)
    ]


if __name__ == "__main__":
    FILE.write_text(json.dumps(dashboard(), indent=1) + "\n")
