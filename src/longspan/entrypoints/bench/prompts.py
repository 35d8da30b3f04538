"""What requests say: random token ids, or passages of a text; of the length that was asked for.

Prompts that share prefix blocks in the trace share their content too, so that a prefix cache finds what it would.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from longspan.workload.traces import BLOCK_TOKENS, TraceRequest

Prompt = str | list[int]

_OWN, _BLOCK = 0, 1  # kinds of content: of one request, of a prefix block
_UINT64 = 2**64 - 1


class Prompts(Protocol):
    """Makes prompts; the same ones for the same seed."""

    def make(self, index: int, request: TraceRequest) -> Prompt: ...


class TokenPrompts:
    """Token ids drawn uniformly from [low, high]."""

    def __init__(self, low: int, high: int, seed: int) -> None:
        self._low, self._high, self._seed = low, high, seed

    def make(self, index: int, request: TraceRequest) -> list[int]:
        ids: list[int] = []
        for kind, number, num_tokens in _pieces(index, request):
            draw = np.random.default_rng((self._seed, kind, number))
            ids += draw.integers(self._low, self._high, num_tokens, endpoint=True).tolist()
        return ids


class TextPrompts:
    """Passages of a text, each from another place of it. Lengths hold on average: see `chars_per_token`."""

    def __init__(self, text: str, chars_per_token: float, seed: int) -> None:
        self._text, self._chars_per_token, self._seed = text, chars_per_token, seed

    def make(self, index: int, request: TraceRequest) -> str:
        pieces = []
        for kind, number, num_tokens in _pieces(index, request):
            draw = np.random.default_rng((self._seed, kind, number))
            start = int(draw.integers(len(self._text)))
            length = max(1, round(num_tokens * self._chars_per_token))
            rounds = -(-(start + length) // len(self._text))
            pieces.append((self._text * rounds)[start : start + length])
        return "".join(pieces)


def _pieces(index: int, request: TraceRequest) -> Iterator[tuple[int, int, int]]:
    """(kind, number, tokens) of each part of the prompt: its known blocks, then what is its own."""
    left = request.num_prompt_tokens
    for block in request.prefix_block_ids:
        if left == 0:
            return
        yield _BLOCK, block & _UINT64, min(BLOCK_TOKENS, left)
        left -= min(BLOCK_TOKENS, left)
    if left:
        yield _OWN, index, left
