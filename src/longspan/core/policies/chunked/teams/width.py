"""On how many instances a prompt is computed: on one, or on a team of several that stripe its chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from longspan.core.actions import KVRange
from longspan.core.books.request import Request
from longspan.core.policies.chunked.memory.clearing import shard_slots
from longspan.core.policies.chunked.ranking import Candidate
from longspan.core.policies.parts.sharing import share_evenly
from longspan.core.state import SchedulerState

Team = tuple[int, ...]
ALONE: Team = ()
_NONE: Mapping[int, int] = MappingProxyType({})


class Width:
    """A frame, in which each prompt is computed on one instance; subclasses choose teams.

    wide: ids of the requests that a team computes, in the order in which they began. Their KV comes together on one
    instance when they begin to decode.
    """

    def __init__(self) -> None:
        self.wide: dict[str, None] = {}

    def choose(self, candidate: Candidate, rooms: Mapping[int, int]) -> Team:
        """Return the team for a prompt that is to start; `ALONE` for one instance. rooms: slots of each instance."""
        return ALONE

    def team(self, state: SchedulerState, request: Request) -> Team:
        """Return who computes a prompt that has begun: all that hold its KV, or have slots for more of it."""
        if request.id not in self.wide:
            return ALONE
        return tuple(sorted({*state.placement.holders(request.id), *[each.instance for each in request.reserved]}))

    def begin(self, request: Request, team: Team) -> None:
        if team:
            self.wide[request.id] = None

    def end(self, request: Request) -> None:
        """Note that it has ended, or begins anew."""
        self.wide.pop(request.id, None)


def plan_evenly(
    tokens: int, headroom: int, rooms: Mapping[int, int], team: Team, start: int = 0
) -> tuple[KVRange, ...] | None:
    """Plan to keep tokens from `start` on on all of a team, as evenly as rooms allow; None if there is no room."""
    able = [max(0, rooms[number]) for number in team]
    if sum(able) < tokens + headroom:
        return None
    shares = share_evenly(tokens + headroom, able)
    over = headroom
    for place in reversed(range(len(shares))):  # the headroom is the last ones'
        left_out = min(over, shares[place])
        shares[place] -= left_out
        over -= left_out
    return _ranges(start, zip(team, shares, strict=True))


def keep_together(
    state: SchedulerState, request: Request, length: int, decoding: Mapping[int, int]
) -> list[tuple[int, int]]:
    """Return where a prompt's last chunk goes: to the instance that can take all of the request, so that less has to
    move; to each its share if none can.

    decoding: slots that decodes of the same batch take, by instance; they are not taken yet.
    """
    target = gathering_place(state, request, decoding)
    if target is None:
        return keep_share(state, request, length)
    start = request.num_stored
    state.reserve(request.id, (KVRange(target, start, start + length),))
    return [(target, length)]


def gathering_place(
    state: SchedulerState, request: Request, decoding: Mapping[int, int] = _NONE
) -> int | None:
    """Return the instance on which all of the request's KV shall be, one that holds some or has slots for it; None if
    it has room on none.

    decoding: slots that are about to be taken, by instance.
    """
    held = dict(state.placement.context(request.id))
    need = request.num_tokens + state.headroom(request)
    rooms, able = {}, []
    for number in {*held, *[planned.instance for planned in request.reserved]}:
        instance, own = state.cluster[number], shard_slots(state, request, number)
        rooms[number] = instance.room + own
        if rooms[number] >= need and instance.unreserved + own - decoding.get(number, 0) >= request.num_tokens:
            able.append(number)
    return max(able, key=lambda number: (held.get(number, 0), rooms[number], -number), default=None)


def keep_share(state: SchedulerState, request: Request, length: int) -> list[tuple[int, int]]:
    """Return where the next tokens go, (instance, tokens): the same share of what each instance has reserved.

    The reservation is arranged anew, so that it begins with these.
    """
    left: dict[int, int] = {}
    for planned in request.reserved:
        left[planned.instance] = left.get(planned.instance, 0) + planned.length
    kept = dict(zip(left, _in_proportion(length, list(left.values())), strict=True))
    start = request.num_stored
    rest = _ranges(start + length, ((number, tokens - kept[number]) for number, tokens in left.items()))
    state.reserve(request.id, (*_ranges(start, kept.items()), *rest))
    return [(number, tokens) for number, tokens in kept.items() if tokens]


def _in_proportion(amount: int, rooms: Sequence[int]) -> list[int]:
    """Shares of `amount` in proportion to the rooms, whose sum is no less."""
    total, before, shares = sum(rooms), 0, []
    reached = 0
    for room in rooms:
        reached += room
        upto = amount * reached // total
        shares.append(upto - before)
        before = upto
    return shares


def _ranges(start: int, shares: Iterable[tuple[int, int]]) -> tuple[KVRange, ...]:
    ranges = []
    for number, tokens in shares:
        if tokens:
            ranges.append(KVRange(number, start, start + tokens))
            start += tokens
    return tuple(ranges)
