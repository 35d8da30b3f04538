"""A million tokens in one prompt, on the server: over HTTP, on two instances, in bf16, with short chats beside it.

The model has one layer and random weights (million_model.py). Half-way a prompt of higher priority pauses the long one.
What became of the long prompt is read from the server's event log. The roofline is the processor's multiply-adds out of
registers on both cores, measured before and after.

    python -m benchmarks.engine.million_tokens [--tokens 1000000]

Exits with 1 if anything of the long prompt was computed twice, or it was never paused; --tokens below some ten thousand
may be too few to be paused.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import arguments, save, say
from benchmarks.engine.million_log import LongLife, read_life
from benchmarks.engine.million_model import LongModel, random_ids
from benchmarks.http_server import HttpServer, end_cleanly_on_sigterm, serving
from benchmarks.kernels.machine_peak import MachinePeak
from longspan.metrics.event_log import read_event_log
from longspan.native.isa import available_isas

INSTANCES = 2
OUTPUT_TOKENS = 16
SHORT_CHARS, SHORT_OUTPUTS = (32, 256), 16
PRIORITY_TOKENS = 65_536
PRIORITY_AT = 0.5
"""Of the prompt's KV that is there when the prompt of higher priority is sent."""
PEAK_ROUNDS, PEAK_REPEATS = 30_000_000, 5
PATIENCE_S = 7200.0


@dataclass
class Answer:
    """One stream, seen from its client, seconds after it was sent. at: of every piece; sent_at: on the clock."""

    sent_at: float
    at: list[float] = field(default_factory=list)
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        return self.at[0]


def stream(url: str, path: str, body: dict[str, Any]) -> Answer:
    """Ask, and read to the end."""
    content = json.dumps(body | {"stream": True, "temperature": 0, "ignore_eos": True}).encode()
    request = urllib.request.Request(f"{url}{path}", content, {"Content-Type": "application/json"})
    answer = Answer(time.monotonic())
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as lines:
            for line in lines:
                if line.startswith(b"data: {"):
                    if b'"error"' in line:
                        answer.error = line.decode()
                    answer.at.append(time.monotonic() - answer.sent_at)
    except OSError as error:  # refused, or broken off
        said = error.read().decode() if isinstance(error, urllib.error.HTTPError) else ""
        answer.error = f"{error} {said}"
    return answer


class Shorts:
    """Chats of some words, one every so many seconds until it is told to stop, and no more than `most`."""

    def __init__(self, url: str, every_s: float, most: int) -> None:
        self.answers: list[Answer] = []
        self._url, self._every_s, self._most = url, every_s, most
        self._stop = threading.Event()
        self._asking: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Shorts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        for thread in self._asking:
            thread.join()

    def _run(self) -> None:
        draw = random.Random(3)
        for _ in range(self._most):
            words = "".join(draw.choices("abcdefghij klmnopqrst uvwxyz", k=draw.randint(*SHORT_CHARS)))
            self._asking.append(threading.Thread(target=self._ask, args=(words,)))
            self._asking[-1].start()
            if self._stop.wait(self._every_s):
                return

    def _ask(self, words: str) -> None:
        body = {"messages": [{"role": "user", "content": words}], "max_tokens": SHORT_OUTPUTS}
        self.answers.append(stream(self._url, "/v1/chat/completions", body))


def ask_with_priority(
    server: HttpServer, tokens: int, stored: int, ended: threading.Event, answers: list[Answer]
) -> None:
    """Once so many tokens of KV are there, send a prompt that goes before all others."""
    while not ended.is_set():
        if server.gauges()["longspan:instance_kv_tokens_used"] >= stored:
            body = {"prompt": random_ids(tokens, 2), "max_tokens": 1, "priority": 1}
            answers.append(stream(server.url, "/v1/completions", body))
            return
        ended.wait(0.5)


def peak_gflops() -> float:
    """Of both cores together."""
    peak, threads = MachinePeak(available_isas()[0]), torch.get_num_threads()
    torch.set_num_threads(INSTANCES)
    try:
        seconds = []
        for _ in range(PEAK_REPEATS):
            begin = time.perf_counter()
            peak.multiply(PEAK_ROUNDS, INSTANCES)
            seconds.append(time.perf_counter() - begin)
        return float(peak.flops_per_round * PEAK_ROUNDS * INSTANCES / np.median(seconds) / 1e9)
    finally:
        torch.set_num_threads(threads)


@dataclass(frozen=True)
class Run:
    """What clients and the server's log tell of one run.

    memory_gib: the most that each process had resident, the server's first.
    """

    long: Answer
    shorts: list[Answer]
    priority: list[Answer]
    life: LongLife
    memory_gib: list[float]
    preemptions: float
    body_mb: float


