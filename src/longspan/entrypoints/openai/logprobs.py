"""The engine's log-probabilities in the two shapes that OpenAI gives them."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.entrypoints.openai.responses import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from longspan.outputs import PositionLogprobs, TokenLogprob

LOWEST = -9999.0  # JSON has no -inf


def completion_logprobs(positions: Sequence[PositionLogprobs], text_offset: int) -> CompletionLogprobs:
    """`text_offset`: characters of this choice's earlier tokens."""
    offsets = []
    for position in positions:
        offsets.append(text_offset)
        text_offset += len(position.chosen.text)
    return CompletionLogprobs(
        tokens=[position.chosen.text for position in positions],
        token_logprobs=[_finite(position.chosen) for position in positions],
        top_logprobs=[_best_by_text(position) for position in positions],
        text_offset=offsets,
    )


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            ChatLogprob(
                token=position.chosen.text,
                logprob=_finite(position.chosen),
                bytes=_bytes(position.chosen),
                top_logprobs=[
                    TopLogprob(token.text, _finite(token), _bytes(token)) for token in position.top
                ],
            )
            for position in positions
        ]
    )


def _best_by_text(position: PositionLogprobs) -> dict[str, float]:
    """The best tokens and the chosen one. Of two that read the same, the better stays."""
    best: dict[str, float] = {}
    for token in (*position.top, position.chosen):
        best.setdefault(token.text, _finite(token))
    return best


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, LOWEST)


def _bytes(token: TokenLogprob) -> list[int]:
    return list(token.text.encode("utf-8", "replace"))
