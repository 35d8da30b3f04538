"""Prompts that begin as earlier ones do: hit rate, time to first token, with the prefix cache and without; and peers.

    python -m benchmarks.engine.prefix_reuse --traces DIR
    python -m benchmarks.engine.prefix_reuse --traces DIR --vllm VLLM/bin/python --model-dir MODEL_DIR \
        --llama LLAMA/bin/python --gguf MODEL.gguf

The real model on two instances of one thread. Traces tell which prompts begin alike. Of a trace with more requests than
are asked for, whole conversations are taken, spread over all of it; they are scaled so that the longest request has
8,192 positions (--positions), by leaving out tokens evenly, so that prompts have the same part in common as before.
Each side gets the same prompts of random tokens in the order of the trace, the next when the one before is answered,
and begins with nothing of theirs; sides take turns, workload by workload. And a prompt of 7,500 tokens is asked twice.

The best hit rate is that of a cache without bounds, in blocks of 16 tokens. vLLM (without flags it keeps prefixes) and
llama.cpp (benchmarks/peers/llama_cpp_slots.py) have about as many KV slots as ours, and all cores; the peers' set-up is
told in benchmarks/peers/against_peers.py. Weights are bf16 everywhere.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any, Protocol
from zlib import crc32

import numpy as np

from benchmarks.common import arguments, paired_ratio, random_prompt, save, say
from benchmarks.engine.million_tokens import stream
from benchmarks.http_server import HttpServer, serving
from benchmarks.peers.against_peers import PEERS, Peer
from longspan.entrypoints.bench.prompts import TokenPrompts
from longspan.prefix_keys import KEY_BYTES, PrefixHasher
from longspan.workload.traces import TraceRequest, read_trace

POSITIONS, BLOCK = 8192, 16
TOKEN_IDS = (1000, 30000)
AGAIN_TOKENS = 7500
OURS = {"cache": [], "no cache": ["--no-prefix-cache"]}
VLLM, LLAMA = "vllm", "llama.cpp"


class Side(Protocol):
    """Answers prompts, one at a time."""

    def ask(self, prompt: list[int], tokens: int) -> float:
        """Return the seconds to the first of so many tokens."""

    def hits(self) -> tuple[float, float]:
        """Return the tokens of prompts that were found, and that were looked for, so far."""


class OverHttp(Side):
    def __init__(self, server: HttpServer) -> None:
        self.server = server
        with urllib.request.urlopen(f"{server.url}/v1/models", timeout=60) as answer:
            self.model = json.loads(answer.read())["data"][0]["id"]

    def ask(self, prompt: list[int], tokens: int) -> float:
        answer = stream(
            self.server.url, "/v1/completions", {"model": self.model, "prompt": prompt, "max_tokens": tokens}
        )
        if answer.error is not None or not answer.at:
            raise RuntimeError(f"not answered: {answer.error}")
        return answer.at[0]

    def hits(self) -> tuple[float, float]:
        gauges = self.server.gauges()
        return gauges.get("vllm:prefix_cache_hits_total", 0.0), gauges.get("vllm:prefix_cache_queries_total", 0.0)


class OfLlama(Side):
    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self._hits = self._queries = 0.0

    def ask(self, prompt: list[int], tokens: int) -> float:
        answer = self.peer.ask(op="ask", prompt=prompt, tokens=tokens)
        self._hits += answer["cached"]
        self._queries += len(prompt)
        return float(answer["ttft"])

    def hits(self) -> tuple[float, float]:
        return self._hits, self._queries


def asked(trace: Path, most: int, seed: int, positions: int = POSITIONS) -> list[tuple[list[int], int]]:
    """Return prompts, each with how many tokens are wanted."""
    rows = whole_conversations(read_trace(trace), most)
    under = max(row.num_tokens for row in rows)
    over = min(positions, under)
    prompts = TokenPrompts(*TOKEN_IDS, crc32(trace.name.encode()) + seed)  # numbers of blocks are a trace's own
    found = []
    for index, row in enumerate(rows):
        prompt = prompts.make(index, row)
        kept = [prompt[place * under // over] for place in range(max(1, len(prompt) * over // under))]
        found.append((kept, max(1, row.num_output_tokens * over // under)))
    return found


def whole_conversations(rows: Sequence[TraceRequest], most: int) -> list[TraceRequest]:
    """Return the requests of every n-th conversation, in their order, no more than `most`.

    Where one conversation alone has more, they are its first ones. A conversation is told by its first block that not
    all requests begin with.
    """
    chains = [row.prefix_block_ids for row in rows]
    common = next(place for place in range(len(chains[0]) + 1) if len({chain[: place + 1] for chain in chains}) > 1)
    names = [chain[common] if len(chain) > common else ("alone", index) for index, chain in enumerate(chains)]
    order = {name: place for place, name in enumerate(dict.fromkeys(names))}
    chosen = list(rows)
    for step in range(1, len(order) + 1):
        chosen = [row for row, name in zip(rows, names, strict=True) if order[name] % step == 0]
        if len(chosen) <= most:
            break
    return chosen[:most]


def best_hit_rate(prompts: Sequence[list[int]]) -> float:
    seen: set[bytes] = set()
    found = 0
    for prompt in prompts:
        keys = PrefixHasher(b"of a benchmark: anybody may know it", BLOCK).push(np.array(prompt, "<i4").tobytes())
        parts = [keys[place : place + KEY_BYTES] for place in range(0, len(keys), KEY_BYTES)]
        known = next((count for count, key in enumerate(parts) if key not in seen), len(parts))
        found += BLOCK * min(known, (len(prompt) - 1) // BLOCK)
        seen.update(parts)
    return found / sum(map(len, prompts))


@contextmanager
def all_sides(options: Any) -> Iterator[dict[str, Side]]:
    with ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sides: dict[str, Side] = {}
        common = [sys.executable, "-m", "longspan", "serve", options.model, "--instances", "2", "--threads-per-device",
                  "1", "--dtype", "bfloat16", "--quantization", "none", "--overload", "off", "--kv-tokens",
                  str(options.kv_tokens // 2)]  # fmt: skip
        for name, flags in OURS.items():
            say(f"starting {name}")
            sides[name] = OverHttp(stack.enter_context(serving([*common, *flags], logs / name)))
        if options.vllm:
            say(f"starting {VLLM}")
            command = [options.vllm, str(PEERS / "vllm_server.py"), options.model_dir, "--max-model-len",
                       str(POSITIONS)]  # fmt: skip
            room = {"VLLM_CPU_KVCACHE_SPACE": str(options.vllm_gib), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
            sides[VLLM] = OverHttp(stack.enter_context(serving(command, logs / VLLM, room)))
        if options.llama:
            say(f"starting {LLAMA}")
            peer = Peer(options.llama, "llama_cpp_slots.py", options.gguf)
            stack.callback(peer.close)
            sides[LLAMA] = OfLlama(peer)
        for side in sides.values():
            side.ask(random_prompt(2048, 1), 2)  # what is done on first use only
        yield sides


def workload(name: str, sides: dict[str, Side], options: Any, first: int) -> dict[str, Any]:
    trace = Path(options.traces, f"{name}.csv.gz")
    requests = asked(trace, options.requests, options.seed, options.positions)
    prompts = [prompt for prompt, _ in requests]
    found: dict[str, Any] = {
        "requests": len(prompts), "prompt_tokens": sum(map(len, prompts)), "longest": max(map(len, prompts)),
        "output_tokens": sum([tokens for _, tokens in requests]), "best_hit_rate": best_hit_rate(prompts), "sides": {},
    }  # fmt: skip
    names = list(sides)
    for side in names[first % len(names) :] + names[: first % len(names)]:
        found["sides"][side] = one_turn(sides[side], requests)
    without = found["sides"]["no cache"]["ttft_s"]
    for side, figures in found["sides"].items():
        ttft = figures["ttft_s"]
        figures["times_as_fast_as_no_cache"] = {part: without[part] / ttft[part] for part in ("p50", "p90", "mean")}
        say(f"{name}, {side}: hit rate {figures['hit_rate']:.4f} of {found['best_hit_rate']:.4f}, TTFT p50 "
            f"{ttft['p50']:.4f} s, p90 {ttft['p90']:.4f} s; {figures['times_as_fast_as_no_cache']['p50']:.2f} times as "
            f"fast at p50; {figures['seconds']:.0f} s")  # fmt: skip
    return found


def one_turn(side: Side, requests: Sequence[tuple[list[int], int]]) -> dict[str, Any]:
    before, begin = side.hits(), time.monotonic()
    ttft_s = [side.ask(prompt, tokens) for prompt, tokens in requests]
    hits, queries = (after - earlier for after, earlier in zip(side.hits(), before, strict=True))
    return {
        "ttft_s": {"mean": mean(ttft_s), "p50": median(ttft_s), "p90": float(np.percentile(ttft_s, 90))},
        "hit_rate": hits / queries if queries else 0.0, "seconds": time.monotonic() - begin,
    }  # fmt: skip


def again(sides: dict[str, Side], rounds: int, seed: int) -> dict[str, Any]:
    """The same prompt twice, and others in the next round."""
    found: dict[str, Any] = {}
    seconds: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in sides}
    draw = random.Random(seed)
    for _ in range(rounds):
        prompt = random_prompt(AGAIN_TOKENS, draw.randrange(1 << 30))
        for name, side in sides.items():
            for those in seconds[name]:
                those.append(side.ask(prompt, 2))
    for name, (first, second) in seconds.items():
        ratio = paired_ratio(first, second)
        found[name] = {"first_s": median(first), "again_s": median(second), "times_as_fast": ratio}
        say(f"{AGAIN_TOKENS} tokens, {name}: {median(first):.3f} s, again {median(second):.4f} s: {ratio:.1f} times "
            "as fast")  # fmt: skip
    return found


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("workloads", "agent_miniswe,leval,mooncake_conversation", "with commas"),
         ("requests", 200, "of each trace, at most"), ("positions", POSITIONS, "of the longest request"),
         ("model", "smollm2-135m", "ours"),
         ("kv-tokens", 131_072, "KV slots of both instances together"),
         ("rounds", 5, "of the prompt that comes twice; 0: none"),
         ("seed", 1, "of all tokens"), ("vllm", "", "Python of vLLM"), ("vllm-gib", 3, "its room for KV"),
         ("model-dir", "", "bf16 safetensors, for vLLM"), ("llama", "", "Python of llama.cpp"),
         ("gguf", "", "bf16 GGUF"), ("name", "prefix_reuse", "of the result; empty: none")],
    )  # fmt: skip
    begin = time.monotonic()
    with all_sides(options) as sides:
        results = {
            "again": again(sides, options.rounds, options.seed) if options.rounds else {},
            "workloads": {name: workload(name, sides, options, place)
                          for place, name in enumerate(options.workloads.split(","))},
        }  # fmt: skip
    say(f"{time.monotonic() - begin:.0f} s")
    if options.name:
        told = {"model": Path(options.model).name, "kv_tokens": options.kv_tokens, "block": BLOCK}
        save(options.name, told | results)


if __name__ == "__main__":
    main()
