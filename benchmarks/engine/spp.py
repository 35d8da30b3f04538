"""Sequence pipeline parallelism: the first token of a long prompt with two stages of one thread, against one.

Each side is one instance, of one stage or of two. Chunks are of one size (`sarathi`, for each size given) or as `medha`
chooses them: how many are in flight, and how evenly they fill the stages, is the policy's doing. A prompt that is not
cut at all (`elastic_fcfs`) shows what chunks cost on one stage. Sides take turns; ratios are within a round.

    python -m benchmarks.engine.spp [--tokens 8000] [--chunks 256,512,1024] [--rounds 3]
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks.common import arguments, interleaved, paired_ratio, save, say, summary, time_prefill
from longspan import LLM

STAGES = (1, 2)
WHOLE = "whole"


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("model", "smollm2-135m", "model"), ("dtype", "bfloat16", "dtype"), ("tokens", 8000, "of the prompt"),
         ("chunks", "256,512,1024", "sizes, with commas"), ("rounds", 3, "rounds"), ("name", "spp", "result")],
    )  # fmt: skip
    common: dict[str, Any] = {
        "instances": 1, "threads_per_device": 1, "dtype": options.dtype, "quantization": "none",
        "kv_tokens": options.tokens + 64, "max_batch_tokens": options.tokens, "prefix_cache": False,
    }  # fmt: skip
    policies: dict[str, dict[str, Any]] = {
        **{f"chunks of {size}": {"policy": f"sarathi:chunk_size={size}"} for size in options.chunks.split(",")},
        "medha": {"policy": "medha"},
    }
    with ExitStack() as stack:
        llms = {WHOLE: stack.enter_context(LLM(options.model, policy="elastic_fcfs", pp=1, **common))}
        for chunks, settings in policies.items():
            for stages in STAGES:
                llm = LLM(options.model, pp=stages, **settings, **common)
                llms[f"{chunks}, pp {stages}"] = stack.enter_context(llm)
        seconds = interleaved(
            {side: (lambda seed, llm=llm: time_prefill(llm, options.tokens, seed)) for side, llm in llms.items()},
            options.rounds,
        )
    results: dict[str, Any] = {
        "model": options.model, "dtype": options.dtype, "tokens": options.tokens,
        "ttft_s": {side: summary(times) for side, times in seconds.items()}, "times_as_fast": {},
    }  # fmt: skip
    for chunks in policies:
        one, two = (seconds[f"{chunks}, pp {stages}"] for stages in STAGES)
        found = {"alike": paired_ratio(one, two), WHOLE: paired_ratio(seconds[WHOLE], two)}
        results["times_as_fast"][chunks] = found
        say(f"{chunks}: two stages are {found['alike']:.2f} times as fast as one, and {found[WHOLE]:.2f} times as fast "
            "as one that takes the prompt whole")  # fmt: skip
    save(options.name, results)


if __name__ == "__main__":
    main()
