"""What a worker group runs on: software, commit and machines, for its `started` event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import terrafm
from terrafm.clusters.versions import own_versions, source_commit

_ACCELERATOR = "accelerator_type:"


def group_facts(
    resources: Mapping[str, float], workers: int, cpus: float, gpus: int
) -> dict[str, Any]:
    """Facts of a group, for its `started` event.

    Args:
        resources: of the whole cluster, as Ray names them.
        workers: of the group.
        cpus: that the group trains and reads with, all workers together.
        gpus: that each worker holds.

    Returns:
        `cpus` and `gpus` of the group; `cluster`: all `cpus` and `gpus`, `nodes`, names of the
        `accelerators`; `versions`; and `commit`, None where the code lies in no git checkout.
    """
    nodes = [name for name in resources if name.startswith("node:") and "internal_head" not in name]
    return {
        "cpus": round(cpus, 2),
        "gpus": workers * gpus,
        "cluster": {
            "nodes": len(nodes),
            "cpus": resources.get("CPU", 0.0),
            "gpus": resources.get("GPU", 0.0),
            "accelerators": sorted(
                name.removeprefix(_ACCELERATOR) for name in resources if _ACCELERATOR in name
            ),
        },
        "versions": {"terrafm": terrafm.__version__} | own_versions(),
        "commit": source_commit(),
    }
