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
    earlier: (residence, length) of others that hold context, in token order; their lengths add up to where
        `residence` begins. Tokens behind these lengths, and from `start` on, are not the request's: nobody reads them.
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
    """Move the KV of token ranges [start, end) of a residence, which is a request's, from one instance to another."""

    migration_id: int
    request_id: str
    source: int
    target: int
    ranges: tuple[tuple[int, int], ...]
    residence: int = OWN

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


class StopRequest(Struct, frozen=True, gc=False, tag=True):
    """A request runs no more on these instances, which held KV of it: they forget how its tokens are sampled.

    `preempted`: it waits, to be computed again; what samples it then is told anew. Else it has come to its end.
    """

    request_id: str
    instances: tuple[int, ...]
    reason: Literal["finished", "aborted", "preempted"]


RefuseReason = Literal["too_long", "queue_full", "late"]


class RefuseRequest(Struct, frozen=True, gc=False, tag=True):
    """The request will not be served; the message says why, with the numbers.

    `too_long`: it can never fit (HTTP 400). `queue_full`: it may try again later (HTTP 429). `late`: its first token
    would come later than is promised; it may try again after so many seconds (HTTP 429).
    """

    request_id: str
    message: str
    reason: RefuseReason = "too_long"
    retry_after_s: float | None = None


Action = RunBatch | MigrateKV | FreeKV | StopRequest | RefuseRequest
