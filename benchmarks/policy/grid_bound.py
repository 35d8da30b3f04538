"""What no policy can exceed: the attainment of a server on which every request could be cut at will.

A bound needs a problem that is easier than the real one, and that can be solved. Here all devices are one server that
works at best efficiency (grid_workloads.Work), preempts and divides its speed at no cost, knows all arrivals, needs no
memory, and gets credit for a part of a request. Whatever a policy does in time, this server can do as well: what the
devices do of a request between two moments is no more than their number times that span, and best efficiency is less
work than any batch takes. So the requests that a policy serves in time, all whole, are one of the server's solutions.

A request is two jobs that can begin when it arrives: its prompt, until its deadline, and its decodes, until the moment
at which its last token is late even if the first came just in time. Both parts must be done for it to count; the server
may do one and not the other, which is easier still. Its value is divided among them, in proportion to their work; or
all of it is given to the prompt, and the decodes are forgotten. Any division gives a bound, so the lower one counts.

The work y that a preemptive server can do of each of some jobs within their times is a polymatroid: for a set of jobs,
sum y <= f(set), the most of it that can be done at all, and f is submodular. So the linear programme

    maximise  sum value_j y_j / work_j   over  0 <= y_j <= work_j,  y feasible

is solved by a greedy algorithm (Edmonds): jobs by falling value / work, each as much as stays feasible beside all
before it, which is f(first i jobs) - f(first i - 1 jobs). And f is what the earliest deadline first does of them, if a
job whose deadline is over is dropped: with work and time cut into units, whoever does the most has a maximum matching
of units of work to moments, in a convex bipartite graph, and just that rule finds one (Glover 1967).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

_ENOUGH = 1e-9  # of work, relative: rounding


@dataclass(frozen=True, slots=True)
class Job:
    """Work, in seconds of the server, that counts if it is done between two moments."""

    release_s: float
    deadline_s: float
    work_s: float
    value: float


@dataclass(frozen=True, slots=True)
class Ask:
    """A request: it arrives, its prompt is due, and if it is, its last token is due.

    value: what it counts if both are in time.
    """

    arrived_s: float
    first_token_due_s: float
    last_token_due_s: float
    prompt_s: float
    decode_s: float
    value: float = 1.0


def most_value(asks: Sequence[Ask]) -> float:
    """Return an upper bound of the total value of requests that any schedule serves in time."""
    prompts_only = [Job(a.arrived_s, a.first_token_due_s, a.prompt_s, a.value) for a in asks]
    divided: list[Job] = []
    for a in asks:
        whole = a.prompt_s + a.decode_s
        divided.append(Job(a.arrived_s, a.first_token_due_s, a.prompt_s, a.value * a.prompt_s / whole))
        if a.decode_s > 0.0:
            divided.append(Job(a.arrived_s, a.last_token_due_s, a.decode_s, a.value * a.decode_s / whole))
    return min(fractional(prompts_only), fractional(divided))


def fractional(jobs: Sequence[Job]) -> float:
    """Return the optimum of the linear programme: the value of all parts of jobs that the server can do in time."""
    ranked = sorted(jobs, key=lambda job: (-job.value / job.work_s, job.release_s))
    by_release = sorted(range(len(ranked)), key=lambda place: ranked[place].release_s)
    done = {0: 0.0}

    def first(number: int) -> float:
        """What can be done of the first so many together."""
        if number not in done:
            done[number] = doable([ranked[place] for place in by_release if place < number])
        return done[number]

    def between(low: int, high: int) -> float:
        """The value of what is done of those from `low` on, up to `high`: halved until all or nothing is."""
        members = ranked[low:high]
        gained, whole = first(high) - first(low), sum(job.work_s for job in members)
        if gained >= whole * (1.0 - _ENOUGH):
            return sum(job.value for job in members)
        if gained <= whole * _ENOUGH:
            return max(0.0, gained) * members[0].value / members[0].work_s  # none of them gives more for its work
        if high - low == 1:
            return members[0].value * gained / whole
        middle = (low + high) // 2
        return between(low, middle) + between(middle, high)

    return between(0, len(ranked)) if ranked else 0.0


def doable(jobs: Sequence[Job]) -> float:
    """Return the most work that can be done of these jobs: earliest deadline first, late ones dropped.

    jobs: in order of release.
    """
    waiting: list[list[float]] = []  # deadline, work left
    now = total = 0.0
    for place, job in enumerate(jobs):
        now = max(now, job.release_s)
        heappush(waiting, [job.deadline_s, job.work_s])
        until = jobs[place + 1].release_s if place + 1 < len(jobs) else float("inf")
        while waiting and now < until:
            deadline, left = waiting[0]
            end = min(now + left, deadline, until)
            if end <= now:
                heappop(waiting)
                continue
            total += end - now
            waiting[0][1] = left - (end - now)
            if end == now + left:
                heappop(waiting)
            now = end
    return total
