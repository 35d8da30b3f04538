"""What the servers need of an engine; `AsyncLLM` is the one that runs models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longspan.config import EngineConfig
from longspan.outputs import EngineStats, RequestOutput
from longspan.sampling_params import SamplingParams

TokenIds = Sequence[int] | NDArray[np.integer[Any]]


class TokenizerLike(Protocol):
    """Safe to call from several threads at once: long texts are encoded off the event loop."""

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of text than this."""
        ...

    @property
    def may_shrink(self) -> bool:
        """Whether a text may be longer than its tokens times `max_token_chars`, since parts of it become none."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], /) -> str: ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **kwargs: Any) -> str:
        """Render the chat, ready for the answer. Raises RequestError if the model's template cannot do it."""
        ...


class EngineClient(Protocol):
    """One engine on the event loop of its server."""

    @property
    def config(self) -> EngineConfig: ...

    @property
    def model_name(self) -> str:
        """The served name, which requests must give."""
        ...

    @property
    def max_model_len(self) -> int:
        """Tokens, prompt and output together."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes with whatever may change what a seed gives: weights, numbers, kernels, version."""
        ...

    @property
    def default_sampling(self) -> Mapping[str, float]:
        """Fields of `SamplingParams` for requests over the API that do not say: what the model's makers advise."""
        ...

    @property
    def vocab_size(self) -> int:
        """Token ids go from 0 up to this: the rows of the model's embedding."""
        ...

    @property
    def total_kv_tokens(self) -> int:
        """KV slots of all instances; a request cannot be longer than that either."""
        ...

    @property
    def request_limit(self) -> int:
        """Tokens that a request may have, prompt and output together: what the model and the policy can serve."""
        ...

    @property
    def tokenizer(self) -> TokenizerLike: ...

    def validate(self, prompt_token_ids: TokenIds, params: SamplingParams) -> SamplingParams:
        """Return the same params with `max_tokens` resolved. Raises RequestError if the request can never run."""
        ...

    def generate(
        self, prompt_token_ids: TokenIds, params: SamplingParams, request_id: str
    ) -> AsyncIterator[RequestOutput]:
        """Yield deltas, the last one with a finish reason. Closing it aborts the request and frees its KV.

        Raises:
            QueueFullError, OverloadedError, EngineDrainingError, EngineDeadError, RequestError: on the first step or
                later.
        """
        ...

    def abort(self, request_id: str) -> None: ...

    def stats(self) -> EngineStats: ...

    @property
    def error(self) -> str | None:
        """Why the engine is dead; None while it lives."""
        ...

    @property
    def stalled(self) -> str | None:
        """Why it seems that the engine is stuck; None while what was decided comes to its end."""
        ...

    async def dead(self) -> str:
        """Wait until the engine has died; returns why."""
        ...

    @property
    def draining(self) -> bool: ...

    async def drain(self, timeout_s: float) -> None:
        """Refuse new requests, wait for the running ones, abort those left at the timeout."""
        ...

    async def close(self) -> None: ...
