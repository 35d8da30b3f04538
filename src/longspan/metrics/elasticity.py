"""How requests change their instances and pause: counted segment by segment, in a moment each.

    elasticity.begin(course, batch, segment, now); elasticity.rest(course, segment, now); elasticity.drop(course, now)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from longspan.core.actions import RunBatch, Segment

Direction = Literal["up", "down", "across"]
MOST_HAPPENINGS = 64
"""Of one request that are kept; all are counted."""


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befell a request, from `start` to `end`, seconds of the engine's clock.

    what: "pause" (of a prefill that had begun), "preemption" (its KV was dropped), or "scale up", "scale down" and
        "scale across" (to other instances, as many).
    group: its instances from then on; none while it has none.
    """

    what: str
    start: float
    end: float
    group: tuple[int, ...] = ()


@dataclass(slots=True)
class Course:
    """One request's way so far.

    group: the instances that compute for it or hold its KV. last: its latest segment. holders, compute: if that
    ran beside other instances, those that held its KV and computed. paused_since: when its prefill came to rest, if it
    rests.
    """

    group: tuple[int, ...] = ()
    last: Segment | None = None
    holders: list[int] = field(default_factory=list)
    compute: tuple[int, ...] = ()
    paused_since: float | None = None
    happenings: list[Happening] = field(default_factory=list)

    def note(self, what: str, start: float, end: float) -> None:
        if len(self.happenings) < MOST_HAPPENINGS:
            self.happenings.append(Happening(what, start, end, self.group))


class Elasticity:
    """All of it, over all requests.

    scalings: changes of a request's group between two of its iterations, by whether it has more, fewer, or other
    instances. pauses, paused_s: of prefills that had begun, until they went on.
    """

    def __init__(self) -> None:
        self.scalings: dict[Direction, int] = {"up": 0, "down": 0, "across": 0}
        self.pauses = 0
        self.paused_s = 0.0

    def begin(self, course: Course, batch: RunBatch, segment: Segment, now: float) -> None:
        """The segment is about to run in the batch."""
        course.last = segment
        if course.paused_since is not None:
            self._resume(course, now)
        if len(batch.group) > 1:
            holders = [number for number, _ in segment.context]
            if holders == course.holders and segment.compute == course.compute and course.group:
                return  # as nearly always; new tokens are kept by who computes, or held before
            course.holders, course.compute = holders, segment.compute
            group = group_of(segment)
        else:
            group, course.compute = batch.group, ()
        if group != course.group:
            self._scale(course, group, now)

    def rest(self, course: Course, segment: Segment, now: float) -> None:
        """A segment of a prompt that goes on has ended; unless the next one has begun, the prefill pauses."""
        if course.last is segment:
            course.paused_since = now

    def drop(self, course: Course, now: float) -> None:
        """The KV of a request that is at rest has been dropped; it is computed again."""
        course.group, course.last, course.paused_since = (), None, None
        course.note("preemption", now, now)

    def _resume(self, course: Course, now: float) -> None:
        since, course.paused_since = course.paused_since, None
        if since is not None and now > since:
            self.pauses += 1
            self.paused_s += now - since
            course.note("pause", since, now)

    def _scale(self, course: Course, group: tuple[int, ...], now: float) -> None:
        before, course.group = len(course.group), group
        if not before:
            return
        direction: Direction = "across"
        if len(group) != before:
            direction = "up" if len(group) > before else "down"
        self.scalings[direction] += 1
        course.note(f"scale {direction}", now, now)


def group_of(segment: Segment) -> tuple[int, ...]:
    """Return the segment's own instances: others of its batch are there for others."""
    own = {*segment.compute, *[kept.instance for kept in segment.store], *[number for number, _ in segment.context]}
    return tuple(sorted(own))
