"""The engine's log-probabilities in the two shapes that OpenAI gives them.

A token is known by its bytes. Where they are no whole characters its name tells them, as OpenAI does:
`bytes:\\xe4\\xb8`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from longspan.entrypoints.openai.answers import (
    ChatLogprob,
    ChatLogprobs,
    CompletionLogprobs,
    PromptLogprob,
    PromptLogprobs,
    TopLogprob,
)
from longspan.outputs import PositionLogprobs, PromptPositions, RequestOutput

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


def prompt_logprobs(prompt: PromptPositions) -> PromptLogprobs:
    """Return what vLLM's clients read of a prompt."""
    return [
        None if position is None else {
            str(token.token_id): PromptLogprob(_finite(token.logprob), token.rank, token_name(token.bytes))
            for token in (*position.top, position.chosen)
        }
        for _, position in prompt.positions()
    ]  # fmt: skip


def echoed_logprobs(prompt: PromptPositions, asked: int) -> CompletionLogprobs:
    """Return what OpenAI's clients read of a prompt that is part of the answer. asked: how many of the best tokens."""
    whole = CompletionLogprobs([], [], [], [])
    for token_id, position in prompt.positions():
        if position is None:
            whole.tokens.append(token_name(prompt.token_bytes(token_id)))
            whole.token_logprobs.append(None)
            whole.top_logprobs.append(None)
            whole.text_offset.append(0)
            continue
        name, best = _by_name(replace(position, top=position.top[:asked]))
        whole.tokens.append(name)
        whole.token_logprobs.append(_finite(position.chosen.logprob))
        whole.top_logprobs.append(best)
        whole.text_offset.append(position.text_offset)
    return whole


def joined(prompt: CompletionLogprobs, answer: CompletionLogprobs | None, num_characters: int) -> CompletionLogprobs:
    """Return both as one. num_characters: of the prompt's text."""
    if answer is None:
        return prompt
    return CompletionLogprobs(
        prompt.tokens + answer.tokens,
        prompt.token_logprobs + answer.token_logprobs,
        prompt.top_logprobs + answer.top_logprobs,
        prompt.text_offset + [num_characters + offset for offset in answer.text_offset],
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
