"""Before a process joins a cluster: its token, its kind of address, and whether it is let in.

Ray itself asks for half a minute, with a line a second, and then says that it cannot connect.
"""

from __future__ import annotations

import os
import time

import grpc
from ray._common.tls_utils import load_certs_from_env
from ray._private import ray_constants
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._raylet import Config  # type: ignore[attr-defined]
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from terrafm.clusters import state
from terrafm.clusters.dashboard import refusal
from terrafm.clusters.local import LOOPBACK_ONLY
from terrafm.clusters.token import HOW_TO_GIVE, MODE_VARIABLE, Token, turn_on
from terrafm.errors import UsageError
from terrafm.shell import command_line

_SECONDS = 5.0
# A GCS that starts again takes some seconds.
_PATIENCE_SECONDS = 10.0
_ANSWERS = (
    grpc.StatusCode.OK,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.PERMISSION_DENIED,
)
WANTED = (
    "RAY_ADDRESS wants the host:port of the cluster's GCS, such as 10.0.0.5:6379; without the "
    "variable the command runs on this machine alone"
)


def join(address: str) -> None:
    """Prepares this process's Ray for a cluster, and asks whether it is let in.

    A token that lies ready is not used in a cluster without tokens: a process that has turned
    them on refuses what the cluster asks of it, and its actors end before they run.

    Args:
        address: as RAY_ADDRESS has it. The GCS's host:port is asked; other kinds, such as `auto`,
            are left to Ray.

    Raises:
        UsageError: it is a dashboard's address, or nobody answers there; a token is missing,
            wrong or cannot be read, or the cluster has none and RAY_AUTH_MODE wants one.
    """
    if address.startswith(("http://", "https://")):
        raise UsageError(
            f"RAY_ADDRESS={address} is the address of a dashboard, which takes jobs: "
            f"{command_line('terrafm', 'submit', 'VERB', '...', '--address', address)}; {WANTED}"
        )
    known = "://" not in address and ":" in address
    if known and _first_answer(address) is grpc.StatusCode.OK:
        if os.environ.get(MODE_VARIABLE, "").lower() == "token":
            raise UsageError(
                f"the cluster at {address} was started without a token, and {MODE_VARIABLE} is "
                f"token here: start the cluster with one, or unset {MODE_VARIABLE} and do without"
            )
    else:
        token = turn_on()
        if known and _answer(address, token) is grpc.StatusCode.UNAUTHENTICATED:
            raise UsageError(
                refusal(address, token)
                if token
                else f"the cluster at {address} asks for a token: {HOW_TO_GIVE}"
            )
    # Ray has read both when it was imported.
    Config.initialize("")
    if state.runs_at(address):
        os.environ.update(LOOPBACK_ONLY)
        ray_constants.ENABLE_RAY_CLUSTER = False


def _first_answer(address: str) -> grpc.StatusCode:
    """What the GCS says to a process without a token; it may be about to start again.

    Raises:
        UsageError: nobody answers, or somebody else.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while (code := _answer(address, None)) not in _ANSWERS:
        if time.monotonic() > deadline:
            raise UsageError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({code.name.lower()}): is it "
                f"running, and can this machine reach it? {WANTED}"
            )
        time.sleep(1.0)
    return code


def _answer(address: str, token: Token | None) -> grpc.StatusCode:
    """What the GCS says to a process with this token."""
    metadata = [(name.lower(), value) for name, value in token.headers.items()] if token else []
    channel = _channel(address)
    try:
        gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel).GetClusterId(
            gcs_service_pb2.GetClusterIdRequest(), timeout=_SECONDS, metadata=metadata
        )
    except grpc.RpcError as error:
        return error.code()
    finally:
        channel.close()
    return grpc.StatusCode.OK


def _channel(address: str) -> grpc.Channel:
    """As Ray makes it, without the token that Ray adds where RAY_AUTH_MODE is token.

    Ray's options keep gRPC from http_proxy, which would read the token.
    """
    if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
        return grpc.insecure_channel(address, options=GLOBAL_GRPC_OPTIONS)
    chain, key, root = load_certs_from_env()
    return grpc.secure_channel(
        address,
        grpc.ssl_channel_credentials(
            root_certificates=root, private_key=key, certificate_chain=chain
        ),
        options=GLOBAL_GRPC_OPTIONS,
    )
