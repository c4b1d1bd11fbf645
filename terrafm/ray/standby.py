"""What a process of a worker group does at its start; processes that wait for the next group.

A training process imports for ten seconds and more before it does anything, and Ray Train's own
processes for some: after a fault the run waits for that. Ray gives a new actor an idle process of
the same runtime environment, where one has never run anything. So each process of a worker group
has its node start another like itself, and a hook in the runtime environment does the imports.
A process that waits takes memory, and no logical CPU.
"""

import importlib
import logging
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import psutil
import ray
import ray.util
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR as HOOK
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
from ray.core.generated.common_pb2 import PYTHON

from terrafm.storage.limits import DOCUMENT_BYTES
from terrafm.storage.local import read_regular
from terrafm.storage.temporary import own_folder

logger = logging.getLogger(__name__)

# A step frees and takes gigabytes. glibc gives them back to the kernel, which clears every page
# when it comes again: on CPUs a fifth of a step. jemalloc, of which Ray brings its own, keeps them.
_JEMALLOC = Path(ray.__file__).parent / "core" / "libjemalloc.so"
_KEEP_FREED_MEMORY = "dirty_decay_ms:-1,muzzy_decay_ms:-1,thp:always,metadata_thp:auto"

# Ray ends an idle process after a second, but for those that are to be kept for so long.
_KEEP_SECONDS = 30 * 24 * 3600
_ANSWER_SECONDS = 10.0


def start_helper() -> None:
    """The hook of Ray Train's controller and of the actors that it starts."""
    _import_if_ordered("ray.train.v2._internal.execution.controller", "ray.train.torch")


def start_gpu_rank() -> None:
    """The hook of a training process that holds a GPU.

    Without DeepSpeed, whose import looks for GPUs: CUDA would not see later which of them Ray
    gives this process.
    """
    _name_interface()
    _import_if_ordered("ray.train.torch", "terrafm.train.worker.loop")


def start_cpu_rank() -> None:
    """The hook of any other training process."""
    _name_interface()
    _import_if_ordered("ray.train.torch", "terrafm.train.worker.loop", "terrafm.train.step.zero")


def _name_interface() -> None:
    """Tells gloo the interface that Ray knows this node by.

    It would look up the host's name, which on many machines is 127.0.0.1: no other node can
    connect to that.
    """
    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(found.address == address for found in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def start_data_worker() -> None:
    """The hook of a data worker of the stream."""
    _import_if_ordered("ray.data", "terrafm.data.samples.builder")


def rank_environment(gpu: bool) -> dict[str, str]:
    """Variables of the runtime environment of training processes."""
    if gpu:
        return {HOOK: _path(start_gpu_rank)}
    return {HOOK: _path(start_cpu_rank), **_keep_freed_memory()}


def _keep_freed_memory() -> dict[str, str]:
    if not _JEMALLOC.exists() or "LD_PRELOAD" in os.environ:
        return {}
    return {"LD_PRELOAD": str(_JEMALLOC), "MALLOC_CONF": _KEEP_FREED_MEMORY}


def data_worker_environment() -> dict[str, str]:
    """Variables of the runtime environment of data workers."""
    return {HOOK: _path(start_data_worker)}


@contextmanager
def helper_environment() -> Iterator[dict[str, str]]:
    """The controllers that this process starts meanwhile run the hook; yields their variables."""
    # The control actor imports this module, and must start fast.
    from ray.train.v2._internal.constants import ENV_VARS_TO_PROPAGATE, get_env_vars_to_propagate
    from ray.train.v2.api.data_parallel_trainer import (
        DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE,
        RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR,
    )

    ENV_VARS_TO_PROPAGATE.add(HOOK)
    os.environ[HOOK] = _path(start_helper)
    try:
        yield {
            RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_ENV_VAR: (
                DEFAULT_RAY_WARN_BLOCKING_GET_INSIDE_ASYNC_VALUE
            ),
            **get_env_vars_to_propagate(),
        }
    finally:
        del os.environ[HOOK]


def start_standby(number: int = 1) -> None:
    """Has this node start processes like this one, for actors of this job that come later.

    Does nothing in a process whose runtime environment has none of the hooks.
    """
    if not os.environ.get(HOOK):
        return
    environment = ray.get_runtime_context().get_runtime_env_string()
    orders = _orders()
    orders.mkdir(mode=0o700, parents=True, exist_ok=True)
    for _ in range(number):
        (orders / uuid.uuid4().hex).write_text(environment)
    _prestart(environment, number)


def _prestart(environment: str, number: int) -> None:
    context = ray.get_runtime_context()
    here = context.get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == here]
    request = node_manager_pb2.PrestartWorkersRequest(
        language=PYTHON,
        job_id=bytes.fromhex(context.get_job_id()),
        keep_alive_duration_secs=_KEEP_SECONDS,
        num_workers=number,
    )
    request.runtime_env_info.serialized_runtime_env = environment
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    # Its options keep gRPC from http_proxy.
    with init_grpc_channel(address, GLOBAL_GRPC_OPTIONS) as channel:
        try:
            stub = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
            stub.PrestartWorkers(request, timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            # The next restart takes longer, and nothing else.
            logger.debug("no process waits on node %s: %s", here, error)


def _import_if_ordered(*modules: str) -> None:
    """Imports where `start_standby` has asked for it.

    Others inherit the hook with the runtime environment and need little of this: Ray Data's
    actors, for one.
    """
    for order in _orders().glob("*"):
        with suppress(FileNotFoundError):
            # Only a process that runs an actor can ask Ray for this.
            environment = read_regular(str(order), DOCUMENT_BYTES).decode()
            order.unlink()
            for name in modules:
                importlib.import_module(name)
            if any(_orders().glob("*")):
                # Ray starts only so many at once, and forgets about the others.
                _prestart(environment, 1)
            return


def _orders() -> Path:
    """Folder of this node, job and hook, with a file for each process that has not come yet."""
    job = ray.get_runtime_context().get_job_id()
    session = os.path.basename(ray._private.worker.global_worker.node.get_session_dir_path())
    return Path(own_folder("standby"), session, job, os.environ[HOOK])


def _path(hook: object) -> str:
    return f"{__name__}.{hook.__name__}"  # type: ignore[attr-defined]
