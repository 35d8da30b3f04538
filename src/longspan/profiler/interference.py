"""How much longer iterations take while another instance is at work: instances may share memory, caches, power."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.episode import Company, Episode, Iterate
from longspan.core.policies.episode import EpisodePolicy
from longspan.engine.episodes import room_of_one, run_episode
from longspan.profiler.measure import Measured, Report
from longspan.sib import MeasuredInterference

if TYPE_CHECKING:
    from longspan.engine.async_llm import AsyncLLM

MOST_ROUNDS = 5
_COMPANIES: tuple[Company, ...] = ("prefill", "decode")
_TOKENS = 256
_REQUESTS = (1, 4)
_DECODE_TIMES = 96  # two at work are not equally fast all the time


async def measure_interference(
    engine: AsyncLLM, policy: EpisodePolicy, begun: float, budget_s: float, report: Report
) -> tuple[MeasuredInterference, ...]:
    """Measure interference.

    engine: as for `run_episode`, of two instances at least. begun, budget_s: as for `Measurer`, but one round runs
    anyway.

    An episode runs alone and in company right after one another, so that a machine that drifts does so for both.
    """
    samples: defaultdict[tuple[Company, Company], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(MOST_ROUNDS):
        round_began = time.monotonic()
        for episode in _episodes(room_of_one(engine)):
            alone = await run_episode(engine, policy, episode)
            for company in _COMPANIES:
                beside = await run_episode(engine, policy, replace(episode, beside=company))
                for one, other in zip(alone, beside, strict=True):
                    assert isinstance(one.work, BatchShape)
                    kind: Company = "decode" if one.work.kind == "decode" else "prefill"
                    samples[kind, company].append((one.seconds, other.seconds))
                what = f"{len(episode.prompts)} x {episode.prompts[0]} tokens, alone and beside a {company}"
                report(Measured(time.monotonic() - begun, what))
        if 2.0 * time.monotonic() - round_began > begun + budget_s:
            break
    return tuple(
        MeasuredInterference(kind=kind, beside=company, factor=_factor(found), samples=len(found))
        for (kind, company), found in sorted(samples.items())
    )


def _factor(samples: Sequence[tuple[float, float]]) -> float:
    """samples: seconds alone and in company."""
    return sum(beside for _, beside in samples) / sum(alone for alone, _ in samples)


def _episodes(room: int) -> Iterator[Episode]:
    """On the first instance, which has so many tokens' room: prompts, then decodes of all."""
    tokens, times = min(_TOKENS, room // 4), max(2, min(_DECODE_TIMES, room // (2 * max(_REQUESTS))))
    for number in _REQUESTS:
        prompts = (max(1, tokens // number),) * number
        places = tuple(range(number))
        decodes = Iterate(decodes=places, times=times)
        yield Episode(prompts, 1, (Iterate(chunks=tuple(zip(places, prompts, strict=True))), decodes))
