"""The engine's log-probabilities in the two shapes that OpenAI gives them.

A token is known by its bytes. Where they are no whole characters its name tells them, as OpenAI does:
`bytes:\\xe4\\xb8`.
"""

from __future__ import annotations

from collections.abc import Sequence

from longspan.entrypoints.openai.responses import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob
from longspan.outputs import PositionLogprobs, RequestOutput

LOWEST = -9999.0  # JSON has no -inf


def completion_logprobs(positions: Sequence[PositionLogprobs], num_characters: int) -> CompletionLogprobs:
    """Return logprobs. num_characters: of the text so far. What a stop string cut off begins where it ends."""
    named = [_by_name(position) for position in positions]
    return CompletionLogprobs(
        tokens=[name for name, _ in named],
        token_logprobs=[_finite(position.chosen.logprob) for position in positions],
        top_logprobs=[best for _, best in named],
        text_offset=[min(position.text_offset, num_characters) for position in positions],
    )


class StreamedLogprobs:
    """One choice's. A token waits until the text before it is sent, for a stop string may still cut that."""

    def __init__(self) -> None:
        self._num_characters = 0
        self._waiting: list[PositionLogprobs] = []

    def push(self, output: RequestOutput) -> CompletionLogprobs | None:
        self._num_characters += len(output.text)
        self._waiting.extend(output.logprobs or ())
        ready = [p for p in self._waiting if output.finished or p.text_offset <= self._num_characters]
        self._waiting = self._waiting[len(ready) :]
        return completion_logprobs(ready, self._num_characters) if ready else None


def chat_logprobs(positions: Sequence[PositionLogprobs]) -> ChatLogprobs:
    return ChatLogprobs(
        [
            ChatLogprob(
                token=token_name(position.chosen.bytes),
                logprob=_finite(position.chosen.logprob),
                bytes=list(position.chosen.bytes),
                top_logprobs=[
                    TopLogprob(token_name(token.bytes), _finite(token.logprob), list(token.bytes))
                    for token in position.top
                ],
            )
            for position in positions
        ]
    )


def token_name(token: bytes) -> str:
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def _by_name(position: PositionLogprobs) -> tuple[str, dict[str, float]]:
    """The chosen token's name; and the best tokens and the chosen one, each under a name of its own."""
    best: dict[str, float] = {}
    names: dict[int, str] = {}
    for token in (*position.top, position.chosen):
        if token.token_id not in names:
            name = token_name(token.bytes)
            names[token.token_id] = name if name not in best else f"token_id:{token.token_id}"
            best[names[token.token_id]] = _finite(token.logprob)
    return names[position.chosen.token_id], best


def _finite(logprob: float) -> float:
    return logprob if logprob > LOWEST else LOWEST  # also where it is no number
