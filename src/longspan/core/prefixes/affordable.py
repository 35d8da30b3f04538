"""How much of a prefix can be taken over with the slots that there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longspan.core.books.cluster import Cluster
from longspan.core.prefixes.node import Node


def affordable(path: Sequence[Node], length: int, most: Mapping[int, int], cluster: Cluster, block: int) -> int:
    """Return how many of a prefix's first tokens can be had with so many slots of each instance, none of them reserved.

    path: the nodes that have it, up to `length`. What other requests use already takes no slot.
    """
    rooms: dict[int, int] = {}
    for node, behind in zip(path, [*path[1:], None], strict=True):
        end = length if behind is None else behind.residence.begin
        cached_from = node.referenced_end
        for piece in node.residence.between(cached_from, end) if cached_from < end else ():
            number = piece.instance
            if number not in rooms:
                unreserved = 0 if cluster[number].is_leaving else cluster[number].unreserved
                rooms[number] = max(0, min(unreserved, most.get(number, unreserved)))
            if piece.length > rooms[number]:
                fitting = piece.start + rooms[number]
                return fitting - fitting % block
            rooms[number] -= piece.length
    return length
