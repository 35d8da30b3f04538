"""Longspan beside vLLM's CPU build, llama.cpp and transformers: one model, all cores, in turns, prefill and decode.

Of ours take part: two elastic instances of one thread each and one instance of two threads, each in bf16 and with the
GGUF's own 4-bit weights (two instances with those are the default of `make serve` on two cores). Build the peers first;
each that is named takes part.

    benchmarks/peers/setup_vllm_cpu.sh VLLM
    benchmarks/peers/setup_llama_cpp.sh LLAMA
    python -m benchmarks.peers.export_safetensors MODEL_DIR
    python benchmarks/peers/export_bf16_gguf.py MODEL.gguf
    python -m benchmarks.peers.against_peers --vllm VLLM/bin/python --llama LLAMA/bin/python --model-dir MODEL_DIR \\
        --gguf MODEL.gguf [--rounds 3]
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, fixed_output, interleaved, paired_ratio, random_prompt, save, say, summary
from longspan import LLM
from longspan.models.catalog import resolve_model

PREFILL_TOKENS = (1024, 4096, 8000)
DECODE_BATCHES = (1, 32)
CONTEXT, STEPS = 128, 48
PEERS = Path(__file__).parent


class Peer:
    """An engine in a process of its own, asked over JSON lines (peers/protocol.py)."""

    def __init__(self, python: str, script: str, model: str) -> None:
        self.process = subprocess.Popen(
            [python, str(PEERS / script), "--model", model],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.facts = self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(json.dumps(request), file=self.process.stdin, flush=True)
        reply = self._read()
        if "error" in reply:
            raise RuntimeError(reply["error"])
        return reply

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        reply: dict[str, Any] = json.loads(self.process.stdout.readline())
        return reply

    def prefill(self, tokens: int, seed: int) -> float:
        return float(self.ask(op="prefill", tokens=tokens, seed=seed)["seconds"])

    def decode(self, batch: int, seed: int) -> float:
        reply = self.ask(op="decode", batch=batch, context=CONTEXT, steps=STEPS, seed=seed)
        return float(reply["seconds"] - reply["prefill_seconds"]) / STEPS


class Ours:
    """Measured as the peers measure themselves: decode with the further tokens, less the same without them."""

    def __init__(self, llm: LLM) -> None:
        self.llm = llm

    def prefill(self, tokens: int, seed: int) -> float:
        return self._wall([random_prompt(tokens, seed)], 1)

    def decode(self, batch: int, seed: int) -> float:
        prompts = [random_prompt(CONTEXT, seed * 1000 + i) for i in range(batch)]
        first = self._wall(prompts, 1)
        return (self._wall(prompts, STEPS + 1) - first) / STEPS

    def _wall(self, prompts: list[list[int]], tokens: int) -> float:
        begin = time.perf_counter()
        self.llm.generate(prompts, fixed_output(tokens))
        return time.perf_counter() - begin


@contextmanager
def peers(options: Any) -> Iterator[dict[str, Peer]]:
    chosen = {}
    if options.vllm:
        chosen["vllm"] = (options.vllm, "vllm_cpu.py", options.model_dir)
    if options.llama:
        chosen["llama.cpp bf16"] = (options.llama, "llama_cpp_cpu.py", options.gguf)
        chosen["llama.cpp Q4_1"] = (options.llama, "llama_cpp_cpu.py", str(resolve_model("smollm2-135m").path))
    if options.model_dir:
        chosen["transformers"] = (sys.executable, "transformers_cpu.py", options.model_dir)
    running = {name: Peer(*how) for name, how in chosen.items()}
    try:
        yield running
    finally:
        for peer in running.values():
            peer.close()


def compare(label: str, sides: dict[str, Callable[[int], float]], rounds: int) -> dict[str, Any]:
    """Seconds of each side, and how many times as fast as each of them the others are."""
    seconds = interleaved(sides, rounds)
    ratios = {
        over: {side: paired_ratio(seconds[over], seconds[side]) for side in seconds if side != over} for over in seconds
    }
    for over in [side for side in sides if side not in OURS]:
        said = ", ".join(f"{side} {ratios[over][side]:.2f}" for side in OURS)
        say(f"{label}: times as fast as {over}: {said}")
    return {"times_as_fast_as": ratios, "seconds": {side: summary(s) for side, s in seconds.items()}}


OURS: dict[str, dict[str, Any]] = {
    "two instances": {"instances": 2, "threads_per_device": 1, "quantization": "none"},
    "two instances, Q4_1": {"instances": 2, "threads_per_device": 1, "quantization": "gguf"},
    "one instance": {"instances": 1, "threads_per_device": 2, "quantization": "none"},
    "one instance, Q4_1": {"instances": 1, "threads_per_device": 2, "quantization": "gguf"},
}


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("vllm", "", "Python of vLLM"), ("llama", "", "Python of llama.cpp"), ("model-dir", "", "bf16 safetensors"),
         ("gguf", "", "bf16 GGUF"), ("rounds", 3, "rounds")],
    )  # fmt: skip
    with ExitStack() as stack, peers(options) as others:
        sides: dict[str, Peer | Ours] = {**others}
        for name, settings in OURS.items():
            llm = stack.enter_context(
                LLM(dtype="bfloat16", kv_tokens=16_384, prefix_cache=False, **settings)
            )
            sides[name] = Ours(llm)
        results: dict[str, Any] = {"peers": {name: p.facts for name, p in others.items()}, "prefill": {}, "decode": {}}
        say(str(results["peers"]))
        for batch in DECODE_BATCHES:
            timed = {name: (lambda seed, s=side, b=batch: s.decode(b, seed)) for name, side in sides.items()}
            results["decode"][str(batch)] = compare(f"decode at batch {batch}", timed, options.rounds)
        for tokens in PREFILL_TOKENS:
            timed = {name: (lambda seed, s=side, n=tokens: s.prefill(n, seed)) for name, side in sides.items()}
            results["prefill"][str(tokens)] = compare(f"prefill of {tokens} tokens", timed, options.rounds)
    save("against_peers", results)


if __name__ == "__main__":
    main()
