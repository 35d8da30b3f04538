"""A server that loses worker after worker while streams are open, and what its clients see of that.

    python -m benchmarks.robustness.losses [--blows 100] [--streams 50] [--instances 3] [--policy longspan]
    python -m benchmarks.robustness.losses --blows 0 --calm-s 600 --load 4     # is a loaded machine taken for a loss?
    python -m benchmarks.robustness.losses --blows 0 --calm-s 120 --rolling    # what a rolling restart costs

Each stream asks for one answer after the other, in fp32 and greedily, for prompts of which each has been answered once
without losses: the answers must be the same. Meanwhile a random worker is killed, or stopped, whereupon the server has
to find that out; once all streams have moved, and the instance is back, comes the next blow. With --rolling all
instances are started again one by one at the end, by `longspan fleet restart`, and times to the first token are told of
the calm seconds before it and of those that it takes.

Bars: no request is refused or cut short; no answer differs; nothing is lost but what was hit; no more tokens are
computed again than the lost instances held and void batches were to compute; /health is 200 all the while; the event
log replays; no process is left. A bar that is missed is an exit code of 1.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2

from benchmarks.common import arguments, save, say
from benchmarks.http_server import HttpServer, serving
from benchmarks.robustness.watched_server import replays
from longspan.core.actions import CancelBatch, RunBatch
from longspan.metrics.event_log import read_event_log
from tests.models.tiny import write_random_model
from tests.models.tokenizers_zoo import byte_level

SHORT, LONG = (8, 200), (400, 1500)
LEAST_TOKENS, MOST_TOKENS = 20, 150
MOVE_WITHIN_S, BACK_WITHIN_S, LEFT_WITHIN_S, POLL_S = 120.0, 300.0, 10.0, 0.05
TIMEOUT_S = 5.0
TINY = "tiny"
TOKENS = 250  # prompts are of the first ones, which every model has
SEED = 7


@dataclass(frozen=True)
class Ask:
    """One prompt, and how many tokens are wanted."""

    prompt: list[int]
    max_tokens: int


@dataclass
class Told:
    """What all clients saw. moved: by stream, when the last token came, or an answer ended. ttfts: when a request was
    sent, and how long its first token took."""

    answers: int = 0
    lost: list[str] = field(default_factory=list)
    differ: list[int] = field(default_factory=list)
    moved: dict[int, float] = field(default_factory=dict)
    ttfts: list[tuple[float, float]] = field(default_factory=list)


class Clients:
    def __init__(self, url: str, model: str, asks: Sequence[Ask]) -> None:
        self.http = httpx2.AsyncClient(base_url=url, timeout=600.0, limits=httpx2.Limits(max_connections=None))
        self.model = model
        self.asks = asks
        self.expected: dict[int, str] = {}
        self.told = Told()
        self.over = False

    async def answer(self, number: int, stream: int | None = None) -> str:
        """Raises ValueError if it is an error, or has no end."""
        ask, text, reason, sent, has_begun = self.asks[number], "", None, time.monotonic(), False
        body = {"model": self.model, "prompt": ask.prompt, "max_tokens": ask.max_tokens, "temperature": 0,
                "ignore_eos": True, "stream": True}  # fmt: skip
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                raise ValueError(f"status {response.status_code}: {(await response.aread())[:300]!r}")
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk: dict[str, Any] = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise ValueError(f"error: {chunk['error']['message']}")
                for choice in chunk["choices"]:
                    text += choice["text"]
                    reason = choice["finish_reason"] or reason
                if stream is not None:
                    self.told.moved[stream] = now = time.monotonic()
                    if not has_begun:
                        self.told.ttfts.append((sent, now - sent))
                    has_begun = True
        if reason != "length":
            raise ValueError(f"the answer ended with {reason!r}")
        return text

    async def learn(self) -> None:
        """Ask for everything once, while nothing is lost."""
        texts = await asyncio.gather(*(self.answer(number) for number in range(len(self.asks))))
        self.expected = dict(enumerate(texts))

    async def stream_on(self, stream: int) -> None:
        draw = random.Random(stream)
        while not self.over:
            number = draw.randrange(len(self.asks))
            try:
                if await self.answer(number, stream) != self.expected[number]:
                    self.told.differ.append(number)
            except (ValueError, httpx2.HTTPError) as error:
                self.told.lost.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.5)
            self.told.answers += 1

    async def fleet(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.http.get("/fleet")).json()["instances"]
        return found

    async def health(self) -> int:
        return (await self.http.get("/health")).status_code


async def roll(clients: Clients, calm_s: float) -> dict[str, Any]:
    """Have all instances started again one by one; returns times to the first token before and meanwhile."""
    begin = time.monotonic()
    await asyncio.sleep(calm_s)
    command = [sys.executable, "-m", "longspan", "fleet", "restart", "--url", str(clients.http.base_url)]
    calm_until = time.monotonic()
    exit_code = await (await asyncio.create_subprocess_exec(*command)).wait()
    end = time.monotonic()
    before = [seconds for sent, seconds in clients.told.ttfts if begin <= sent < calm_until]
    during = [seconds for sent, seconds in clients.told.ttfts if calm_until <= sent < end]
    return {
        "exit_code": exit_code, "seconds": end - calm_until, "ttft_before_s": spread(before),
        "ttft_during_s": spread(during),
    }  # fmt: skip


def spread(seconds: Sequence[float]) -> dict[str, float]:
    twentieths = quantiles(seconds, n=20, method="inclusive")
    return {"requests": len(seconds), "p50": twentieths[9], "p95": twentieths[18], "max": max(seconds)}


@dataclass
class Blow:
    """One instance that was hit. moved_s: until all streams had moved that were open then; back_s: until it served."""

    kind: str
    instance: int
    moved_s: float
    back_s: float


async def strike(clients: Clients, kind: str, draw: random.Random) -> Blow:
    """Hit a worker, and wait until all streams have moved and its instance is back."""
    fleet = await clients.fleet()
    hit = draw.choice([one for one in fleet if one["state"] == "serving"])
    at = time.monotonic()
    os.kill(draw.choice(hit["pids"]), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    open_then, moved_s = set(clients.told.moved), None
    while True:
        now = time.monotonic()
        back = next(one for one in await clients.fleet() if one["instance"] == hit["instance"])
        is_lost = back["restarts"] > hit["restarts"] or back["state"] != "serving"
        if moved_s is None and is_lost and all(clients.told.moved[stream] > at for stream in open_then):
            moved_s = now - at
        if moved_s is not None and back["state"] == "serving" and back["restarts"] > hit["restarts"]:
            return Blow(kind, hit["instance"], moved_s, now - at)
        if now - at > (MOVE_WITHIN_S if moved_s is None else BACK_WITHIN_S):
            still = [stream for stream in open_then if clients.told.moved[stream] <= at]
            health = (await clients.http.get("/health")).text
            raise TimeoutError(f"after {kind} of instance {hit['instance']}, streams {still} still: {back}, {health}")
        await asyncio.sleep(POLL_S)


async def probe(clients: Clients, statuses: list[int]) -> None:
    while not clients.over:
        with suppress(httpx2.HTTPError):
            statuses.append(await clients.health())
        await asyncio.sleep(0.5)


async def run(server: HttpServer, clients: Clients, options: Any) -> dict[str, Any]:
    await clients.learn()
    say(f"{len(clients.expected)} answers without losses")
    before = server.gauges()
    statuses: list[int] = []
    tasks = [asyncio.create_task(clients.stream_on(stream)) for stream in range(options.streams)]
    tasks.append(asyncio.create_task(probe(clients, statuses)))
    while len(clients.told.moved) < options.streams:
        await asyncio.sleep(POLL_S)
    draw, blows = random.Random(SEED), []
    for number in range(options.blows):
        kind = "kill" if options.kills_only else draw.choice(["kill", "kill", "kill", "stop"])
        blows.append(await strike(clients, kind, draw))
        say(f"{number + 1}: {blows[-1]}")
    if options.rolling:
        rolled = await roll(clients, options.calm_s)
    else:
        rolled = None
        await asyncio.sleep(options.calm_s)
    clients.over = True
    await asyncio.gather(*tasks)
    after = server.gauges()
    moved = {kind: [blow.moved_s for blow in blows if blow.kind == kind] for kind in ("kill", "stop")}
    return {
        "blows": {kind: len(seconds) for kind, seconds in moved.items()},
        "answers": clients.told.answers,
        "requests_lost": clients.told.lost,
        "answers_that_differ": len(clients.told.differ),
        "instances_lost": after["longspan:instances_lost_total"] - before["longspan:instances_lost_total"],
        "recomputed_tokens": after["longspan:recomputed_tokens_total"] - before["longspan:recomputed_tokens_total"],
        "preemptions": after["vllm:num_preemptions_total"] - before["vllm:num_preemptions_total"],
        "health_other_than_200": sum(status != 200 for status in statuses),
        "seconds_till_all_streams_move": {
            kind: {"median": median(seconds), "max": max(seconds)} for kind, seconds in moved.items() if seconds
        },
        "seconds_till_back": {
            "median": median(blow.back_s for blow in blows), "max": max(blow.back_s for blow in blows)
        } if blows else {},
        "held_by_the_lost": after["longspan:lost_tokens_total"] - before["longspan:lost_tokens_total"],
        "rolling_restart": rolled,
    }  # fmt: skip


@contextmanager
def loaded(processes: int) -> Iterator[None]:
    """So many processes compute meanwhile, for nothing."""
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def void_tokens(log: Path) -> int:
    """Tokens that batches were to compute which became void."""
    running: dict[int, int] = {}
    total = 0
    for record in read_event_log(log):
        for action in record.actions:
            if isinstance(action, RunBatch):
                running[action.batch_id] = sum(segment.length for segment in action.segments)
            elif isinstance(action, CancelBatch):
                total += sum(running[batch_id] for batch_id in action.batch_ids)
    return total


def left_over(server: HttpServer) -> list[int]:
    """Processes of the server that have not ended soon after it has."""
    deadline = time.monotonic() + LEFT_WITHIN_S
    while (left := server.process_ids()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def tiny_model(folder: Path) -> str:
    """One of random weights, for many blows: it loads in a moment. Its tokens are all that prompts hold."""
    tokenizer = byte_level()
    return str(write_random_model(folder, tokenizer, tokenizer.get_vocab_size(), max_position_embeddings=4096))


def main() -> int:
    options = arguments(
        __doc__.split("\n", 1)[0],
        [("blows", 100, "workers that are hit"), ("streams", 50, "streams open all the while"),
         ("instances", 3, "instances of the server"), ("policy", "longspan", "its policy"),
         ("model", "smollm2-135m", f"its model; {TINY}: a small one"), ("prompts", 40, "different prompts"),
         ("kv-tokens", 40_000, "slots of each instance"), ("kills-only", False, "stop none of them"),
         ("calm-s", 0.0, "seconds without blows at the end"), ("load", 0, "other processes that compute meanwhile"),
         ("rolling", False, "start all instances again one by one, behind those"),
         ("name", "killed_workers", "of the file with the results; empty: none")],
    )  # fmt: skip
    draw = random.Random(SEED)
    asks = [
        Ask([draw.randrange(TOKENS) for _ in range(draw.randint(*(LONG if draw.random() < 0.2 else SHORT)))],
            draw.randint(LEAST_TOKENS, MOST_TOKENS))
        for number in range(options.prompts)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "events.jsonl")
        model = options.model if options.model != TINY else tiny_model(Path(folder))
        command = [
            sys.executable, "-m", "longspan", "serve", model, "--instances", str(options.instances),
            "--dtype", "float32", "--policy", options.policy, "--kv-tokens", str(options.kv_tokens),
            "--worker-timeout-s", str(TIMEOUT_S), "--max-restarts", "1000", "--restart-window-s", "1",
            "--event-log", str(log), "--overload", "off", "--served-model-name", "served",
        ]  # fmt: skip
        server_log = Path(folder, "server.log")
        with serving(command, server_log) as server:
            clients = Clients(server.url, "served", asks)
            try:
                with loaded(options.load):
                    found = asyncio.run(run(server, clients, options))
            except TimeoutError:
                say(server_log.read_text()[-5000:])
                raise
            server.process.send_signal(signal.SIGTERM)
            found["exit_code"] = server.process.wait(120)
            found["left_over"] = left_over(server)
        found["recomputed_at_most"] = found["held_by_the_lost"] + void_tokens(log)
        found["replays"] = replays(log)
    failed = [
        name for name, bad in (
            ("requests lost", found["requests_lost"]), ("answers that differ", found["answers_that_differ"]),
            ("losses of what was not hit", found["instances_lost"] != options.blows),
            ("health", found["health_other_than_200"]), ("replay", not found["replays"]),
            ("left over", found["left_over"]), ("exit code", found["exit_code"]),
            ("rolling restart", found["rolling_restart"] and found["rolling_restart"]["exit_code"]),
            ("recomputed", not options.rolling and found["recomputed_tokens"] > found["recomputed_at_most"]),
        ) if bad
    ]  # fmt: skip
    say(json.dumps(found, indent=1))
    if options.name:
        save(options.name, {"options": vars(options), **found, "bars_missed": failed})
    if failed:
        say(f"missed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
