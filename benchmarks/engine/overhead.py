"""What the engine costs beside the model, on this machine.

(a) the share of a decode step that is spent inside the model, (b) HTTP streaming at 32 streams against the offline
class, (c) what a decode step over two instances costs beside its compute: queries out, partial results back, in every
layer. The compute alone is a step on one instance with half the context, for that is what each of the two attends to.

    python -m benchmarks.engine.overhead [--model smollm2-135m] [--rounds 5]
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
)
from longspan import LLM
from longspan.core.policies.fixed import FixedPolicy

STREAMS, STREAM_TOKENS, CONTEXT = 32, 96, 128


def measure_inside(llm: LLM, rounds: int) -> dict[str, Any]:
    """Of the time in which decode steps follow one another, the part in which an instance is inside the model."""
    results = {}
    for batch in (1, 32):
        shares = []
        for seed in range(rounds):
            prompts = [random_prompt(CONTEXT, seed * 1000 + i) for i in range(batch)]
            before = llm.stats()
            completions = llm.generate(prompts, fixed_output(49))
            inside = llm.stats().model_seconds - before.model_seconds
            # From the first batch to the last token: tokenisation and the caller are not the engine's.
            begin = min(c.times.scheduled or 0 for c in completions)
            shares.append(inside / (max(c.times.last_token or 0 for c in completions) - begin))
        results[str(batch)] = {"inside_model_share": summary(shares)}
        say(f"(a) at batch {batch}, {100 * results[str(batch)]['inside_model_share']['median']:.1f} % of the time is "
            "inside the model")  # fmt: skip
    return results


@contextmanager
def server(model: str) -> Iterator[int]:
    """`longspan serve` in a process of its own; its port."""
    command = [sys.executable, "-m", "longspan", "serve", model, "--port", "0", "--instances", "2",
               "--threads-per-device", "1", "--dtype", "bfloat16", "--kv-tokens", "16384"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if found := re.search(r"127\.0\.0\.1:(\d+)", line):
                yield int(found[1])
                return
        raise RuntimeError("the server did not start")
    finally:
        process.terminate()
        process.wait(60)


async def stream(port: int, model: str, prompt: list[int], tokens: int = STREAM_TOKENS) -> int:
    """One streamed completion; how many events it had. A bare socket, so that the client costs next to nothing."""
    body = json.dumps({"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.0,
                       "ignore_eos": True, "stream": True}).encode()  # fmt: skip
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
    answer = await reader.read(-1)
    writer.close()
    if b" 200 " not in answer[:32]:
        raise RuntimeError(answer[:500].decode())
    return answer.count(b"data: ")


def streamed(port: int, model: str, seed: int) -> float:
    async def every() -> None:
        await asyncio.gather(*(stream(port, model, random_prompt(CONTEXT, seed * 1000 + i)) for i in range(STREAMS)))

    begin = time.perf_counter()
    asyncio.run(every())
    return time.perf_counter() - begin


def offline(llm: LLM, seed: int) -> float:
    prompts = [random_prompt(CONTEXT, seed * 1000 + i) for i in range(STREAMS)]
    begin = time.perf_counter()
    llm.generate(prompts, fixed_output(STREAM_TOKENS))
    return time.perf_counter() - begin


def measure_streaming(model: str, llm: LLM, rounds: int) -> dict[str, Any]:
    with server(model) as port:
        seconds = interleaved(
            {"offline": lambda seed: offline(llm, seed), "streamed": lambda seed: streamed(port, model, seed)}, rounds
        )
    share = paired_ratio(seconds["offline"], seconds["streamed"])
    say(f"(b) {STREAMS} streams over HTTP have {100 * share:.1f} % of the offline class's tokens/s")
    return {"streams": STREAMS, "tokens_each": STREAM_TOKENS, "share_of_offline": share,
            **{side: summary(s) for side, s in seconds.items()}}  # fmt: skip


def measure_exchange(one: LLM, two: LLM, rounds: int) -> dict[str, Any]:
    results = {}
    for batch, context in ((1, 1024), (1, 4096), (8, 1024)):
        seconds = interleaved(
            {
                "two_instances": lambda seed, b=batch, c=context: time_decode(two, b, c, 48, seed),
                "compute": lambda seed, b=batch, c=context: time_decode(one, b, c // 2, 48, seed),
            },
            rounds,
        )
        pairs = zip(seconds["two_instances"], seconds["compute"], strict=True)
        extra = summary([1000 * (both - compute) for both, compute in pairs])
        say(f"(c) batch {batch}, {context} tokens over two instances: {extra['median']:.2f} ms beside the compute")
        results[f"{batch}x{context}"] = {"extra_ms": extra, **{side: summary(s) for side, s in seconds.items()}}
    return results


def main() -> None:
    options = arguments(
        __doc__ or "", [("model", "smollm2-135m", "model"), ("rounds", 5, "rounds"), ("name", "overhead", "result")]
    )
    common: dict[str, Any] = {"dtype": "bfloat16", "threads_per_device": 1, "kv_tokens": 16_384, "prefix_cache": False}
    results: dict[str, Any] = {"model": options.model}
    with LLM(options.model, instances=2, **common) as llm:
        results["streaming"] = measure_streaming(options.model, llm, options.rounds)
    spread = FixedPolicy((0, 1), keepers=(0, 1), masters=lambda _: (0,), max_prefill_tokens=8192)
    alone = FixedPolicy((0,), max_prefill_tokens=8192)
    with (
        LLM(options.model, instances=1, policy=alone, **common) as one,
        LLM(options.model, instances=2, policy=spread, **common) as two,
    ):
        results["inside_the_model"] = measure_inside(one, options.rounds)
        results["two_instance_step"] = measure_exchange(one, two, options.rounds)
    save(options.name, results)


if __name__ == "__main__":
    main()
