"""`longspan serve` around an engine that answers at once, for the cost of everything else: python edge_server.py MODEL.

It runs on the source that PYTHONPATH names, and on older ones too.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import ClassVar

from longspan.config import EngineConfig
from longspan.engine.tokenizer import Tokenizer
from longspan.entrypoints.serve import serve
from longspan.entrypoints.server_config import ServerConfig
from longspan.models.catalog import resolve_model
from longspan.outputs import EngineStats, RequestOutput, RequestTimes
from longspan.sampling_params import SamplingParams


class InstantEngine:
    """One token for each request, without a model."""

    max_model_len = request_limit = total_kv_tokens = 8192
    vocab_size = 49152
    fingerprint = "fp_0123456789"
    default_sampling: ClassVar[dict[str, float]] = {}
    error = stalled = None
    draining = False

    def __init__(self, config: EngineConfig) -> None:
        model = resolve_model(config.model)
        self.config = config
        self.model_name = model.name
        self.tokenizer = Tokenizer.load(model)

    def validate(self, prompt_token_ids: Sequence[int], params: SamplingParams) -> SamplingParams:
        assert 0 < len(prompt_token_ids) < self.request_limit
        return replace(params, max_tokens=params.max_tokens or 1)

    async def generate(
        self, prompt_token_ids: Sequence[int], params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        now = time.monotonic()
        times = RequestTimes(arrived=now, scheduled=now, first_token=now, last_token=now, finished=now)
        yield RequestOutput(request_id, len(prompt_token_ids), 1, (1,), "x", None, "length", None, times)

    def stats(self) -> EngineStats:
        return EngineStats(0, 0, 0, self.total_kv_tokens, 1, 0, (0,))

    async def dead(self) -> str:
        await asyncio.Event().wait()
        return ""

    async def drain(self, timeout_s: float) -> None:
        self.draining = True

    async def close(self) -> None:
        pass


async def start(config: EngineConfig) -> InstantEngine:
    return InstantEngine(config)


def announce(engine: object, url: str) -> None:
    print(url, flush=True)


if __name__ == "__main__":
    sys.exit(serve(EngineConfig(model=sys.argv[1]), ServerConfig(port=0), start_engine=start, announce=announce))
