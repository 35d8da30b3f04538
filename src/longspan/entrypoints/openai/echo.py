"""Prompts that are part of their answers: `echo`, and log-probabilities of prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from longspan.engine.protocol import TokenIds
from longspan.entrypoints.openai.answers import CompletionChoice, CompletionLogprobs
from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.generation import Text
from longspan.entrypoints.openai.logprobs import completion_logprobs, echoed_logprobs, joined, prompt_logprobs
from longspan.entrypoints.openai.protocol import CompletionRequest
from longspan.outputs import PromptPositions, RequestOutput

T = TypeVar("T")

_FEW = 2000  # log-probabilities that are written where they are: a few milliseconds


async def off_the_loop(context: Context, write: Callable[[PromptPositions], T], prompt: PromptPositions) -> T:
    """Return what `write` makes of a prompt's log-probabilities, on a thread where they are many."""
    size = len(prompt) * (prompt.top + 1)
    return write(prompt) if size <= _FEW else await context.pool.run(lambda _: write(prompt), size)


@dataclass(frozen=True, slots=True)
class Echo:
    """What of their prompts the answers to one call have. texts: of each prompt; empty where it is not wanted."""

    context: Context
    body: CompletionRequest
    texts: Sequence[str]

    @classmethod
    async def of(cls, context: Context, body: CompletionRequest, prompts: Sequence[TokenIds]) -> Echo:
        """Make it. Prompts that came as token ids are decoded."""
        if not body.echo:
            return cls(context, body, [""] * len(prompts))
        decode = context.engine.tokenizer.decode

        def work() -> list[str]:
            return [
                given if isinstance(given, str) else decode([int(token) for token in ids])
                for given, ids in zip(body.prompt, prompts, strict=True)
            ]

        size = sum(map(len, prompts))
        texts = work() if size <= _FEW or isinstance(body.prompt[0], str) else await context.pool.run(
            lambda _: work(), size
        )
        return cls(context, body, texts)

    @property
    def only(self) -> bool:
        """Whether nothing but the prompt is wanted. Whoever says so gets the answer's one token, and leaves it out."""
        return self.body.max_tokens == 0

    def text(self, index: int) -> str:
        """Return the prompt's text of a choice, if it is wanted."""
        return self.texts[index // self.body.choices_per_prompt]

    async def choice(self, index: int, text: Text) -> CompletionChoice:
        """Return a whole choice."""
        before = self.text(index)
        after = "" if self.only else text.text
        choice = CompletionChoice(
            index=index, text=before + after, finish_reason="length" if self.only else text.finish_reason,
            stop_reason=None if self.only else text.stop_reason,
        )  # fmt: skip
        if self.body.logprobs is not None:
            of_answer = None if self.only else completion_logprobs(text.logprobs, len(after))
            choice.logprobs = await self.logprobs(index, text.prompt_logprobs, of_answer)
        if self.body.prompt_logprobs is not None and text.prompt_logprobs is not None:
            choice.prompt_logprobs = await off_the_loop(self.context, prompt_logprobs, text.prompt_logprobs)
        return choice

    async def logprobs(
        self, index: int, prompt: PromptPositions | None, answer: CompletionLogprobs | None
    ) -> CompletionLogprobs | None:
        """Return those of a prompt, where they are wanted, and of what follows it."""
        asked = self.body.logprobs
        if not self.body.echo or prompt is None or asked is None:
            return answer or (CompletionLogprobs([], [], [], []) if asked is not None and self.only else None)
        echoed = await off_the_loop(self.context, lambda found: echoed_logprobs(found, asked), prompt)
        return joined(echoed, answer, len(self.text(index)))

    def without_token(self, output: RequestOutput) -> RequestOutput:
        """Return an output as it is to be sent."""
        if not self.only:
            return output
        return RequestOutput(
            output.request_id, output.num_prompt_tokens, 0, finish_reason="length" if output.finished else None,
            prompt_logprobs=output.prompt_logprobs, times=output.times,
        )  # fmt: skip
