"""Which node of a Ray cluster gets which instance: from the CPUs that are free, and nothing else.

Ray itself spreads and packs what is asked of it one by one; it does not know that neighbouring instances exchange most,
nor that what is asked for may depend on what there is. (Its placement groups would, but in 2.60 the head node's service
tries again without a pause, on a core of its own, while one of SPREAD or PACK waits for a node that was lost.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longspan.config import RayPlacement


@dataclass(frozen=True, slots=True)
class RayNode:
    """A node that lives. free, total: its CPUs."""

    id: str
    address: str
    free: float
    total: float


def place(
    nodes: Sequence[RayNode], counts: Mapping[str, int], number: int, cpus: float, how: RayPlacement
) -> list[str] | None:
    """Return the ids of the nodes for so many instances more, neighbours together; None: there is no room for all.

    counts: instances that each node has already. cpus: of each instance, all on one node.
    """
    added = {node.id: 0 for node in nodes}

    def rank(node: RayNode) -> tuple[float, float]:
        count, free = counts.get(node.id, 0) + added[node.id], node.free - added[node.id] * cpus
        return (count, -free) if how == "spread" else (-count, -free)

    for _ in range(number):
        with_room = [node for node in nodes if node.free - added[node.id] * cpus >= cpus]
        if not with_room:
            return None
        added[min(with_room, key=rank).id] += 1
    return [node.id for node in nodes for _ in range(added[node.id])]


def even_threads(nodes: Sequence[RayNode], number: int, devices: int, how: RayPlacement) -> int:
    """Return for each device of so many instances an even share of the CPUs that are free where they are placed, and 1
    where there is no room for them yet."""
    placed = place(nodes, {}, number, devices, how) or []
    shares = [int(node.free // (placed.count(node.id) * devices)) for node in nodes if node.id in placed]
    return min(shares, default=1)


def told_of_room(nodes: Sequence[RayNode], missing: int, number: int, devices: int, threads: int) -> str:
    """Return what was asked of Ray, and what it has."""
    there = "; ".join(f"{node.address} has {node.free:g} of {node.total:g} CPUs free" for node in nodes) or "no node"
    return (
        f"Ray has no room for {missing} of {number} instances, each with all of its CPUs on one node: "
        f"{devices * threads}, for {devices} devices with {threads} threads. Its nodes: {there}. Use fewer --instances "
        "or --threads-per-device, or add nodes"
    )
