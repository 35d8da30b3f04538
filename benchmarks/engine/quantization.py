"""What keeping weights in few bits gains on a CPU: decode steps and prefills, side by side with plain bf16.

    python -m benchmarks.engine.quantization [--model smollm2-135m] [--rounds 5] [--threads 1,2]
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from benchmarks.common import arguments, interleaved, paired_ratio, save, say, summary, time_decode, time_prefill
from longspan import LLM

SIDES = ("none", "gguf", "int8")
BATCHES = (1, 8, 32)
CONTEXT = 64
STEPS = 32
PREFILL = 1024


def measure(model: str, threads: int, rounds: int) -> dict[str, Any]:
    """Each figure of each side, and how many times as fast as `none` it is in the same rounds."""
    results = {}
    with ExitStack() as stack:
        engines = {
            side: stack.enter_context(
                LLM(
                    model, instances=1, threads_per_device=threads, dtype="bfloat16", quantization=side,
                    kv_tokens=BATCHES[-1] * (CONTEXT + STEPS + 16), max_requests_per_master=BATCHES[-1],
                    prefix_cache=False, policy="elastic_fcfs",  # under which all begin together
                )
            )
            for side in SIDES
        }  # fmt: skip
        for batch in BATCHES:
            seconds = interleaved(
                {
                    side: lambda seed, llm=llm, b=batch: time_decode(llm, b, CONTEXT, STEPS, seed)
                    for side, llm in engines.items()
                },
                rounds,
            )
            results[f"decode step, batch {batch}"] = compared(f"decode step at batch {batch}", threads, seconds)
        seconds = interleaved(
            {side: lambda seed, llm=llm: time_prefill(llm, PREFILL, seed) for side, llm in engines.items()}, rounds
        )
        results[f"prefill of {PREFILL} tokens"] = compared(f"prefill of {PREFILL} tokens", threads, seconds)
    return results


def compared(what: str, threads: int, seconds: dict[str, list[float]]) -> dict[str, Any]:
    figures = {
        side: summary(times) | {"times_as_fast_as_none": paired_ratio(seconds["none"], times)}
        for side, times in seconds.items()
    }
    shown = ", ".join(
        f"{side} {1000 * f['median']:.2f} ms ({f['times_as_fast_as_none']:.2f}x)" for side, f in figures.items()
    )
    say(f"{threads} thread(s), {what}: {shown}")
    return figures


def main() -> None:
    args = arguments(__doc__ or "", [
        ("model", "smollm2-135m", "a .gguf model"),
        ("rounds", 5, "of each figure"),
        ("threads", "1,2", "of the one instance, several with commas"),
    ])  # fmt: skip
    counts = [int(count) for count in args.threads.split(",")]
    results = {f"{threads} thread(s)": measure(args.model, threads, args.rounds) for threads in counts}
    save("quantization", {"model": args.model, "context": CONTEXT, "steps": STEPS, **results})


if __name__ == "__main__":
    main()
