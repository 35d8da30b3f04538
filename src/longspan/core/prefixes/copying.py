"""Prefixes that are copied to another instance: from then on both have them, each as a residence of its own."""

from __future__ import annotations

from longspan.core.actions import MigrateKV
from longspan.core.books.ledger import Ledger
from longspan.core.books.migration import enter_migration
from longspan.core.books.request import Request
from longspan.core.prefixes.moving import MOST_TOKENS, along
from longspan.prefix_keys import KEY_BYTES


def find_copyable(ledger: Ledger, request: Request, source: int, target: int) -> MigrateKV | None:
    """Return what would copy those of a waiting request's tokens that come behind those that the target has, as far as
    the source has them: no more than go at once. None: there are none."""
    lookup, block = ledger.prefixes.lookup, ledger.prefixes.block
    found, there = lookup.find(request), lookup.find(request, frozenset([target]))
    begin = 0 if there is None else there[1]
    if found is None:
        return None
    node, end = found
    end = min(end, begin + max(block, MOST_TOKENS - MOST_TOKENS % block))
    path = node.path()
    ends = [*[each.residence.begin for each in path[1:]], end]
    pieces = [piece for each, stop in zip(path, ends, strict=True) if stop > begin
              for piece in each.residence.between(begin, stop)]  # fmt: skip
    end = min([end, *[piece.start for piece in pieces if piece.instance != source]])
    end -= end % block
    if begin >= end:
        return None
    return along(ledger, path, source, target, [(begin, end)], ledger.numbering.residences)


def start_copy(ledger: Ledger, request: Request, source: int, target: int) -> MigrateKV | None:
    """Start that between two idle instances; None if the target lacks room, or what is reserved elsewhere would."""
    action = find_copyable(ledger, request, source, target)
    if action is None:
        return None
    cluster, prefixes = ledger.cluster, ledger.prefixes
    prefixes.hold(action)
    prefixes.make_room(target, action.num_tokens)
    room = min(cluster[target].vacant, cluster[target].unreserved)
    if room < action.num_tokens or any([instance.unreserved < 0 for instance in cluster.instances]):
        prefixes.let_go(action)
        return None
    ((begin, end),) = action.ranges
    places = range(max(0, begin // prefixes.block - 1), end // prefixes.block)
    keys = bytes(request.prefix_keys)
    prefixes.copies[action.migration_id] = [keys[each * KEY_BYTES : (each + 1) * KEY_BYTES] for each in places]
    ledger.numbering.residences += 1
    cluster.take(target, action.num_tokens)
    enter_migration(ledger, action)
    return action
