"""What to do. Frozen and complete before anything runs; the only output of `Scheduler.handle`.

A batch says for each segment who *computes* its tokens, who *stores* their KV, and who holds its *context*.
Elastic prefill, multi-master decode, chunks with KV parallelism: each is a choice of those three.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

OWN = -1
"""In place of a residence's number: the request's own one, which may have yet to begin."""


class KVRange(Struct, frozen=True, gc=False):
    """`instance` holds the KV of the tokens at positions [start, end)."""

    instance: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


class Segment(Struct, frozen=True, gc=False):
    """Consecutive new tokens [start, start + length) of one request inside a batch.

    compute: the instances that run the dense layers. With n > 1 the tokens are striped: compute[i] takes
        start+i, start+i+n, ... (LoongServe section 4.1, striped attention). A decode token has one: its
        master.
    store: who keeps the KV of the new tokens; disjoint, in order, covering the segment. With n > 1 computing
        instances it is the retention plan, and its instances are among them (the KV passes there anyway).
        With one, that one stores all.
    context: (instance, tokens) for each instance that holds KV of tokens [0, start); they add up to `start`.
    emits: whether a token is sampled after the segment's last one.
    residence: the number of the residence that the new tokens are appended to. Its tokens below `start` are context.
    earlier: (residence, end) of others that hold context, in token order, each from where the one before ends; the last
        ends where `residence` begins. Tokens behind these ends, and from `start` on, are not the request's: it does not
        read them.
    cuts: positions at which the tokens are cut into contiguous pieces, in order; compute[i] takes the i-th, and may
        take several (zigzag rings, layers that need neighbours side by side). Empty: they are striped.
    """

    request_id: str
    start: int
    length: int
    compute: tuple[int, ...]
    store: tuple[KVRange, ...]
    context: tuple[tuple[int, int], ...] = ()
    emits: bool = True
    residence: int = OWN
    earlier: tuple[tuple[int, int], ...] = ()
    cuts: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.length

    @property
    def emitter(self) -> int:
        """The instance that computes the segment's last token, and so samples what follows it."""
        return self.compute[-1] if self.cuts else self.compute[(self.length - 1) % len(self.compute)]

    @property
    def computing(self) -> tuple[int, ...]:
        """The instances that compute it, each once."""
        return tuple(dict.fromkeys(self.compute)) if self.cuts else self.compute

    def pieces(self, instance: int) -> list[tuple[int, int, int]]:
        """Return (first position, tokens, step) of each piece that the instance computes, in order; none is empty."""
        if not self.cuts:
            if instance not in self.compute:
                return []
            stripe, stripes = self.compute.index(instance), len(self.compute)
            count = -(-(self.length - stripe) // stripes)
            return [(self.start + stripe, count, stripes)] if count > 0 else []
        owned = zip(self.compute, (self.start, *self.cuts), (*self.cuts, self.end), strict=True)
        return [(start, end - start, 1) for owner, start, end in owned if owner == instance and end > start]


class RunBatch(Struct, frozen=True, gc=False, tag=True):
    """Run one iteration on a parallel group: every instance that computes, stores or holds context for it.

    All segments with several computing instances share one ring: the same instances, in any rotation.
    """

    batch_id: int
    group: tuple[int, ...]
    segments: tuple[Segment, ...]


class MigrateKV(Struct, frozen=True, gc=False, tag=True):
    """Move the KV of token ranges [start, end) of a request from one instance to another.

    request_id: "" where the tokens are cached, and no request refers to them, or where they are copied.
    residence, earlier: where its tokens are, as `Segment` has it.
    into: the number of a residence that begins with these tokens at the target: they are copied, and stay where they
        are. OWN: they move.
    """

    migration_id: int
    request_id: str
    source: int
    target: int
    ranges: tuple[tuple[int, int], ...]
    residence: int = OWN
    earlier: tuple[tuple[int, int], ...] = ()
    into: int = OWN

    @property
    def is_copy(self) -> bool:
        return self.into != OWN

    @property
    def arriving(self) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
        """As `parts`, of the residences in which these tokens are at the target."""
        return [(self.into, self.ranges)] if self.is_copy else self.parts

    @property
    def parts(self) -> list[tuple[int, tuple[tuple[int, int], ...]]]:
        """The residences in which these tokens are, in order, with the ranges of each."""
        found, begin = [], 0
        for residence, end in (*self.earlier, (self.residence, None)):
            inside = tuple(
                [(max(low, begin), high if end is None else min(high, end)) for low, high in self.ranges
                 if high > begin and (end is None or low < end)]
            )  # fmt: skip
            if inside:
                found.append((residence, inside))
            begin = begin if end is None else end
        return found

    @property
    def chain(self) -> tuple[tuple[int, int], ...]:
        """(residence, end) of those in which these tokens are, and of those before them, up to the last that moves."""
        return (*self.earlier, (self.residence, self.ranges[-1][1]))

    @property
    def num_tokens(self) -> int:
        return sum(end - start for start, end in self.ranges)


class FreeKV(Struct, frozen=True, gc=False, tag=True):
    """Free the KV of a residence on these instances.

    ranges: of these positions [start, end); empty: of all, and the residence is no more.
    """

    residence: int
    instances: tuple[int, ...]
    ranges: tuple[tuple[int, int], ...] = ()


StopReason = Literal["finished", "aborted", "preempted"]


class StopRequest(Struct, frozen=True, gc=False, tag=True):
    """A request runs no more on these instances, which held KV of it: they forget how its tokens are sampled.

    `preempted`: it waits, to be computed again; what samples it then is told anew. Else it has come to its end.
    """

    request_id: str
    instances: tuple[int, ...]
    reason: StopReason


RefuseReason = Literal["too_long", "queue_full", "late", "fleet_too_small"]


class RefuseRequest(Struct, frozen=True, gc=False, tag=True):
    """The request will not be served; the message says why, with the numbers.

    `too_long`: it can never fit (HTTP 400). `queue_full`: it may try again later (HTTP 429). `late`: its first token
    would come later than is promised; it may try again after so many seconds (HTTP 429). `fleet_too_small`: it would
    fit if all instances served, but too many are lost or have left, and none of these is expected back (HTTP 503); it
    may have begun to answer.
    """

    request_id: str
    message: str
    reason: RefuseReason = "too_long"
    retry_after_s: float | None = None


class CancelBatch(Struct, frozen=True, gc=False, tag=True):
    """This work is void: it runs on an instance that is lost, or comes behind such work on another, or is of a request
    that loses KV, slots that were set aside for it, or other work by that.

    It is no longer in the books: nothing of it is stored, the slots that it took are free again, and KV that was to
    move is where it was. A worker drops what it has not begun, leaves what it is in, and undoes what it has finished:
    slots of the positions that it stored go back, the last first. A residence of which nothing is left anywhere is
    gone, unless it is computed again; no `FreeKV` comes for it. Actions behind this one hold for what is there after
    it.

    instances: those that serve and have some of it, by number; the lost one is not among them.
    """

    batch_ids: tuple[int, ...]
    migration_ids: tuple[int, ...]
    instances: tuple[int, ...]


class InstanceDrained(Struct, frozen=True, gc=False, tag=True):
    """The instance, which is leaving, holds no KV, and nothing is in flight there: it may end."""

    instance: int


Action = RunBatch | MigrateKV | FreeKV | StopRequest | RefuseRequest | CancelBatch | InstanceDrained
