"""Starts or joins Ray, quietly."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

# Read when Ray is imported or started: no note about future changes, no uv hook, no usage report.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Ray's workers run at nice 15: on a machine where anything else works they hardly run at all (four
# rows took 88 s beside two busy processes, and 11 s so). `nice terrafm ...` makes them nice again.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray turns proxies off in most of its gRPC, and not in what sends metrics to a node's agent. The
# empty name, gRPC's own for none, is inherited by all that is started here. No user's choice
# stands against it: all gRPC of ours goes to a cluster, with its token. (gRPC reads lower case.)
os.environ.update({"grpc_proxy": ""})

import psutil
import ray
import ray.data
from ray import ActorID
from ray._private.state import available_resources_per_node
from ray._private.state import state as ray_state
from ray._private.worker import global_worker
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    get_or_create_autoscaling_coordinator,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.node_trackers import get_or_create_actor_location_tracker
from ray.data._internal.stats import get_or_create_stats_actor
from ray.util.placement_group import PlacementGroup, PlacementGroupID, remove_placement_group

from terrafm.clusters.joining import WANTED, join
from terrafm.clusters.node import Node
from terrafm.clusters.patience import patient_start
from terrafm.clusters.private import go_private, leave_private
from terrafm.clusters.versions import JOB_VARIABLE
from terrafm.errors import RayStartError, UsageError
from terrafm.modalities import VARIABLE as SENSORS_VARIABLE
from terrafm.storage.faults import one_line

logger = logging.getLogger(__name__)

# Between two steps of Ray Data's scheduling loop; a block takes far longer to make.
PAUSE_SECONDS = 0.01

_ANSWER_SECONDS = 10.0

_TOO_SLOW = "timed out during startup"
_TRIES = 4
_END_SECONDS = 10.0

# What a person need not read: processes that wait or read, as they should; and processes that were
# lost, which whoever waits for them reports in one line.
_NOISE = (
    "PYTHON worker processes have been started",
    "A worker died or was killed while executing a task",
)

# Address of the Ray that this module started: another one may have taken its place since.
_own_address: str | None = None


def ensure_ray(num_cpus: int | None = None) -> None:
    """Joins the cluster of RAY_ADDRESS, or starts Ray as children of this process.

    Does nothing to a Ray that runs already, but for silencing Ray Data in this process.

    Args:
        num_cpus: logical CPUs of a local Ray; by default those of the machine. Ray Data needs
            some beside the training workers', or it waits for ever.

    Raises:
        UsageError: there is no cluster at RAY_ADDRESS, or it wants another token.
        RayStartError: one did not start.
    """
    global _own_address
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS")
        # Another Ray on this machine must not be joined by accident.
        if address:
            leave_private()
            join(address)
            where: dict[str, Any] = {"address": address}
            # Its workers have environments of their own. Those of a job have the job's, and Ray
            # refuses a variable that is given twice.
            if os.environ.get(SENSORS_VARIABLE) and not os.environ.get(JOB_VARIABLE):
                where["runtime_env"] = {
                    "env_vars": {SENSORS_VARIABLE: os.environ[SENSORS_VARIABLE]}
                }
        else:
            where = {"address": "local", "num_cpus": num_cpus, **go_private()}
        try:
            _init(where, is_own=not address)
            _silence_noise()
            _own_address = None if address else ray.get_runtime_context().gcs_address
        except ConnectionError as error:
            raise UsageError(f"cannot reach the Ray cluster at {address}: {error}") from None
        except ValueError as error:
            # What Ray says of an address that is none.
            raise UsageError(f"RAY_ADDRESS={address}: {one_line(error)}; {WANTED}") from None
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _init(where: Mapping[str, Any], *, is_own: bool) -> None:
    """`ray.init`; a Ray of one's own is started again where its raylet gives up.

    It does where a port was taken meanwhile, or memory is short.

    Raises:
        RayStartError: it did not start.
    """
    for left in reversed(range(_TRIES)):
        try:
            with _own_sigterm(), patient_start():
                ray.init(
                    **where,
                    include_dashboard=False if is_own else None,
                    log_to_driver=False,
                    # Lost workers are reported by those who wait for them, in one line.
                    logging_level=logging.CRITICAL,
                )
        except Exception as error:
            # It has no class of its own.
            if _TOO_SLOW not in str(error):
                raise
            ray.shutdown()
            if is_own:
                _end_half_started(where["_temp_dir"])
            if not is_own or not left:
                raise RayStartError(
                    "Ray did not start: its raylet has ended, or was not there after ten minutes; "
                    "is there memory left? Repeat the command, what is done stays"
                ) from None
            logger.warning("Ray gave up starting: this machine is busy; it is started again")
        else:
            return


def _end_half_started(folder: str) -> None:
    """Ends what a start that has failed left running: Ray forgets those processes.

    Args:
        folder: of Ray's files; the processes have it among their arguments.
    """
    left = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if any(folder in argument for argument in child.cmdline()):
                child.kill()
                left.append(child)
    psutil.wait_procs(left, timeout=_END_SECONDS)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Has SIGTERM do what it did before Ray starts in this block.

    Ray has it print a stack of C++ and end with 1. Its processes end as well when this one's
    interpreter does.
    """
    before = signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    set_handler = ray._private.utils.set_sigterm_handler
    ray._private.utils.set_sigterm_handler = lambda _: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = set_handler
        # The C++ part has put its own in place.
        signal.signal(signal.SIGTERM, before)


