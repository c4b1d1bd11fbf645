"""How many training workers a cluster has room for; pure, from a list of its nodes."""

from collections.abc import Container, Iterable, Mapping, Sequence

from terrafm.clusters.node import Node

# Between the sums of Ray's fractional resources and the numbers that a person wrote.
_ROUNDING = 1e-6
_NOTHING: Mapping[str, float] = {}


def fitting_workers(
    nodes: Iterable[Node],
    need: Mapping[str, float],
    most: int,
    reserved: Mapping[str, float] = _NOTHING,
) -> int:
    """Workers that can be started on what is free, with something left to read data.

    Args:
        nodes: of the cluster; those that are going count for nothing.
        need: resource -> what one worker holds.
        most: workers wanted.
        reserved: resource -> what is kept free besides, for a validation.

    Returns:
        At most `most`, such that each finds its resources on one node and CPUs are left over.
    """
    staying = [node.available for node in nodes if node.going_at is None]
    places = sum(_places(available, need) for available in staying)
    workers = min(most, places)
    while workers > 0 and not _leave_enough(staying, need, workers, reserved):
        workers -= 1
    return workers


def can_grow(
    nodes: Iterable[Node],
    occupied: Container[str],
    need: Mapping[str, float],
    reading: float,
    reserved: Mapping[str, float] = _NOTHING,
) -> bool:
    """Whether a group of workers would be larger if it ended and started again.

    Args:
        nodes: of the cluster, with what is free while the group trains; those that are going
            count for nothing.
        occupied: ids of the nodes that its workers are on; room on others counts.
        need: resource -> what one worker holds.
        reading: CPUs that the group's data workers hold. They may lie on any node, also on one
            that came after its workers had started, and are free once it ends.
        reserved: as in `fitting_workers`.
    """
    staying = [node for node in nodes if node.going_at is None]
    has_place = any(_places(n.available, need) for n in staying if n.id not in occupied)
    free = [*(node.available for node in staying), {"CPU": reading}]
    return has_place and _leave_enough(free, need, 1, reserved)


def reading_cpus(
    nodes: Iterable[Node],
    need: Mapping[str, float],
    workers: int,
    reserved: Mapping[str, float] = _NOTHING,
) -> float:
    """CPUs that each worker may read data with.

    A data worker lies on one node and holds a whole CPU, or a part where there are too few: what
    a node has left counts in such pieces only.

    Args:
        nodes: of the cluster; those that are going count for nothing.
        need: resource -> what one worker holds.
        workers: as many as `fitting_workers` finds room for.
        reserved: as it was given there; its CPUs lie on one node where one has as many left.

    Returns:
        A whole number, or less than one.
    """
    left = _left([node.available for node in nodes if node.going_at is None], need, workers)
    _keep_free(left, reserved.get("CPU", 0.0))

    def pieces(size: float) -> int:
        return sum(int((cpus + _ROUNDING) // size) for cpus in left)

    if (whole := pieces(1.0)) >= workers:
        return float(whole // workers)
    parts = {cpus / count for cpus in left for count in range(1, workers + 1) if cpus > _ROUNDING}
    return max(part for part in parts if part < 1 and pieces(part) >= workers)


def _leave_enough(
    free: Sequence[Mapping[str, float]],
    need: Mapping[str, float],
    workers: int,
    reserved: Mapping[str, float],
) -> bool:
    """Whether so many workers leave what is to be kept free, and something to read data."""

    def left(resource: str) -> float:
        there = sum(available.get(resource, 0.0) for available in free)
        return there - workers * need.get(resource, 0.0) - reserved.get(resource, 0.0)

    return left("CPU") > _ROUNDING and all(left(resource) >= -_ROUNDING for resource in reserved)


def _left(
    available: Iterable[Mapping[str, float]], need: Mapping[str, float], workers: int
) -> list[float]:
    """CPUs of each node when the workers are placed; Ray fills the node with the most first."""
    left = []
    for node in sorted(available, key=lambda node: node.get("CPU", 0.0), reverse=True):
        here = min(workers, _places(node, need))
        workers -= here
        left.append(node.get("CPU", 0.0) - here * need.get("CPU", 0.0))
    return left


def _keep_free(left: list[float], reserved: float) -> None:
    """Takes CPUs off the node with the most, and off others where it has too few."""
    while reserved > _ROUNDING:
        at = max(range(len(left)), key=left.__getitem__)
        taken = min(reserved, left[at])
        left[at] -= taken
        reserved -= taken


def _places(available: Mapping[str, float], need: Mapping[str, float]) -> int:
    return min(
        int((available.get(resource, 0.0) + _ROUNDING) // amount)
        for resource, amount in need.items()
        if amount > 0
    )
