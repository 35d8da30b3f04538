"""What clients that wait are told: how far their choices are, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from msgspec.structs import replace

from longspan.core.progress import Progress
from longspan.engine.protocol import EngineClient
from longspan.entrypoints.openai.answers import ChoiceProgress
from longspan.entrypoints.openai.generation import Job
from longspan.entrypoints.openai.pace import Pace

MOST_S = 0.002
"""An event tells of no more choices than can be asked about in this time: the others come in the next. To estimate one
takes about a millisecond where a thousand wait."""
ESTIMATE_HEADER = "Longspan-Estimated-TTFT"


class ProgressNews:
    """The news of one call's choices.

    make: the event that tells them. pace: what all readers share.
    """

    def __init__(
        self, engine: EngineClient, jobs: Sequence[Job], pace: Pace, make: Callable[[list[ChoiceProgress]], bytes]
    ) -> None:
        self._engine = engine
        self._jobs = jobs
        self._pace = pace
        self._make = make
        self._told: dict[int, ChoiceProgress] = {}
        self._next = 0

    @property
    def interval_s(self) -> float:
        """Seconds until they are to be asked for again."""
        return self._pace.interval_s

    @contextmanager
    def read(self) -> Iterator[None]:
        """Count one reader meanwhile."""
        with self._pace.reader():
            yield

    def take(self) -> bytes | None:
        """Return an event with what has changed; None where that is nothing."""
        began = time.perf_counter()
        changed: list[ChoiceProgress] = []
        for _ in self._jobs:
            if (news := self._of(self._jobs[self._next])) is not None:
                changed.append(news)
            self._next = (self._next + 1) % len(self._jobs)
            if time.perf_counter() - began > MOST_S:
                break
        self._pace.note(time.perf_counter() - began)
        return self._make(changed) if changed else None

    def _of(self, job: Job) -> ChoiceProgress | None:
        progress = self._engine.progress(job.request_id)
        if progress is None:
            return None
        now = _told(job.index, progress)
        before = self._told.get(job.index)
        if before is not None and replace(before, elapsed_s=now.elapsed_s) == now:
            return None
        self._told[job.index] = now
        return now


def estimate_headers(engine: EngineClient, jobs: Sequence[Job]) -> dict[str, str]:
    """Return the header that tells when, by the estimates at their arrival, the last of the choices begins; of those
    that have arrived."""
    quotes = [job.metrics.quote or engine.quote(job.request_id) for job in jobs]
    found = [quote.median_s for quote in quotes if quote is not None]
    return {ESTIMATE_HEADER: f"{max(found):.3f}"} if found else {}


def _told(index: int, progress: Progress) -> ChoiceProgress:
    estimate = progress.estimate
    return ChoiceProgress(
        index=index,
        phase=progress.phase,
        queue_position=progress.place,
        prompt_tokens=progress.num_prompt_tokens,
        computed_tokens=progress.num_computed_tokens,
        cached_tokens=progress.num_cached_tokens,
        elapsed_s=round(progress.waited_s, 3),
        ttft_p50_s=None if estimate is None else round(estimate.median_s, 3),
        ttft_p95_s=None if estimate is None else round(estimate.quote_s, 3),
    )
