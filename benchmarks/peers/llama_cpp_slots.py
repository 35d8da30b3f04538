"""llama.cpp that keeps the KV of earlier prompts, as its server does, and goes on from the one that is most alike:

    PEER/bin/python llama_cpp_slots.py --model FILE.gguf

Requests come one at a time over JSON lines, as protocol.py has them:

    {"op": "ask", "prompt": [token ids], "tokens": K}     {"ttft": seconds, "seconds": wall, "cached": tokens}

A prompt takes the sequence with which it has most in common, from where they differ on; if that would cost this
sequence half of its tokens or more, another one gets what they have in common (the server saves the old one to memory
instead). The sequence that was used longest ago goes when there is no room. No prompt is computed beside another.
"""

from __future__ import annotations

import time
from typing import Any

import llama_cpp  # type: ignore[import-not-found]  # installed beside, not in this environment
from llama_cpp_cpu import BATCH_TOKENS, MAX_SEQUENCES, Context, options
from protocol import Prompt, serve

_TO_THE_END = -1


class Slots:
    """tokens: by sequence, in the order in which they were used."""

    def __init__(self, context: Context, room: int) -> None:
        self._context = context
        self._room = room
        self._tokens: dict[int, Prompt] = {}

    def ask(self, prompt: Prompt, tokens: int) -> dict[str, float]:
        begin = time.perf_counter()
        sequence, cached = self._take(prompt, len(prompt) + tokens)
        rows = [(token, cached + place, sequence, cached + place == len(prompt) - 1)
                for place, token in enumerate(prompt[cached:])]  # fmt: skip
        for start in range(0, len(rows), BATCH_TOKENS):
            self._context.run(rows[start : start + BATCH_TOKENS])
        last, known = self._context.best((len(rows) - 1) % BATCH_TOKENS), [*prompt]
        first = time.perf_counter() - begin
        for _ in range(tokens - 1):
            self._context.run([(last, len(known), sequence, True)])
            known.append(last)
            last = self._context.best(0)
        self._tokens[sequence] = known
        return {"ttft": first, "seconds": time.perf_counter() - begin, "cached": cached}

    def _take(self, prompt: Prompt, needed: int) -> tuple[int, int]:
        """Return a sequence that holds the beginning of the prompt, and how much of it."""
        memory = self._context.memory
        alike = {sequence: min(_common(known, prompt), len(prompt) - 1) for sequence, known in self._tokens.items()}
        source = max(alike, key=alike.__getitem__, default=None)
        cached = 0 if source is None else alike[source]
        keeps = source is not None and 2 * cached > len(self._tokens[source])
        kept = {source} if cached else set()
        while len(self._tokens) == MAX_SEQUENCES or sum(map(len, self._tokens.values())) + needed > self._room:
            victim = next((sequence for sequence in self._tokens if sequence not in kept), None)
            if victim is None:
                break
            llama_cpp.llama_memory_seq_rm(memory, victim, 0, _TO_THE_END)
            del self._tokens[victim]
        if source is not None and cached and keeps:
            sequence = source
            llama_cpp.llama_memory_seq_rm(memory, sequence, cached, _TO_THE_END)
        else:
            sequence = next(number for number in range(MAX_SEQUENCES) if number not in self._tokens)
            llama_cpp.llama_memory_seq_rm(memory, sequence, 0, _TO_THE_END)
            if cached:
                llama_cpp.llama_memory_seq_cp(memory, source, sequence, 0, cached)
        self._tokens.pop(sequence, None)
        return sequence, cached


def _common(one: Prompt, other: Prompt) -> int:
    shorter = min(len(one), len(other))
    return next((place for place in range(shorter) if one[place] != other[place]), shorter)


def answer(request: dict[str, Any], slots: Slots) -> dict[str, float]:
    return slots.ask(request["prompt"], int(request["tokens"]))


def main() -> None:
    arguments = options(__doc__, 131_072)

    def load() -> tuple[Slots, dict[str, Any]]:
        context = Context(arguments.model, arguments.context, arguments.threads)
        return Slots(context, arguments.context), context.facts

    serve(load, answer)


if __name__ == "__main__":
    main()
