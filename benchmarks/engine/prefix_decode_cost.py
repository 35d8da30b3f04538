"""What the prefix cache costs decodes: a decode step with it on over one with it off, the two taking turns.

    python -m benchmarks.engine.prefix_decode_cost [--model smollm2-135m] [--rounds 15] [--instances 1]

fresh: prompts that nothing is found of, so all that differs is the making of keys and the books. adopted: prompts whose
whole context was asked before, so that each step reads the KV of a residence that others left. The side without the
cache gets the same prompts, and computes them. The policy is elastic_fcfs, under which requests that come together
begin together.
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import (
    arguments,
    fixed_output,
    interleaved,
    paired_ratio,
    random_prompt,
    save,
    say,
    summary,
    time_decode,
    time_steps,
)
from longspan import LLM

CASES = ((1, 1024), (8, 512), (1, 4096))
STEPS = 96


def adopted(llm: LLM, batch: int, context: int, seed: int) -> float:
    """Seconds of a decode step of requests that each go on a little from a prompt that was asked before."""
    prompts = [random_prompt(context, seed * 1000 + i) for i in range(batch)]
    llm.generate(prompts, fixed_output(1))
    again = [[*prompt[:-16], *random_prompt(16, seed)] for prompt in prompts]
    return time_steps(llm, again, STEPS)


def measure(on: LLM, off: LLM, rounds: int) -> dict[str, Any]:
    results = {}
    for batch, context in CASES:
        for kind in ("fresh", "adopted"):

            def step(llm: LLM, number: int, kind: str = kind, batch: int = batch, context: int = context) -> float:
                seed = 7 + 100 * (number + 1) + batch + context
                if kind == "fresh":
                    return time_decode(llm, batch, context, STEPS, seed)
                return adopted(llm, batch, context, seed)

            sides = {"on": lambda number: step(on, number), "off": lambda number: step(off, number)}
            seconds = interleaved(sides, rounds)
            ratio = paired_ratio(seconds["on"], seconds["off"])
            name = f"{kind}, batch {batch}, context {context}"
            results[name] = {"ratio": ratio, **{side: summary(those) for side, those in seconds.items()}}
            step_ms = 1e3 * results[name]["on"]["median"]
            say(f"{name}: {step_ms:.2f} ms a step with the cache, {ratio:.3f} times that without")
    return results


def main() -> None:
    options = arguments(
        __doc__ or "",
        [
            ("model", "smollm2-135m", "what runs"),
            ("rounds", 15, "of each side"),
            ("instances", 1, "of the model"),
        ],
    )
    settings: dict[str, Any] = {
        "instances": options.instances, "kv_tokens": 32_768, "threads_per_device": 1, "policy": "elastic_fcfs",
        "max_batch_tokens": max(batch * context for batch, context in CASES),
    }  # fmt: skip
    with (
        LLM(options.model, **settings) as on,
        LLM(options.model, prefix_cache=False, **settings) as off,
    ):
        save("prefix_decode_cost", measure(on, off, options.rounds))


if __name__ == "__main__":
    main()
