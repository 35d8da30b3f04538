"""What sampling needs to know of a request, and what it gives back: plain data for the wire. No torch.

The state goes with the request when another instance becomes its master, so the randomness is counter-based:
the number that decides output position i depends on (seed, i) only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.ma  # np.unique would import it at its first use: 60 ms of the engine's loop
from numpy.typing import NDArray

from longspan.sampling_params import SamplingParams

_MASK_64 = (1 << 64) - 1


@dataclass(slots=True)
class SamplingState:
    """The state of one request's sampling. Build with `start`, change with `append` only.

    seed: always set: the user's, or one that the engine drew.
    num_output_tokens: position of the next token in the output.
    token_counts: for penalties, token id -> times in the output; 0 for those in the prompt only. Empty
        without penalties; only a repetition penalty looks at the prompt.
    end_token_ids: what may not be chosen before `min_tokens`.
    grammar: of what may follow, as `worker/matcher.py` reads it. seen: the output's tokens at the start, where there
        is a grammar: a matcher follows from them.
    """

    params: SamplingParams
    seed: int
    num_output_tokens: int = 0
    token_counts: dict[int, int] = field(default_factory=dict)
    end_token_ids: tuple[int, ...] = ()
    grammar: str | None = None
    seen: tuple[int, ...] = ()

    @classmethod
    def start(
        cls,
        params: SamplingParams,
        seed: int,
        prompt_token_ids: Sequence[int] | NDArray[np.integer[Any]] = (),
        output_token_ids: Sequence[int] = (),
        grammar: str | None = None,
        end_token_ids: tuple[int, ...] = (),
    ) -> SamplingState:
        """Return the state after `output_token_ids` (a request that starts again, or moves, has some).

        Tokens are looked at only where a penalty or a grammar asks for them.
        """
        state = cls(params=params, seed=seed, num_output_tokens=len(output_token_ids), grammar=grammar)
        if params.min_tokens:
            state.end_token_ids = end_token_ids
        if grammar is not None:
            state.seen = tuple(map(int, output_token_ids))
        if params.repetition_penalty != 1.0:
            state.token_counts = dict.fromkeys(np.unique(prompt_token_ids).astype(np.int64).tolist(), 0)
        if params.has_penalties:
            tokens, counts = np.unique(output_token_ids, return_counts=True)
            state.token_counts.update(zip(tokens.astype(np.int64).tolist(), counts.tolist(), strict=True))
        return state

    def append(self, token_id: int) -> None:
        """Count a token just sampled. Once for each copy of the state: every TP rank has its own."""
        self.num_output_tokens += 1
        if self.params.has_penalties:
            self.token_counts[token_id] = self.token_counts.get(token_id, 0) + 1

    @property
    def may_not_end(self) -> tuple[int, ...]:
        """Tokens that may not be the next one, since too few of the output are there."""
        return self.end_token_ids if self.num_output_tokens < self.params.min_tokens else ()

    @property
    def is_plain(self) -> bool:
        """Whether the greatest of the model's logits is the next token, and nothing else is asked."""
        params = self.params
        plain = params.greedy and params.logprobs is None and not params.logit_bias
        return plain and not self.token_counts and not self.may_not_end

    def uniform(self) -> float:
        """Return the random number in [0, 1) that decides the next token; the same on every machine."""
        counter = (self.seed & _MASK_64) << 64 | self.num_output_tokens
        digest = hashlib.blake2b(counter.to_bytes(16, "little"), digest_size=8).digest()
        return (int.from_bytes(digest, "little") >> 11) / 2**53


@dataclass(frozen=True, slots=True)
class SampledLogprobs:
    """Natural-log probabilities under the model's own distribution, before penalties and temperature.

    logprob, rank: of the chosen token; rank is 1 + the number of more probable ones.
    top_*: the best tokens, best first, as many as `SamplingParams.logprobs` says.
    """

    logprob: float
    rank: int
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class SampledToken:
    """The token that was chosen for one request; `logprobs` only if it asked for them."""

    token_id: int
    logprobs: SampledLogprobs | None = None
