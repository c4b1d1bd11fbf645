"""Before a process joins a cluster: its token, its kind of address, and whether it is let in.

Ray itself asks for half a minute, with a line a second, and then says that it cannot connect.
"""

from __future__ import annotations

import os

import grpc
from ray._private import ray_constants
from ray._private.grpc_utils import init_grpc_channel
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from terrafm.clusters import state
from terrafm.clusters.dashboard import refusal
from terrafm.clusters.local import LOOPBACK_ONLY
from terrafm.clusters.token import HOW_TO_GIVE, find_token, turn_on
from terrafm.errors import UsageError

_SECONDS = 5.0


def join(address: str) -> None:
    """Prepares this process's Ray for a cluster, and asks whether it is let in.

    Args:
        address: as RAY_ADDRESS has it.

    Raises:
        UsageError: a token is missing, wrong, or cannot be read.
    """
    turn_on()
    # Ray has read both when it was imported.
    Config.initialize("")
    if state.runs_at(address):
        os.environ.update(LOOPBACK_ONLY)
        ray_constants.ENABLE_RAY_CLUSTER = False
    check_admitted(address)


def check_admitted(address: str) -> None:
    """Asks the cluster's GCS whether it takes this process's token.

    One that cannot be reached is left to Ray, which waits for it.

    Args:
        address: host:port of the GCS; others, such as `auto`, are left to Ray too.

    Raises:
        UsageError: a token is missing or wrong.
    """
    if "://" in address or ":" not in address:
        return
    token = find_token()
    metadata = [(name.lower(), value) for name, value in token.headers.items()] if token else []
    channel = init_grpc_channel(address)
    try:
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(
            gcs_service_pb2.GetClusterIdRequest(), timeout=_SECONDS, metadata=metadata
        )
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            if token is None:
                raise UsageError(
                    f"the cluster at {address} asks for a token: {HOW_TO_GIVE}"
                ) from None
            raise UsageError(refusal(address, token)) from None
    finally:
        channel.close()
