"""The keys of prompts, by which the KV of their prefixes is found again; and who may find whose."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from longspan.prefix_keys import PrefixHasher
from longspan.sampling_params import SamplingParams

_SEED_BYTES = 32
_MANY_TOKENS = 1 << 14  # worth a thread: about a millisecond in blocks of 16


@dataclass(frozen=True, slots=True)
class KnownTokens:
    """By what a request's KV is found again: the keys of its prompt's blocks, and what goes on hashing behind it."""

    hasher: PrefixHasher
    keys: bytes


class PrefixKeys:
    """Makes the keys of one server, which nobody can foretell: its seed is drawn at its start.

    Requests find what others have computed if these had the same tenant and the same `cache_salt`; with
    `shared_by_tenants`, the same salt is enough.
    """

    def __init__(self, block: int, *, shared_by_tenants: bool, longest: int | None = None) -> None:
        """block: tokens for each key. longest: tokens of the longest request whose KV follows from its tokens alone;
        None: of any."""
        self.block = block
        self.longest = longest
        self.shared_by_tenants = shared_by_tenants
        self._seed = secrets.token_bytes(_SEED_BYTES)

    async def of_prompt(self, prompt: NDArray[np.int32], params: SamplingParams) -> KnownTokens | None:
        """Return the keys of a prompt; None if it shall be known to nobody. A long one is hashed in a thread."""
        length = len(prompt) + (params.max_tokens or 0)
        scores = params.prompt_logprobs is not None  # of all its tokens, so all are computed
        if scores or not params.cache or (self.longest is not None and length > self.longest):
            return None
        tenant = None if self.shared_by_tenants else params.service.tenant
        hasher = PrefixHasher(self._seed, self.block, repr((tenant, params.cache_salt)).encode())
        if len(prompt) * 16 < _MANY_TOKENS * self.block:
            return KnownTokens(hasher, hasher.push(prompt.tobytes()))
        return KnownTokens(hasher, await asyncio.to_thread(hasher.push, prompt.tobytes()))
