"""From texts and messages to token ids, off the event loop, within bounds."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longspan.engine.protocol import TokenizerLike
from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.cpu_limit import CpuLimit, CpuLimitExceeded
from longspan.entrypoints.openai.prompt_decoding import token_array
from longspan.entrypoints.openai.text_decoding import too_long
from longspan.entrypoints.openai.text_pool import TextPool
from longspan.errors import RequestError

SHORT_TEXT = 1024
"""Characters that are tokenised where they are: a millisecond or two."""
TEMPLATE_CPU_S = 2.0
_TEMPLATE_CPU_S_PER_MESSAGE = 50e-6

# A text that would have to average more characters a token than this, to fit, is tokenised in pieces first: memory and
# time then follow from the tokens that fit, not from the text. Pieces may have a few tokens more than the whole.
_DENSE = 8
_PIECE = 65536
_SLACK = 1.1

_END = 65536  # characters: what may be the beginning of an answer, and where it begins
_FEW_MESSAGES = 16
_TRIALS = 16
_NEXT_TO_NOTHING_S = 0.005

Check = Callable[[], None]


class _TemplateTooSlow(RequestError):
    pass


@dataclass(slots=True)
class TemplateTrust:
    """Whether the model's template is known to take next to no time for short conversations without variables.

    Then these are rendered where they are, which spares a change of threads. One that takes long nevertheless is ended
    soon, and no other is rendered there again.
    """

    trials: int = 0
    broken: bool = False

    @property
    def given(self) -> bool:
        return not self.broken and self.trials >= _TRIALS

    def saw(self, seconds: float) -> None:
        self.trials = self.trials + 1 if seconds <= _NEXT_TO_NOTHING_S else 0  # the first one compiles it


@dataclass(frozen=True, slots=True)
class Texts:
    """The tokenizer of one server, and the threads that it runs on."""

    tokenizer: TokenizerLike
    bounds: Bounds
    pool: TextPool
    cpu_limit: CpuLimit = field(default_factory=CpuLimit)
    trust: TemplateTrust = field(default_factory=TemplateTrust)

    async def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[np.ndarray]:
        """Return int32 token ids of each text. Raises RequestError, QueueFullError."""

        def work(check: Check) -> list[np.ndarray]:
            return [self._encode(text, add_special_tokens, "prompt", check) for text in texts]

        size = sum(map(len, texts))
        return work(_nothing) if size <= SHORT_TEXT else await self.pool.run(work, size)

    async def encode_chat(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any], size: int
    ) -> tuple[np.ndarray, str]:
        """Return int32 token ids of a conversation in the model's own chat template, and the end of its text.

        size: characters of all messages.

        Raises RequestError, QueueFullError.
        """

        seconds = TEMPLATE_CPU_S + _TEMPLATE_CPU_S_PER_MESSAGE * len(messages)
        short = size <= SHORT_TEXT and len(messages) <= _FEW_MESSAGES and not template_kwargs

        def work(check: Check, limit_s: float = seconds) -> tuple[np.ndarray, str]:
            begin = time.thread_time()
            text = self._render(messages, template_kwargs, limit_s)
            if short:
                self.trust.saw(time.thread_time() - begin)
            if len(text) > self.bounds.prompt_chars:
                raise too_long("messages", f"{len(text)} characters in the chat template", self.bounds)
            check()
            return self._encode(text, False, "messages", check), text[-_END:]

        if short and self.trust.given:
            try:
                return work(_nothing, _NEXT_TO_NOTHING_S)
            except _TemplateTooSlow:
                self.trust.broken = True
        return await self.pool.run(work, size)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], template_kwargs: Mapping[str, Any], seconds: float
    ) -> str:
        try:
            return self.cpu_limit.run(lambda: self.tokenizer.render_chat(messages, **template_kwargs), seconds)
        except CpuLimitExceeded:
            raise _TemplateTooSlow(
                f"the model's chat template takes more than {seconds:g} s of CPU time for these messages",
                param="chat_template_kwargs" if template_kwargs else "messages", code="chat_template_failed",
            ) from None  # fmt: skip

    def _encode(self, text: str, add_special_tokens: bool, place: str, check: Check) -> np.ndarray:
        self._refuse_what_cannot_fit(text, place, check)
        return token_array(self.tokenizer.encode(text, add_special_tokens), place).astype(np.int32)

    def _refuse_what_cannot_fit(self, text: str, place: str, check: Check) -> None:
        if len(text) <= max(_PIECE, _DENSE * self.bounds.request_tokens):
            return
        count = 0
        for start in range(0, len(text), _PIECE):
            check()
            count += len(self.tokenizer.encode(text[start : start + _PIECE], False))
            if count > _SLACK * self.bounds.request_tokens + _PIECE // 8:
                raise too_long(place, f"in its first {start + _PIECE} characters {count} tokens", self.bounds)


def _nothing() -> None:
    pass
