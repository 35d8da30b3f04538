"""The prefixes of a trace's prompts: their keys, and how much of them is found computed."""

from __future__ import annotations

import numpy as np

from longspan.prefix_keys import KEY_BYTES, PrefixHasher
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

_SEED = b"of simulations: a run is the same each time"
_DISTINCT = 4_194_301  # blocks, each of tokens of its own


class Prefixes:
    """Counts prompt tokens, of requests whose trace tells their blocks.

    num_looked_up: of those that have begun. num_found: of these, computed before. num_arrived: of all that have come.
    num_seen: of these, in whole blocks that an earlier one has had, too: what a pool without bounds would find, if
    every prompt was computed at once.
    """

    def __init__(self, block: int) -> None:
        """block: tokens for each key."""
        self.block = block
        self.num_looked_up = self.num_found = self.num_seen = self.num_arrived = 0
        self._seen: set[bytes] = set()

    def keys(self, request: TraceRequest) -> bytes:
        """Return the keys of an arrival's prompt. A block id stands for a run of tokens that belong to it alone."""
        if not request.prefix_block_ids:
            return b""
        numbers = np.array([block % _DISTINCT for block in request.prefix_block_ids], dtype=np.int64)
        tokens = (numbers[:, None] * BLOCK_TOKENS + np.arange(BLOCK_TOKENS)).reshape(-1)[: request.num_prompt_tokens]
        keys = PrefixHasher(_SEED, self.block).push(tokens.astype("<i4").tobytes())
        self._see(keys, request.num_prompt_tokens)
        return keys

    def begin(self, num_prompt_tokens: int, found: int) -> None:
        """Note that a request begins, and how many of its tokens it found."""
        self.num_looked_up += num_prompt_tokens
        self.num_found += found

    @property
    def hit_rate(self) -> float:
        return self.num_found / max(1, self.num_looked_up)

    @property
    def best_hit_rate(self) -> float:
        return self.num_seen / max(1, self.num_arrived)

    def _see(self, keys: bytes, num_tokens: int) -> None:
        parts = [keys[place : place + KEY_BYTES] for place in range(0, len(keys), KEY_BYTES)]
        known = next((count for count, key in enumerate(parts) if key not in self._seen), len(parts))
        self._seen.update(parts[known:])
        most = (num_tokens - 1) // self.block  # the last token is always computed
        self.num_seen += self.block * min(known, most)
        self.num_arrived += num_tokens
