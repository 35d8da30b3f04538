"""How much longer iterations take while another instance is at work: instances may share memory, caches, power."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from longspan.core.batch_shape import BatchShape
from longspan.core.episode import Company, Episode, Iterate
from longspan.core.policies.episode import EpisodePolicy
from longspan.engine.episodes import room_of_one, run_episode
from longspan.profiler.measure import Measured, Report
from longspan.sib import MeasuredInterference

if TYPE_CHECKING:
    from longspan.engine.async_llm import AsyncLLM

MOST_ROUNDS = 5
_COMPANIES: tuple[Company, ...] = ("prefill", "decode")
_TOKENS = 512
_REQUESTS = (1, 4)
_DECODE_TIMES = 16


async def measure_interference(
    engine: AsyncLLM, policy: EpisodePolicy, begun: float, budget_s: float, report: Report
) -> tuple[MeasuredInterference, ...]:
    """engine: as for `run_episode`, of two instances at least. begun, budget_s: as for `Measurer`, but one round runs
    anyway.

    An episode runs alone and in company right after one another, so that a machine that drifts does so for both.
    """
    ratios: defaultdict[tuple[Company, Company], list[float]] = defaultdict(list)
    for _ in range(MOST_ROUNDS):
        round_began = time.monotonic()
        for episode in _episodes(min(_TOKENS, room_of_one(engine) // 4)):
            alone = await run_episode(engine, policy, episode)
            for company in _COMPANIES:
                beside = await run_episode(engine, policy, replace(episode, beside=company))
                for one, other in zip(alone, beside, strict=True):
                    assert isinstance(one.work, BatchShape)
                    kind: Company = "decode" if one.work.kind == "decode" else "prefill"
                    ratios[kind, company].append(other.seconds / one.seconds)
                what = f"{len(episode.prompts)} x {episode.prompts[0]} tokens, alone and beside a {company}"
                report(Measured(time.monotonic() - begun, what))
        if 2.0 * time.monotonic() - round_began > begun + budget_s:
            break
    return tuple(
        MeasuredInterference(kind=kind, beside=company, factor=statistics.median(found), samples=len(found))
        for (kind, company), found in sorted(ratios.items())
    )


def _episodes(tokens: int) -> Iterator[Episode]:
    """On the first instance: prompts, then decodes of all."""
    for number in _REQUESTS:
        prompts = (max(1, tokens // number),) * number
        places = tuple(range(number))
        decodes = Iterate(decodes=places, times=_DECODE_TIMES)
        yield Episode(prompts, 1, (Iterate(chunks=tuple(zip(places, prompts, strict=True))), decodes))
