"""KV slots by instance, used and cached, as the actions tell of them."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field

from longspan.core.actions import FreeKV, KVRange, MigrateKV, Segment
from longspan.core.internal_error import InternalError
from longspan.core.inventory import Inventory
from longspan.core.kv.residence import Residence


@dataclass(slots=True)
class _Held:
    """A residence; who writes it, and up to which position others refer to it, and migrations of cached tokens."""

    residence: Residence
    writer: str | None = None
    lengths: dict[str, int] = field(default_factory=dict)
    carried: dict[int, int] = field(default_factory=dict)

    @property
    def referenced_end(self) -> int:
        if self.writer is not None:
            return self.residence.end
        return max([*self.lengths.values(), *self.carried.values()], default=self.residence.begin)


class KVSlots:
    """Which instance has how many tokens of what.

    used, cached: by instance, slots of tokens that some request refers to, also of those on their way, and slots of
    tokens that none does. A log may lack its beginning: what is not known of a residence is taken from what a segment
    says of its context.
    """

    def __init__(self) -> None:
        self.used: defaultdict[int, int] = defaultdict(int)
        self.cached: defaultdict[int, int] = defaultdict(int)
        self._held: dict[int, _Held] = {}
        self._own: dict[str, int] = {}
        self._earlier: dict[str, tuple[tuple[int, int], ...]] = {}

    def open(self, inventory: Inventory) -> None:
        """Begin with what is there; so far nothing is known."""
        for residence in inventory.residences:
            self._held[residence.number] = _Held(_copy(residence))
        for request_id, (earlier, own) in inventory.references.items():
            self._note(request_id, earlier, own)
        for held in self._held.values():
            self._count(held, held.residence.begin, held.residence.end, 1)
        for action in inventory.running:
            if isinstance(action, MigrateKV):
                self.begin_move(action)

    @property
    def num_holders(self) -> int:
        """Requests that hold KV."""
        return len(self._own)

    def holds(self, request_id: str) -> bool:
        """Tell whether the request holds KV."""
        return request_id in self._own

    def of_request(self, request_id: str) -> list[tuple[int, int]]:
        """Return (instance, tokens) of all that the request refers to, by instance."""
        own = self._own.get(request_id)
        if own is None or own not in self._held:
            return []
        earlier = self._earlier.get(request_id)
        if earlier is None:
            return list(self._held[own].residence.context)
        counts = dict(self._held[own].residence.counts)
        for number, end in earlier:
            if (held := self._held.get(number)) is not None:
                for instance, tokens in held.residence.counts_between(held.residence.begin, end).items():
                    counts[instance] = counts.get(instance, 0) + tokens
        return sorted(counts.items())

    def store(self, segment: Segment) -> None:
        """Take slots for the new tokens of a segment."""
        if self._own.get(segment.request_id) != segment.residence and not self._is_adopted(segment):
            self._refer(segment)
        held = self._held[segment.residence]
        if _is_missing(held.residence, segment):
            for kept in segment.store:
                held.residence.fill(kept)
        else:
            end, start = held.residence.end, segment.store[0].start
            if held.residence.begin <= start < end and not held.residence.counts_between(start, end):
                held.residence.truncate(start)  # its end is lost, and nobody has it computed again
            elif end != start:
                self._assume(held, segment)
            held.residence.append(segment.store)
        for kept in segment.store:
            self.used[kept.instance] += kept.end - kept.start

    def extend(self, residence: int, instance: int, tokens: int) -> None:
        """Take slots for so many tokens behind those of a residence that is known, all on one instance."""
        found = self._held[residence].residence
        found.append((KVRange(instance, found.end, found.end + tokens),))
        self.used[instance] += tokens

    def take_back(self, segment: Segment) -> None:
        """Give back what a segment took, which is void."""
        held = self._held.get(segment.residence)
        if held is None:
            return
        residence = held.residence
        for kept in reversed(segment.store):
            self._count(held, kept.start, kept.end, -1)
            if kept.end == residence.end and kept.start >= residence.begin:
                residence.truncate(kept.start)
                continue
            for piece in residence.between(kept.start, kept.end):
                residence.forget(piece)

    def release(self, request_id: str) -> None:
        """Note that the request refers to nothing any more."""
        own = self._own.pop(request_id, None)
        earlier = self._earlier.pop(request_id, ())
        if own is not None and (held := self._held.get(own)) is not None:
            before, held.writer = held.referenced_end, None
            self._recount(held, before)
            if not held.residence.counts and not held.lengths:  # nothing is left of it, so nothing is freed
                del self._held[own]
        for number, _ in earlier:
            if (held := self._held.get(number)) is not None:
                before = held.referenced_end
                held.lengths.pop(request_id, None)
                self._recount(held, before)

    def free(self, action: FreeKV) -> None:
        """Give slots back: of a whole residence, or from a position on."""
        held = self._held.get(action.residence)
        if held is None:
            return
        residence = held.residence
        if not action.ranges:
            self._count(held, residence.begin, residence.end, -1)
            del self._held[action.residence]
            return
        for start, end in reversed(action.ranges):
            is_tail = not residence.counts_between(min(end, residence.end), residence.end)  # what was behind is lost
            if is_tail and residence.begin <= start <= residence.end:
                self._count(held, start, residence.end, -1)
                residence.truncate(start)

    def taken(self, instance: int) -> int:
        """Return how many slots of an instance are taken."""
        return self.used.get(instance, 0) + self.cached.get(instance, 0)

    def lose(self, instance: int) -> list[str]:
        """Forget all that was on an instance, which is no more; returns who referred to some of it."""
        names: dict[str, None] = {}
        for held in self._held.values():
            if instance in held.residence.counts:
                first = held.residence.held(instance)[0][0]
                held.residence.lose(instance)
                names |= dict.fromkeys([name for name, end in held.lengths.items() if end > first])
                names |= {} if held.writer is None else {held.writer: None}
        self.used.pop(instance, None)
        self.cached.pop(instance, None)
        return list(names)

    def others_of(self, segment: Segment) -> list[tuple[str, int]]:
        """Return who else refers to tokens that a segment computes, and to how many: it does so again, for all."""
        if (held := self._held.get(segment.residence)) is None:
            return []
        ends = held.lengths if held.writer is None else held.lengths | {held.writer: held.residence.end}
        return [
            (name, min(segment.end, end) - segment.start)
            for name, end in ends.items()
            if name != segment.request_id and end > segment.start
        ]

    def begin_move(self, action: MigrateKV) -> None:
        """Take the target's slots; the source keeps its own until the move is done."""
        if not action.request_id:
            self._carry(action, is_over=False)
        self.used[action.target] += action.num_tokens

    def end_move(self, action: MigrateKV) -> None:
        """Give the source's slots back, unless it is a copy."""
        if action.is_copy:
            self._end_copy(action)
            return
        self.used[action.source] -= action.num_tokens
        for number, ranges in action.parts:
            if (held := self._held.get(number)) is not None:
                with suppress(InternalError):  # of a residence whose beginning is not known
                    held.residence.move(action.source, action.target, ranges)
        if not action.request_id:
            self._carry(action, is_over=True)

    def cancel_move(self, action: MigrateKV) -> None:
        """Give the target's slots back; an instance that is lost has none."""
        if self.used.get(action.target):
            self.used[action.target] -= action.num_tokens
        if not action.request_id:
            self._carry(action, is_over=True)

    def _end_copy(self, action: MigrateKV) -> None:
        held = self._held[action.into] = _Held(Residence(action.into, action.ranges[0][0]))
        held.residence.append([KVRange(action.target, start, end) for start, end in action.ranges])
        self.used[action.target] -= action.num_tokens
        self.cached[action.target] += action.num_tokens
        self._carry(action, is_over=True)

    def _carry(self, action: MigrateKV, *, is_over: bool) -> None:
        """Cached tokens move, which are used meanwhile, and so are those before them."""
        for number, end in action.chain:
            if (held := self._held.get(number)) is not None:
                before = held.referenced_end
                if is_over:
                    held.carried.pop(action.migration_id, None)
                else:
                    is_last = number == action.residence and not action.is_copy
                    held.carried[action.migration_id] = held.residence.end if is_last else end
                self._recount(held, before)

    def _is_adopted(self, segment: Segment) -> bool:
        """Whether it computes again what its request has adopted."""
        return any([number == segment.residence for number, _ in self._earlier.get(segment.request_id, ())])

    def _refer(self, segment: Segment) -> None:
        """A request has its first segment, or the first after it was preempted."""
        self.release(segment.request_id)
        begin = segment.earlier[-1][1] if segment.earlier else 0
        if segment.residence not in self._held:
            self._held[segment.residence] = _Held(Residence(segment.residence, begin))
        for number, _ in segment.earlier:
            self._held.setdefault(number, _Held(Residence(number)))
        for held, before in self._note(segment.request_id, segment.earlier, segment.residence):
            self._recount(held, before)

    def _note(self, request_id: str, earlier: tuple[tuple[int, int], ...], own: int) -> list[tuple[_Held, int]]:
        """Enter the references; returns those referred to, and up to where they were before."""
        changed = [(held := self._held[own], held.referenced_end)]
        held.writer = request_id
        self._own[request_id] = own
        if earlier:
            self._earlier[request_id] = earlier
        for number, end in earlier:
            changed.append((held := self._held[number], held.referenced_end))
            held.lengths[request_id] = end
        return changed

    def _recount(self, held: _Held, before: int) -> None:
        """Requests refer to it up to elsewhere than `before`: what was cached is used, or the reverse."""
        after, between = held.referenced_end, held.residence.counts_between
        for instance, tokens in between(before, after).items() if after > before else ():
            self.used[instance] += tokens
            self.cached[instance] -= tokens
        for instance, tokens in between(after, before).items() if after < before else ():
            self.used[instance] -= tokens
            self.cached[instance] += tokens

    def _count(self, held: _Held, start: int, end: int, sign: int) -> None:
        """Add or take away the slots of the positions [start, end)."""
        border = min(max(held.referenced_end, start), end)
        for counts, low, high in ((self.used, start, border), (self.cached, border, end)):
            for instance, tokens in held.residence.counts_between(low, high).items():
                counts[instance] += sign * tokens

    def _assume(self, held: _Held, segment: Segment) -> None:
        """Its tokens before the segment are not those that are known: they are as the segment's context says."""
        residence = held.residence
        self._count(held, residence.begin, residence.end, -1)
        new = Residence(residence.number, segment.earlier[-1][1] if segment.earlier else 0)
        lacking, start = segment.store[0].start - new.begin, new.begin
        for instance, tokens in reversed(segment.context):
            kept = min(tokens, lacking)
            if kept > 0:
                new.append((KVRange(instance, start, start + kept),))
            start, lacking = start + max(kept, 0), lacking - max(kept, 0)
        held.residence = new
        if lacking > 0 and segment.store:  # not even that is told
            new.append((KVRange(segment.store[0].instance, start, start + lacking),))
        self._count(held, new.begin, new.end, 1)


def _is_missing(residence: Residence, segment: Segment) -> bool:
    """Whether the segment's tokens are ones that an instance has lost."""
    if segment.start >= residence.end:
        return False
    return any([low <= segment.start and segment.end <= high for low, high in residence.missing()])


def _copy(residence: Residence) -> Residence:
    """Return one that stays as it is, with its holes, and to which a writer may append."""
    found = copy(residence)
    found.reopen()
    found.owners, found.starts, found.counts = list(residence.owners), list(residence.starts), dict(residence.counts)
    return found
