"""A node as those see it who place work on a cluster."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        id: Ray's, hexadecimal.
        name: host name or address, for people.
        available: resource -> what nobody holds now.
        going_at: seconds since 1970 when it will be taken away; 0 where only the time is not
            known, None for a node that stays.
    """

    id: str
    name: str
    available: Mapping[str, float]
    going_at: float | None = None
