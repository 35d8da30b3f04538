"""Runs episodes on an engine, and with a few of them estimates a cost model."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from longspan.core.costs.analytic import ModelShape, analytic_cost_model, calibrated_hardware
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.costs.episode import Episode, Iterate, Move, Step, Timed
from longspan.core.policies.episode import EpisodePolicy
from longspan.errors import ConfigError, EngineDeadError
from longspan.sampling_params import SamplingParams

if TYPE_CHECKING:
    from longspan.engine.async_llm import AsyncLLM

_PROBE_TOKENS = (256, 1024, 4096, 16384)
_SHORT_TOKENS = 16
_LEAST_ROOM = 10  # a prompt of two tokens, so that one can move; and those that it generates
_CLEARLY_LONGER = 4.0
_COMPANY_TOKENS = 1 << 12  # generated at most; it is gone before


def room_of_one(engine: AsyncLLM) -> int:
    """Return the tokens that a request may have on one instance."""
    return min(engine.max_model_len, engine.core.scheduler.config.kv_tokens)


async def run_episode(engine: AsyncLLM, policy: EpisodePolicy, episode: Episode) -> Sequence[Timed]:
    """Run the episode and time its steps. engine: of this policy, with nothing else to do.

    Raises RequestError: it does not fit the engine; EngineDeadError.
    """
    draw = random.Random(episode.prompts[0])
    vocabulary = range(engine.vocab_size)
    request_ids = [f"episode-{place}" for place in range(len(episode.prompts))]
    other = None if episode.beside is None else "episode-beside"
    policy.begin(episode, request_ids, other)

    async def run(request_id: str, prompt_tokens: int, output_tokens: int) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=output_tokens, ignore_eos=True)
        async for _ in engine.generate(draw.choices(vocabulary, k=prompt_tokens), params, request_id):
            pass

    try:
        async with asyncio.TaskGroup() as requests:
            own = [
                requests.create_task(run(*request))
                for request in zip(request_ids, episode.prompts, episode.output_tokens(), strict=True)
            ]
            if other is not None:
                prompt = sum(episode.prompts)
                most = min(_COMPANY_TOKENS, room_of_one(engine) - prompt)
                company = requests.create_task(run(other, prompt, most))
                await asyncio.wait(own)
                company.cancel()
    except ExceptionGroup as group:  # one failure fails them all alike
        raise group.exceptions[0] from None
    await engine.idle()
    if engine.error is not None:
        raise EngineDeadError(engine.error)
    return policy.timed()


async def estimate_cost_model(engine: AsyncLLM, policy: EpisodePolicy, model: ModelShape) -> FittedCostModel:
    """Make the analytic model agree with a few batches that run now. A second or so.

    engine: as for `run_episode`. Raises ConfigError: requests are too short for it; else as that does.
    """
    if (least := room_of_one(engine)) < _LEAST_ROOM:
        raise ConfigError(
            f"a request may have {least} tokens on an instance, but the policy predicts times, and to measure them "
            f"takes {_LEAST_ROOM}; give it more (--max-model-len, --kv-tokens), or a policy such as elastic_fcfs"
        )
    instances, tp = engine.config.num_instances, engine.config.tp
    room = room_of_one(engine) - 8
    lengths = [length for length in _PROBE_TOKENS if length <= room] or [max(1, room)]
    timed: list[Timed] = []
    if instances > 1:
        await run_episode(engine, policy, _probe(lengths[0], instances, migrates=True))  # the first of all is slow
    for length in lengths:
        await run_episode(engine, policy, _probe(min(_SHORT_TOKENS, length), 1))  # the first of a kind is slow, too
        timed += await run_episode(engine, policy, _probe(min(_SHORT_TOKENS, length), 1))
        timed += await run_episode(engine, policy, _probe(length, 1))
        prefill, decode = timed[-2:]
        if prefill.seconds > _CLEARLY_LONGER * decode.seconds:
            break
    if instances > 1:
        timed += await run_episode(engine, policy, _probe(lengths[0], 2, migrates=True))
    hardware = calibrated_hardware(model, timed, tp)
    return analytic_cost_model(model, hardware, instances, tp)


def _probe(tokens: int, instances: int, *, migrates: bool = False) -> Episode:
    """Prefill one prompt, have its KV migrate to the first instance and on to the second, decode four tokens."""
    prefill, decode = Iterate(chunks=((0, tokens),)), Iterate(decodes=(0,), times=4)
    moves: tuple[Step, ...] = (Move(0, source=1, target=0), Move(0, source=0, target=1)) if migrates else ()
    return Episode((tokens,), instances, (prefill, *moves, decode))
