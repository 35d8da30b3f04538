"""KV-cache parallelism: on which instances a request's KV grows, and which of them must run together.

A request's KV goes on at another instance after so many tokens. A chunk never straddles two of them: it is computed and
kept where the open shard is, and asks the holders of the earlier ones. All shards are planned, and their slots
reserved, before the first chunk runs; so of any two growing requests neither can take what the other will need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from longspan.core.actions import KVRange
from longspan.core.books.request import Request
from longspan.core.policies.parts.connected import connect
from longspan.core.state import SchedulerState


def plan_shards(
    tokens: int, headroom: int, rooms: Mapping[int, int], order: Sequence[int], shard_tokens: int, start: int = 0
) -> tuple[KVRange, ...] | None:
    """Plan where the tokens from `start` on go, in order, so that the last shard has the headroom behind it; None if
    there is no room.

    rooms: slots of each instance. order: instances as they are to be used. Shards are no longer than `shard_tokens`
    unless there is no other way.
    """
    left = tokens + headroom
    shares: dict[int, int] = {}
    for most in (shard_tokens, left):
        for number in order:
            share = min(left, rooms[number] - shares.get(number, 0), max(0, most - shares.get(number, 0)))
            if share > 0:
                shares[number] = shares.get(number, 0) + share
                left -= share
    if left:
        return None
    planned = []
    position = start
    for number, share in shares.items():
        end = min(position + share, start + tokens)
        if end > position:
            planned.append(KVRange(number, position, end))
        position = end
    return tuple(planned)


def span(state: SchedulerState, request: Request) -> tuple[int, ...]:
    """Return the instances of a request's next segment: those that hold its KV, and the one for the next token."""
    holders = state.placement.holders(request.id)
    reserved = request.reserved
    if reserved and reserved[0].instance not in holders:
        return (*holders, reserved[0].instance)
    return holders


def free_to_start(
    state: SchedulerState, next_prefills: Sequence[Request], pairs: Sequence[tuple[int, ...]] = ()
) -> set[int]:
    """Return the idle instances that need not wait for a busy one.

    next_prefills: those that should go on next where they are. pairs: instances that shall run together, or between
    which KV shall move.

    Requests with KV on several instances bind these together. An instance bound to a busy one starts nothing until
    that is back; so it waits for what runs now and no longer, and the request runs at once when all are idle. Only
    decodes and the next prefills bind. Other requests with KV on several instances run if these happen to be idle
    together, and their turn to bind comes.
    """
    idle = state.cluster.idle()
    decodes = state.cluster.ready_decodes.values()
    bonds = {*pairs, *state.cluster.decode_holders.values()}
    reserving = [request for request in decodes if request.reserved]
    bonds |= {span(state, request) for request in (*reserving, *next_prefills)}
    if decodes and not any([instance.unreserved for instance in idle]):
        growing = [request for request in decodes if not request.reserved]
        roomiest = max(state.cluster.instances, key=lambda instance: (instance.unreserved, -instance.id))
        if roomiest.unreserved:
            bonds |= {tuple(sorted({*span(state, request), roomiest.id})) for request in growing}
    leader = connect(bonds)
    waiting = {lead for number, lead in leader.items() if not state.cluster[number].is_idle}
    return {instance.id for instance in idle if leader[instance.id] not in waiting}