def run(server: HttpServer, tokens: int, short_every_s: float, most_shorts: int) -> tuple[Any, ...]:
    """Send the long prompt and all that comes beside it. Returns the answers, long, short, and of higher priority."""
    stream(server.url, "/v1/completions", {"prompt": random_ids(2048, 0), "max_tokens": 2})  # nothing is cold
    ended, priority = threading.Event(), list[Answer]()
    beside = threading.Thread(
        target=ask_with_priority,
        args=(server, min(PRIORITY_TOKENS, tokens // 4), int(PRIORITY_AT * tokens), ended, priority),
    )
    beside.start()
    body = {"prompt": random_ids(tokens, 1), "max_tokens": OUTPUT_TOKENS}
    with Shorts(server.url, short_every_s, most_shorts) as shorts:
        long = stream(server.url, "/v1/completions", body)
        ended.set()
    beside.join()
    return long, shorts.answers, priority


def measure(model: LongModel, options: Sequence[str], tokens: int, short_every_s: float, most_shorts: int) -> Run:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        events = folder / "events.jsonl"
        command = [sys.executable, "-m", "longspan", "serve", str(model.write(folder / "model")), *options,
                   "--event-log", str(events)]  # fmt: skip
        with serving(command, folder / "server.log") as server:
            say(f"a prompt of {tokens} tokens on {INSTANCES} instances ...")
            long, shorts, priority = run(server, tokens, short_every_s, most_shorts)
            memory = [mib / 1024 for mib in server.status_mib("VmHWM").values()]
            preemptions = server.gauges()["vllm:num_preemptions_total"]
        if long.error is not None or len(long.at) != OUTPUT_TOKENS:
            raise SystemExit(f"the long prompt was not answered: {long}\n{(folder / 'server.log').read_text()}")
        body_mb = len(json.dumps(random_ids(tokens, 1))) / 1e6
        return Run(long, shorts, priority, read_life(read_event_log(events), tokens), memory, preemptions, body_mb)


def percentiles(values: Sequence[float]) -> dict[str, float]:
    return {f"p{share}": float(np.percentile(values, share)) for share in (50, 90, 99)} if values else {}


def results(model: LongModel, tokens: int, options: Sequence[str], done: Run, peaks: Sequence[float]) -> dict[str, Any]:
    flops = model.flops(tokens)
    ttft_s, total = done.long.ttft_s, sum(flops.values())
    at_work_s = ttft_s - done.life.paused_s
    gflops, peak = total / ttft_s / 1e9, sum(peaks) / len(peaks)
    served = [short for short in done.shorts if short.error is None]
    beside = [short.ttft_s for short in served if short.sent_at + short.ttft_s < done.long.sent_at + ttft_s]
    return {
        "tokens": tokens, "body_mb": done.body_mb, "instances": INSTANCES, "options": list(options),
        "model": model.facts(), "ttft_s": ttft_s, "tokens_per_s": tokens / ttft_s, "flops": flops,
        "gflops": gflops, "peak_gflops": list(peaks), "share_of_peak": gflops / peak,
        "share_of_peak_without_pauses": total / at_work_s / 1e9 / peak,
        "output_tokens": OUTPUT_TOKENS, "tpot_s": float(np.mean(np.diff(done.long.at))),
        "peak_memory_gib": done.memory_gib, "life": done.life.facts(), "preemptions_metric": done.preemptions,
        "shorts": {
            "sent": len(done.shorts), "refused_or_failed": len(done.shorts) - len(served),
            "first_token_beside_the_long_one": len(beside), "ttft_s": percentiles(beside),
            "tpot_s": percentiles([float(np.mean(np.diff(short.at))) for short in served]),
        },
        "priority": [{"tokens": min(PRIORITY_TOKENS, tokens // 4), "ttft_s": each.ttft_s} for each in done.priority
                     if each.error is None],
    }  # fmt: skip


def main() -> None:
    end_cleanly_on_sigterm()
    options = arguments(
        (__doc__ or "").partition("\n")[0],
        [("tokens", 1_000_000, "length of the prompt"), ("heads", 2, "query heads"),
         ("head-dim", 32, "their dimension"), ("short-every", 5.0, "seconds between short chats"),
         ("shorts", 100, "at most so many"),
         ("name", "million_tokens", "name of the result")],
    )  # fmt: skip
    model = LongModel(heads=options.heads, head_dim=options.head_dim)
    serve = ["--instances", str(INSTANCES)]
    before = peak_gflops()
    done = measure(model, serve, options.tokens, options.short_every, options.shorts)
    found = results(model, options.tokens, serve, done, (before, peak_gflops()))
    life = done.life
    say(f"{found['ttft_s']:.1f} s, {found['tokens_per_s']:.0f} tokens/s, {100 * found['share_of_peak']:.1f} % of the "
        f"peak ({100 * found['share_of_peak_without_pauses']:.1f} % while it ran); {life.chunks} chunks, "
        f"{life.computed} tokens computed, {len(life.pauses)} pauses, {life.paused_s:.1f} s; shorts "
        f"{found['shorts']['ttft_s']}; memory {sum(done.memory_gib):.2f} GiB")  # fmt: skip
    save(options.name, found)
    if life.computed != options.tokens or not life.in_order or life.times_dropped or not life.pauses:
        raise SystemExit(f"computed twice, or never paused: {life.facts()}")


if __name__ == "__main__":
    main()
