"""What elasticity gains and costs on this machine: each instance is one thread on a core of its own.

(a) prefill on two instances against one, (b) retention onto one of two against both, (c) two masters against one.

    python -m benchmarks.engine.elastic [--model smollm2-135m] [--dtype bfloat16] [--rounds 5]
"""

from __future__ import annotations

from typing import Any

from benchmarks.common import (
    arguments,
    interleaved,
    paired_ratio,
    save,
    say,
    summary,
    time_decode,
    time_prefill,
)
from longspan import LLM
from longspan.core.policies.fixed import FixedPolicy


def measure_dop(one: LLM, two: LLM, rounds: int) -> dict[str, Any]:
    results = {}
    for tokens in (1024, 2048, 4096, 8000):
        seconds = interleaved(
            {
                "dop1": lambda seed, n=tokens: time_prefill(one, n, seed),
                "dop2": lambda seed, n=tokens: time_prefill(two, n, seed),
            },
            rounds,
        )
        speedup = paired_ratio(seconds["dop1"], seconds["dop2"])
        say(f"(a) prefill of {tokens} tokens: DoP 2 is {speedup:.2f} times as fast as DoP 1")
        results[str(tokens)] = {"speedup": speedup, **{side: summary(s) for side, s in seconds.items()}}
    return results


def measure_retention(two: LLM, policy: FixedPolicy, rounds: int) -> dict[str, Any]:
    def prefill_onto(keepers: tuple[int, ...], tokens: int, seed: int) -> float:
        policy.keepers = keepers
        return time_prefill(two, tokens, seed)

    results = {}
    for tokens in (1024, 4096, 8000):
        seconds = interleaved(
            {
                "onto_one": lambda seed, n=tokens: prefill_onto((0,), n, seed),
                "onto_both": lambda seed, n=tokens: prefill_onto((0, 1), n, seed),
            },
            rounds,
        )
        ratio = paired_ratio(seconds["onto_one"], seconds["onto_both"])
        say(f"(b) prefill of {tokens} tokens, KV onto one of two: {ratio:.3f} of the time onto both")
        results[str(tokens)] = {"ratio": ratio, **{side: summary(s) for side, s in seconds.items()}}
    policy.keepers = (0, 1)
    return results


def measure_masters(two: LLM, policy: FixedPolicy, rounds: int) -> dict[str, Any]:
    def step_with(masters: tuple[int, ...], batch: int, seed: int) -> float:
        policy.masters = lambda _: masters
        return time_decode(two, batch, context=256, steps=24, seed=seed)

    results = {}
    for batch in (1, 8, 32):
        seconds = interleaved(
            {
                "one_master": lambda seed, b=batch: step_with((0,), b, seed),
                "two_masters": lambda seed, b=batch: step_with((0, 1), b, seed),
            },
            rounds,
        )
        speedup = paired_ratio(seconds["one_master"], seconds["two_masters"])
        say(f"(c) decode at batch {batch}: two masters are {speedup:.2f} times as fast as one")
        results[str(batch)] = {"speedup": speedup, **{side: summary(s) for side, s in seconds.items()}}
    return results


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("model", "smollm2-135m", "model"), ("dtype", "bfloat16", "dtype"), ("rounds", 5, "rounds")],
    )
    common: dict[str, Any] = {
        "dtype": options.dtype, "threads_per_device": 1, "kv_tokens": 16_384, "prefix_cache": False
    }  # fmt: skip
    policy = FixedPolicy((0, 1), max_prefill_tokens=8192)
    with (
        LLM(options.model, instances=1, policy=FixedPolicy((0,), max_prefill_tokens=8192), **common) as one,
        LLM(options.model, instances=2, policy=policy, **common) as two,
    ):
        results = {
            "model": options.model,
            "dtype": options.dtype,
            "prefill_dop2_over_dop1": measure_dop(one, two, options.rounds),
            "retention_onto_one_over_both": measure_retention(two, policy, options.rounds),
            "two_masters_over_one": measure_masters(two, policy, options.rounds),
        }
    save("elastic", results)


if __name__ == "__main__":
    main()
