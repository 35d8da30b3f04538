"""Machines that are made up."""

from __future__ import annotations

from collections.abc import Callable

from longspan.tuning.speed import WorkerSpeed


def speeds(
    *threads: int, token_s: float = 1e-3, fixed_s: float = 0.02, decode_s: float = 6e-3, pair_s: float = 2e-7,
    request_s: float = 1e-3, gain: Callable[[int], float] = float, crowding: float = 1.0,
) -> list[WorkerSpeed]:  # fmt: skip
    """Times are those of one thread. gain: how many times as fast so many threads are."""

    def one(count: int) -> WorkerSpeed:
        def chunk_s(tokens: int, context: int = 0) -> float:
            return (fixed_s + tokens * token_s + tokens * (tokens + 2 * context) * pair_s) / gain(count)

        return WorkerSpeed(
            threads=count, decode_s=decode_s / gain(count), num_decodes=8,
            decodes_s=(decode_s + 7 * request_s) / gain(count), short_tokens=16, short_s=chunk_s(16), chunk_tokens=256,
            chunk_s=chunk_s(256), context_tokens=768, later_chunk_s=chunk_s(256, 768),
            crowding=1.0 if count == max(threads) else crowding,
        )  # fmt: skip

    return [one(count) for count in threads]
