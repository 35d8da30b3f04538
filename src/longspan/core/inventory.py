"""What is there: requests, their KV, and what is under way; for who begins to watch in the middle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from longspan.core.actions import MigrateKV, RunBatch
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import Request
from longspan.core.kv.residence import Residence

State = Literal["up", "leaving", "lost"]
"""Of an instance."""

References = tuple[tuple[tuple[int, int], ...], int]
"""What a request refers to: (residence, end) of those that it has adopted, and the number of its own."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The books themselves, so it holds until the next event and is for reading only.

    instances: of all that have ever served, whether they serve: up, leaving, lost.
    requests: that are alive or drain, in order of arrival. references: of those that hold KV. running: batches and
    migrations that were issued and have not completed, each kind in its order.
    """

    instances: Mapping[int, State]
    requests: Sequence[Request]
    residences: Sequence[Residence]
    references: Mapping[str, References]
    running: Sequence[RunBatch | MigrateKV]


def take_inventory(ledger: Ledger) -> Inventory:
    """Return what the books hold now."""
    placement, nodes = ledger.placement, ledger.prefixes.nodes
    residences = {residence.number: residence for residence in placement.residences()}
    residences |= {number: node.residence for number, node in nodes.items()}
    instances: dict[int, State] = dict.fromkeys(ledger.cluster.numbers, "lost")
    instances |= {each.id: "leaving" if each.is_leaving else "up" for each in ledger.cluster.instances}
    return Inventory(
        instances,
        sorted(ledger.requests.values(), key=lambda request: request.arrival_index),
        list(residences.values()),
        {name: (placement.earlier(name), own.number) for name, own in placement.own.items()},
        [*[work.action for work in ledger.batches.values()], *[work.action for work in ledger.migrations.values()]],
    )


def all_of(parts: Sequence[Inventory]) -> Inventory:
    """Return the inventory of a fleet, of those of its nodes."""
    return Inventory(
        {number: state for part in parts for number, state in sorted(part.instances.items())},
        sorted([request for part in parts for request in part.requests], key=lambda request: request.arrived),
        [residence for part in parts for residence in part.residences],
        {name: found for part in parts for name, found in part.references.items()},
        [action for part in parts for action in part.running],
    )
