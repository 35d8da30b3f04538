"""What the servers need of an engine; `AsyncLLM` is the one that runs models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longspan.config import EngineConfig
from longspan.core.progress import Progress
from longspan.engine.chat_format import ChatFormat
from longspan.engine.fleet import Purpose
from longspan.engine.observer.messages import Frames
from longspan.executor.base import InstanceReport
from longspan.metrics.ended_request import EndedRequest
from longspan.metrics.fleet.frames import About
from longspan.metrics.story import Story
from longspan.outputs import EngineStats, Quote, RequestOutput
from longspan.sampling_params import SamplingParams

TokenIds = Sequence[int] | NDArray[np.integer[Any]]


class TokenizerLike(Protocol):
    """Safe to call from several threads at once: long texts are encoded off the event loop."""

    @property
    def eos_token_ids(self) -> Collection[int]: ...

    @property
    def chat_format(self) -> ChatFormat:
        """How the model writes calls of tools, and what it thinks."""
        ...

    @property
    def max_token_chars(self) -> int:
        """No token stands for more characters of text than this."""
        ...

    @property
    def may_shrink(self) -> bool:
        """Whether a text may be longer than its tokens times `max_token_chars`, since parts of it become none."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...

    def token(self, token_id: int) -> str | None:
        """Return the token's name in the vocabulary; None where it has none."""
        ...

    def info(self) -> dict[str, str | None]:
        """Return its class, chat template and special tokens by the names that transformers gives them."""
        ...

    def render_chat(self, messages: Sequence[Mapping[str, Any]], /, **kwargs: Any) -> str:
        """Render the chat, ready for the answer. Raises RequestError if the model's template cannot do it."""
        ...


class View(Protocol):
    """What one who looks on has of a fleet that is kept up to date."""

    def catch_up(self) -> int:
        """Have it told of all that has happened; returns how many records these are by now."""
        ...

    async def remember(self) -> None:
        """Have it told of what is remembered of before, first; others have their turns meanwhile."""
        ...

    def frames(self, about: About | None, state: str | None) -> Awaitable[Frames]:
        """Ask for frames of now. about: for a whole one beside it. state: see `metrics.fleet.Frame`."""
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

    async def prepare(self, params: SamplingParams) -> None:
        """Try out the grammar that the params ask for, if any, so that `generate` need not wait for that.

        Raises:
            RequestError: it cannot be compiled, or costs too much. QueueFullError: too many wait for that.
        """
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

    def progress(self, request_id: str) -> Progress | None:
        """Return how far a request is; None: it has ended, or has yet to be admitted, or is unknown."""
        ...

    def has(self, request_id: str) -> bool:
        """Tell whether the engine has taken it in, has not refused it, and it has not ended."""
        ...

    def quote(self, request_id: str) -> Quote | None:
        """Return what was predicted at a request's arrival; None: nothing, or it has ended, or is unknown."""
        ...

    def on_ended(self, listener: Callable[[EndedRequest], None]) -> None:
        """Have it hear of each request that ends, however it does; it must not raise, nor take its time."""
        ...

    async def stories(self, given: str, most: int) -> list[Story]:
        """Tell what became of the request that clients know by this id, of `most` of its choices."""
        ...

    def watching(self) -> AbstractContextManager[View]:
        """Keep a model of the fleet up to date meanwhile, for one who looks on. Raises OSError."""
        ...

    def instances(self) -> Sequence[InstanceReport]:
        """Tell how each instance is, in order."""
        ...

    def leave(self, instance: int, purpose: Purpose) -> None:
        """Empty an instance while its requests go on, and then do with it what is wanted.

        Raises EngineDeadError; or RequestError: it cannot leave.
        """
        ...

    def add_instance(self) -> int:
        """Have one instance more, and return its number. Raises EngineDeadError; or RequestError: it cannot be."""
        ...

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
