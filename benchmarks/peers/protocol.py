"""Speed measurements of an engine over JSON lines, so that a driver can interleave it with others. No dependencies:
peers run it under Pythons of their own.

Requests come on stdin and replies go to stdout, one JSON object a line; the engine's own output goes to stderr.

    (at the start)                                              {"ready": true, "version": "...", "threads": 2}
    {"op": "prefill", "tokens": N, "seed": S}                   {"seconds": wall}
    {"op": "decode", "batch": B, "context": C, "steps": K, "seed": S}
                                                                {"seconds": wall, "prefill_seconds": wall}

`prefill` is one request of N random token ids that asks for one token. `decode` is B requests of C random ids that
ask for K + 1 tokens each; `prefill_seconds` is the part until all have their first, or, where the engine does not tell,
the same with one token asked for, measured just after: `B * K / (seconds - prefill_seconds)` are the decoded tokens per
second. What fails is answered with {"error": "..."}. The end of stdin ends it.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable
from typing import Any

VOCABULARY = 49152
"""Token ids are drawn below this: the vocabulary of SmolLM2."""

Prompt = list[int]
Generate = Callable[[list[Prompt], int], tuple[float, float | None]]
"""Runs the prompts, asking for so many tokens each; seconds until the end, and, if known, until all had their first."""


def random_prompts(seed: int, count: int, length: int) -> list[Prompt]:
    """Draw `count` prompts of `length` token ids; the same seed gives the same prompts."""
    source = random.Random(seed)
    return [[source.randrange(VOCABULARY) for _ in range(length)] for _ in range(count)]


def answer(request: dict[str, Any], generate: Generate) -> dict[str, float]:
    """Measure what one request asks for."""
    seed = int(request.get("seed", 0))
    match request["op"]:
        case "prefill":
            return {"seconds": generate(random_prompts(seed, 1, int(request["tokens"])), 1)[0]}
        case "decode":
            prompts = random_prompts(seed, int(request["batch"]), int(request["context"]))
            seconds, prefill_seconds = generate(prompts, int(request["steps"]) + 1)
            return {"seconds": seconds, "prefill_seconds": prefill_seconds or generate(prompts, 1)[0]}
        case op:
            raise ValueError(f"unknown op {op!r}")


def serve(
    load: Callable[[], tuple[Any, dict[str, Any]]], answer: Callable[[dict[str, Any], Any], Any] = answer
) -> None:
    """Load the engine, then answer until stdin ends. answer: to a request, by what was loaded."""
    # Engines print to file descriptor 1: keep a copy for replies, and point it at stderr.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def reply(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=replies, flush=True)

    loaded, about = load()
    reply({"ready": True} | about)
    for line in sys.stdin:
        try:
            reply(answer(json.loads(line), loaded))
        except Exception as error:
            reply({"error": f"{type(error).__name__}: {error}"})
