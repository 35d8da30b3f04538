"""What both ends of a log know from the lines so far, so that a line need not say it again.

The encoder and the decoder each have one, and tell it the same things in the same order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Generic, TypeVar

from longspan.core.actions import OWN, KVRange, Segment

FORMAT_VERSION = 3

T = TypeVar("T")

_SHORT = re.compile(r"(.*)@([0-9]*)", re.DOTALL)
_MOST_GROUPS = 1024
_MOST_SECONDS = 1e9  # beyond, nanoseconds are not worth a try


class History(Generic[T]):
    """The past of one piece. T: what is kept of a batch.

    numbers: short names of requests, by id; they count from 0, in the order in which lines first name them.
    latest: of each group, what its next batch is told by: the segments of its newest, behind a rest: the last ones of
        requests that it ran before and that are alive, but not in the newest. (A prefill comes between decodes.)
    group: of the batch whose end is the present line's event.
    """

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.names: dict[int, str] = {}
        self.latest: dict[tuple[int, ...], T] = {}
        self.group: tuple[int, ...] | None = None
        self._next_number = 0

    def introduce(self, request_id: str) -> None:
        """Note that a line has named a request in full; from now on it has a number."""
        self.numbers[request_id] = self._next_number
        self.names[self._next_number] = request_id
        self._next_number += 1

    def forget(self, request_id: str) -> None:
        """Note that the request has ended: if it is ever named again, then in full."""
        number = self.numbers.pop(request_id, None)
        if number is not None:
            del self.names[number]

    def rest_behind(
        self, segments: Sequence[Segment], rest: Sequence[Segment], before: Sequence[Segment]
    ) -> tuple[Segment, ...]:
        """Return the rest of a group whose newest batch has these segments, and had a rest and others before."""
        present = {segment.request_id for segment in segments}
        return tuple(
            [old for old in (*rest, *before) if old.request_id not in present and old.request_id in self.numbers]
        )

    def set_latest(self, group: tuple[int, ...], batch: T) -> None:
        if len(self.latest) >= _MOST_GROUPS and group not in self.latest:
            self.latest.clear()
        self.latest[group] = batch


class ResidenceNumbers:
    """The residence that each request writes, which a log need not say: numbers count up as requests begin."""

    def __init__(self, following: int = 0, known: dict[str, int] | None = None) -> None:
        self.following = following
        self.known: dict[str, int] = {} if known is None else known

    def expected(self, request_id: str) -> int:
        """Return the residence of a segment of the request, if it is as it should be."""
        return self.known.get(request_id, self.following)

    def of(self, request_id: str) -> int:
        """Return the residence that is moved or freed with the request."""
        return self.known.get(request_id, OWN)

    def take(self, request_id: str, residence: int) -> None:
        """Note that a segment of the request writes this residence."""
        if residence != OWN:
            self.known[request_id] = residence
            self.following = max(self.following, residence + 1)

    def skip(self, residence: int) -> None:
        """Note that this number is a copy's, which no request writes."""
        self.following = max(self.following, residence + 1)

    def drop(self, request_id: str) -> None:
        """Note that the request has ended or is preempted."""
        self.known.pop(request_id, None)

    def copy(self) -> ResidenceNumbers:
        return ResidenceNumbers(self.following, dict(self.known))


class Clock:
    """Times as whole nanoseconds since the line before, where that gives back the very same float; else as they are."""

    def __init__(self) -> None:
        self._ns: int | None = None

    def encode(self, now: float) -> int | float:
        """Return an int, nanoseconds since the time before, or a float, seconds."""
        before = self._ns
        if 0.0 < now < _MOST_SECONDS:
            ns = int(now * 1e9 + 0.5)
            if ns / 1e9 == now:
                self._ns = ns
                return float(now) if before is None else ns - before
        self._ns = None
        return float(now)

    def decode(self, code: int | float) -> float:
        """Return seconds. Raises ValueError: nanoseconds since a time that is none of whole nanoseconds."""
        if isinstance(code, float):
            self._ns = _nanoseconds(code)
            return code
        if self._ns is None:
            raise ValueError(f"its time, {code}, counts from a line that has no time in nanoseconds")
        self._ns += code
        return self._ns / 1e9


def _nanoseconds(now: float) -> int | None:
    if not 0.0 < now < _MOST_SECONDS:
        return None
    ns = int(now * 1e9 + 0.5)
    return ns if ns / 1e9 == now else None


def continued(old: Segment, length: int, emits: bool) -> Segment:
    """Return the segment of the next `length` tokens, computed and kept by the instance that computed `old`."""
    if len(old.compute) != 1:
        raise ValueError(f"{len(old.compute)} instances computed what it continues")
    start, master = old.start + old.length, old.compute[0]
    store = (KVRange(master, start, start + length),)
    context = context_behind(old)
    return Segment(old.request_id, start, length, old.compute, store, context, emits, old.residence, old.earlier)


def context_behind(old: Segment) -> tuple[tuple[int, int], ...]:
    """Return where the KV is once `old` has run."""
    context, store = old.context, old.store
    if len(context) == 1 and len(store) == 1:  # as most are: one instance has all
        (instance, tokens), kept = context[0], store[0]
        if instance == kept.instance:
            return ((instance, tokens + kept.end - kept.start),)
    held = dict(context)
    for kept in store:
        held[kept.instance] = held.get(kept.instance, 0) + kept.end - kept.start
    return tuple(held.items())


def shorten(label: str, request_ids: Sequence[str]) -> str:
    """"tokens of cmpl-1" -> "tokens of @0", of the first of these requests. Labels that look so get an @ more."""
    for place, request_id in enumerate(request_ids):
        if request_id and label.endswith(request_id):
            return f"{label[: -len(request_id)]}@{place}"
    return f"{label}@" if _SHORT.fullmatch(label) else label


def lengthen(label: str, request_ids: Sequence[str]) -> str:
    """Invert `shorten`. Raises IndexError."""
    found = _SHORT.fullmatch(label)
    if found is None:
        return label
    return found[1] + request_ids[int(found[2])] if found[2] else found[1]
