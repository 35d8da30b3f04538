"""What a page is told: first the whole, then what has changed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from heapq import nsmallest
from itertools import islice
from operator import attrgetter
from typing import Literal, TypeVar

import msgspec

from longspan.metrics.fleet.fleet import Fleet
from longspan.metrics.fleet.lives import Life, News
from longspan.metrics.fleet.spans import Running, Span

MOST_RUNNING, MOST_WAITING = 128, 96
"""Requests that are shown, those that came first; of the others it is told how many they are."""
MOST_SAMPLES, MOST_SPANS, MOST_KEPT = 900, 1500, 60
"""What a page that comes later gets of what was before."""

T = TypeVar("T")

Row = tuple[object, ...]
"""Of a request: number, id, phase, prompt tokens, computed, generated, most to generate, found, arrived, seconds to its
first token, [[instance, tokens]], [median, 95 %, promised, deadline] seconds from arrival, tenant, priority,
preemptions, batches in flight."""


class About(msgspec.Struct):
    """What does not change. kv_tokens: slots of an instance. clock: unix, or log: seconds since it began."""

    model: str
    policy: str
    instances: int
    kv_tokens: int
    version: str
    clock: Literal["unix", "log"]


class Frame(msgspec.Struct, omit_defaults=True):
    """What there is to see at one moment, or what is new in it. Times are seconds of the clock that its maker was told.

    at: the moment. whole: whether nothing of before is left; else only what has changed of `requests` is in it, and of
    the lists behind `gone` only what is new. running, waiting: as the metrics count them. instances: number, slots
    used, slots cached, state. batches: group, kind, [[request, tokens]], requests, tokens, seconds since it began.
    queue: of those that wait, the requests' numbers, the next one first. hidden: requests that are not shown.
    gone: that are shown no more.
    spans: number, start, end, group, kind, [[request, tokens]], requests, batches, tokens; one that was told before
    replaces that. samples: of each second: at, running, waiting, slots used and cached, tokens a second of prompts
    and of answers, then by class [median, 95 %] of TTFT, and of TPOT, and requests that were answered, and that were
    refused or aborted. news: at, what, instance, a request's id, detail.
    ended: number, id, prompt tokens, generated, arrived, seconds to its first token, seconds a token, why, at.
    state: what ails the server, if anything. about: with what is whole.
    """

    at: float
    running: int
    waiting: int
    instances: list[tuple[int, int, int, str]]
    batches: list[Row]
    queue: list[int]
    hidden: int = 0
    whole: bool = False
    requests: Sequence[Row] = ()
    gone: Sequence[int] = ()
    spans: Sequence[Row] = ()
    samples: Sequence[Row] = ()
    news: Sequence[Row] = ()
    ended: Sequence[Row] = ()
    state: str | None = None
    about: About | None = None


class FrameMaker:
    """Makes frames of one fleet for all who look.

    shift: what is added to the fleet's clock. sample_s: how far samples are apart.
    """

    def __init__(self, fleet: Fleet, shift: float = 0.0, sample_s: float = 1.0) -> None:
        self.fleet = fleet
        self.sample_s = sample_s
        self.shift = shift
        self._told: dict[int, Row] = {}
        self._samples: deque[Row] = deque(maxlen=MOST_SAMPLES)
        self._spans: dict[int, Row] = {}
        self._news: deque[Row] = deque(maxlen=MOST_KEPT)
        self._ended: deque[Row] = deque(maxlen=MOST_KEPT)
        self._sampled: tuple[float, tuple[int, ...]] | None = None
        self._latest: Frame | None = None

    def changes(self, now: float) -> Frame:
        """Return what has changed since the last time. now: of the fleet's clock."""
        fleet = self.fleet
        fleet.settle()
        running = list(islice(self._running(), MOST_RUNNING))
        queue = nsmallest(MOST_WAITING, fleet.waiting.values(), key=attrgetter("expected", "number"))
        rows = {life.number: self._row(life) for life in (*running, *queue)}
        told, self._told = self._told, rows
        spans = [self._span(span) for span in fleet.spans.take()]
        self._latest = Frame(
            at=self._at(now),
            running=fleet.slots.num_holders,
            waiting=len(fleet.waiting),
            instances=[
                (number, fleet.slots.used.get(number, 0), fleet.slots.cached.get(number, 0), state)
                for number, state in fleet.instances.items()
            ],
            batches=[self._batch(ran, now) for ran in fleet.spans.now_running()],
            queue=[life.number for life in queue],
            hidden=len(fleet.lives) - len(rows),
            requests=[row for number, row in rows.items() if told.get(number) != row],
            gone=[number for number in told if number not in rows],
            spans=spans,
            samples=[self._sample(now)] if self._is_due(now) else (),
            news=[self._new(news) for news in _taken(fleet.news)],
            ended=[self._end(life) for life in _taken(fleet.ended)],
        )
        latest = self._latest
        self._keep_lists(latest.spans, latest.samples, latest.news, latest.ended)
        return latest

    def pass_by(self, now: float) -> None:
        """Keep what is new for `whole`, and tell nobody."""
        fleet = self.fleet
        fleet.settle()
        self._keep_lists(
            [self._span(span) for span in fleet.spans.take()],
            [self._sample(now)] if self._is_due(now) else (),
            [self._new(news) for news in _taken(fleet.news)],
            [self._end(life) for life in _taken(fleet.ended)],
        )

    def follow(self, past: FrameMaker) -> None:
        """Have what another kept before what this one keeps. Of KV and of who ran the past has no sure counts."""
        unsure = (None,) * 4
        self._samples.extendleft([(row[0], *unsure, *row[5:]) for row in reversed(past._samples)])
        self._news.extendleft(reversed(past._news))
        self._ended.extendleft(reversed(past._ended))
        self._spans = past._spans | self._spans
        self.fleet.ttft.precede(past.fleet.ttft)
        self.fleet.tpot.precede(past.fleet.tpot)

    def rows(self) -> list[Row]:
        """Return those of all requests that are shown, as they were told last."""
        return list(self._told.values())

    def whole(self) -> Frame:
        """Return all that the frames so far have told, as far as it is kept; after `changes`."""
        assert self._latest is not None
        return msgspec.structs.replace(
            self._latest, whole=True, requests=self.rows(), gone=(), spans=list(self._spans.values()),
            samples=list(self._samples), news=list(self._news), ended=list(self._ended),
        )  # fmt: skip

    def _keep_lists(
        self, spans: Sequence[Row], samples: Sequence[Row], news: Sequence[Row], ended: Sequence[Row]
    ) -> None:
        self._samples.extend(samples)
        self._news.extend(news)
        self._ended.extend(ended)
        for row in spans:
            number = row[0]
            assert isinstance(number, int)
            self._spans.pop(number, None)
            self._spans[number] = row
        for number in list(islice(self._spans, max(0, len(self._spans) - MOST_SPANS))):
            del self._spans[number]

    def _running(self) -> Iterable[Life]:
        waiting = self.fleet.waiting
        return (life for request_id, life in self.fleet.lives.items() if request_id not in waiting)

    def _at(self, time: float) -> float:
        return round(time + self.shift, 3)

    def _row(self, life: Life) -> Row:
        held = self.fleet.slots.of_request(life.id)
        phase = "waiting" if life.id in self.fleet.waiting else "prefill" if life.first_token is None else "decode"
        return (
            life.number, life.id, phase, life.prompt, life.computed, life.output, life.max_tokens, life.found,
            self._at(life.arrived), _rounded(life.ttft_s), held,
            None if life.quote is None else [_rounded(seconds) for seconds in life.quote],
            life.tenant, life.priority, life.preemptions, life.in_flight,
        )  # fmt: skip

    def _batch(self, ran: Running, now: float) -> Row:
        begun = ran.issued if ran.begun is None else ran.begun
        return (ran.group, ran.kind, ran.requests, ran.num_requests, ran.tokens, round(now - begun, 3))

    def _span(self, span: Span) -> Row:
        return (
            span.number, self._at(span.start), self._at(span.end), span.group, span.kind, span.requests,
            span.num_requests, span.count, span.tokens,
        )  # fmt: skip

    def _new(self, news: News) -> Row:
        return (self._at(news.at), news.what, news.instance, news.request, news.detail)

    def _end(self, life: Life) -> Row:
        return (
            life.number, life.id, life.prompt, life.output, self._at(life.arrived), _rounded(life.ttft_s),
            _rounded(life.tpot_s), life.ended, self._at(self.fleet.now if life.last_token is None else life.last_token),
        )  # fmt: skip

    def _is_due(self, now: float) -> bool:
        if self._sampled is None:
            self._sampled = (now, self._totals())
            return False
        return now - self._sampled[0] >= self.sample_s * 0.999

    def _totals(self) -> tuple[int, ...]:
        totals = self.fleet.totals
        return totals.prompt_tokens, totals.output_tokens, totals.answered, totals.turned_away

    def _sample(self, now: float) -> Row:
        fleet = self.fleet
        assert self._sampled is not None
        since, before = self._sampled
        totals = self._totals()
        self._sampled = (now, totals)
        new = [after - earlier for after, earlier in zip(totals, before, strict=True)]
        rates = [round(tokens / (now - since), 1) for tokens in new[:2]]
        latencies = [
            [[_rounded(median), _rounded(high)] for median, high in measured.percentiles(now)]
            for measured in (fleet.ttft, fleet.tpot)
        ]
        return (
            self._at(now), fleet.slots.num_holders, len(fleet.waiting), sum(fleet.slots.used.values()),
            sum(fleet.slots.cached.values()), *rates, *latencies, *new[2:],
        )  # fmt: skip


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


def _taken(queue: deque[T]) -> list[T]:
    found = list(queue)
    queue.clear()
    return found
