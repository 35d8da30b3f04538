"""Looking ahead: the next decode iteration is issued while the present one runs; the device never waits.

Whether it wants that, a policy says (`Policy.looks_ahead`). The next iteration is the same one again: same group, same
masters, one token more for each request that does not end by its `max_tokens` before. Its input tokens are not sampled
yet; workers are first in, first out, and feed each other's last token. A request that turns out to have ended leaves
one such segment behind: a token that goes nowhere, and KV that is freed when that batch completes.

Not in a pipeline: there the last stage samples, and the first would need the token.
"""

from __future__ import annotations

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch, Segment
from longspan.core.books.cluster import Work
from longspan.core.books.ledger import Ledger
from longspan.core.books.request import RequestStatus
from longspan.core.books.rules import involved_instances


def may_look_ahead(config: SchedulerConfig) -> bool:
    return config.lookahead and config.pp == 1


def look_ahead(ledger: Ledger, started: list[Work[RunBatch]]) -> None:
    """Queue the next iteration behind each decode batch that has just begun to run, where it is the same again."""
    for work in started:
        if work.is_decode and not _somebody_is_left_out(ledger, work):
            segments = _next_iteration(ledger, work)
            if segments:
                ledger.issue_behind(work, segments)


def _somebody_is_left_out(ledger: Ledger, work: Work[RunBatch]) -> bool:
    """A ready request lives on these instances but is not in the batch; it must get a turn."""
    return any(ledger.cluster[number].ready for number in work.instances)


def _next_iteration(ledger: Ledger, work: Work[RunBatch]) -> list[Segment]:
    """The segments of the iteration after `work`; none if it would differ in more than a request's end."""
    segments: list[Segment] = []
    stored: dict[int, int] = {}
    for segment in work.action.segments:
        request, master = ledger.requests[segment.request_id], segment.compute[0]
        last_one = request.num_output_tokens + request.in_flight >= request.max_tokens
        if request.status is RequestStatus.DECODING and not last_one:
            segments.append(ledger.placement.decode_segment(request.id, master))
            stored[master] = stored.get(master, 0) + 1
    if any([tokens > ledger.cluster[number].unreserved for number, tokens in stored.items()]):
        return []
    # A group that lost its last request on some instance shrinks: that is for the policy, at the iteration's
    # end.
    return segments if involved_instances(segments) == set(work.instances) else []