def _silence_noise() -> None:
    """Keeps a local Ray from telling the terminal what is no news to us."""
    show = ray._private.worker.print_to_stdstream
    if getattr(show, "without_noise", False):
        return

    def show_others(data: dict[str, Any], *args: Any, **options: Any) -> None:
        if not any(noise in line for noise in _NOISE for line in data["lines"]):
            show(data, *args, **options)

    show_others.without_noise = True  # type: ignore[attr-defined]
    ray._private.worker.print_to_stdstream = show_others


def renew_ray(num_cpus: int | None = None) -> None:
    """Restarts a Ray that `ensure_ray` started: what failed work still holds is freed.

    A cluster that was joined is not ours to restart and stays as it is.
    """
    if ray.is_initialized() and ray.get_runtime_context().gcs_address == _own_address:
        ray.shutdown()
    ensure_ray(num_cpus)


def keep_data_actors_here() -> None:
    """Has Ray Data's three actors for the whole cluster run on this process's node.

    They stay where they were made first, and Ray Data fails without them: on the node of a
    training worker they would be lost with it.
    """
    get_or_create_stats_actor()
    get_or_create_autoscaling_coordinator()
    get_or_create_actor_location_tracker()


def cluster_nodes() -> list[Node]:
    """All nodes that are alive, with what is free on them now."""
    free, going = available_resources_per_node(), ray_state.get_draining_nodes()
    return [
        Node(
            id=node["NodeID"],
            name=node["NodeManagerHostname"],
            available=free.get(node["NodeID"], {}),
            going_at=going[node["NodeID"]] / 1000 if node["NodeID"] in going else None,
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def free_orphans() -> None:
    """Removes this job's placement groups whose creator is dead.

    Ray 2.60 leaves those of worker groups that failed to start, and their CPUs would be waited
    for in vain.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    for content in ray_state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        removed = group.state == PlacementGroupTableData.REMOVED
        # Those that no actor made, Tune's for one, are said to be of a dead actor as well.
        orphan = group.creator_actor_dead and not ActorID(group.creator_actor_id).is_nil()
        if group.creator_job_id == job and orphan and not removed:
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))


@dataclass(frozen=True)
class Autoscaler:
    """What the cluster's autoscaler has told of its newest round.

    Attributes:
        round: number of the look at the cluster that the round began with; 0 where it tells none.
        refuses: it cannot bring all machines that are asked for, and so brings none of them.
    """

    round: int
    refuses: bool


def autoscaler() -> Autoscaler | None:
    """Who can get more nodes for the cluster; None where nobody can.

    Ray's own question, for its cluster configuration, is answered by no autoscaler that comes with
    it. The second one tells the GCS each round what it has seen; a cluster without has none of it.
    """
    reply = global_worker.gcs_client.get_cluster_status(timeout_s=_ANSWER_SECONDS)
    told = GetClusterStatusReply.FromString(reply).autoscaling_state
    if told.autoscaler_state_version > 0:
        refuses = bool(told.infeasible_cluster_resource_constraints)
        return Autoscaler(told.last_seen_cluster_resource_state_version, refuses)
    return None if ray_state.get_cluster_config() is None else Autoscaler(0, refuses=False)


def is_autoscaled() -> bool:
    """Whether the cluster can get more nodes by itself."""
    return autoscaler() is not None


class SchedulingPause(ExecutionCallback):  # type: ignore[misc]
    """Lets Ray Data's scheduling loop rest: it runs in the process that takes the data.

    While finished blocks wait to be taken, Ray 2.60's loop spins. The interpreter lock it holds
    made a training step of many small operations take four times as long. Here, for Ray sends
    the class to every worker, which then imports its module: the stream's would bring torch.
    """

    def on_execution_step(self, executor: object) -> None:
        """Called once a round."""
        time.sleep(PAUSE_SECONDS)
