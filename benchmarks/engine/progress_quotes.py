"""What a stream tells a client that waits with a long prompt, and when its first token really comes.

A server with a real model gets short prompts at random times, and a long one every now and then. Each long one is a
stream with `"progress": true`: its chunks tell the median and the 95 % time to the first token, from the arrival on.
They are compared with the true one at 10, 50 and 90 % of the wait, as they stood at that moment.

    python -m benchmarks.engine.progress_quotes
    python -m benchmarks.engine.progress_quotes --longs 4 --every 5 --long 1000:2000       # tried small

A machine that cannot bear the load has queues that grow; `--most` seconds after the first long prompt those that have
yet to get a token are given up, and are in no figure.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx2

from benchmarks.common import arguments, random_prompt, save, say
from benchmarks.http_server import end_cleanly_on_sigterm, serving

AT = (0.1, 0.5, 0.9)
"""Shares of the wait at which a client looks at what it was told last."""
SEED = 7


@dataclass(slots=True)
class Wait:
    """One long prompt. told: for each piece of news when it came, and the median and 95 % estimates in it. Seconds from
    when it was sent."""

    prompt: int
    told: list[tuple[float, float, float]] = field(default_factory=list)
    ttft_s: float | None = None

    def at(self, share: float) -> tuple[float, float] | None:
        """Return the estimates that were the newest when so much of the wait was over; None: there were none yet."""
        assert self.ttft_s is not None
        known = [(median, quote) for came, median, quote in self.told if came <= share * self.ttft_s]
        return known[-1] if known else None


async def wait_with(http: httpx2.AsyncClient, model: str, tokens: int, output: int, seed: int) -> Wait:
    """Send a long prompt, and hear what its stream tells."""
    wait, sent = Wait(tokens), time.monotonic()
    body = {"model": model, "prompt": random_prompt(tokens, seed), "max_tokens": output, "ignore_eos": True,
            "stream": True, "progress": True, "if_late": "serve"}  # fmt: skip
    async with http.stream("POST", "/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            now, chunk = time.monotonic() - sent, json.loads(line.removeprefix("data: "))
            if chunk["choices"] and wait.ttft_s is None:
                wait.ttft_s = now
            for news in chunk.get("longspan_progress", ()):
                if news["ttft_p50_s"] is not None:
                    wait.told.append((now, news["ttft_p50_s"], news["ttft_p95_s"]))
    return wait


async def chat_beside(http: httpx2.AsyncClient, model: str, rate: float, ends: asyncio.Event) -> list[float]:
    """Send short prompts at random times until the long ones have ended; return their times to the first token."""
    draw, running = random.Random(SEED), set[asyncio.Task[float]]()
    found: list[float] = []

    async def one(tokens: int, output: int, seed: int) -> float:
        sent, first = time.monotonic(), 0.0
        body = {"model": model, "prompt": random_prompt(tokens, seed), "max_tokens": output, "ignore_eos": True,
                "stream": True, "if_late": "serve"}  # fmt: skip
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and not first:
                    first = time.monotonic() - sent
        return first

    number = 0
    while not ends.is_set():
        number += 1
        running.add(asyncio.create_task(one(draw.randint(128, 384), 24, 10_000 + number)))
        await asyncio.sleep(draw.expovariate(rate))
        ended = {task for task in running if task.done()}
        running -= ended
        found += [task.result() for task in ended]
    return found + await asyncio.gather(*running)


async def load(
    url: str, model: str, longs: int, every_s: float, lengths: tuple[int, int], rate: float, most_s: float
) -> tuple[list[Wait], list[float]]:
    """Long prompts at random times, `every_s` apart on average; shorts beside them. Returns those that got a token."""
    draw = random.Random(SEED + 1)
    async with httpx2.AsyncClient(base_url=url, timeout=None, trust_env=False) as http:
        ends = asyncio.Event()
        shorts = asyncio.create_task(chat_beside(http, model, rate, ends))
        waits, until = [], time.monotonic() + most_s
        for number in range(longs):
            await asyncio.sleep(draw.expovariate(1 / every_s))
            if time.monotonic() > until:
                break
            waits.append(asyncio.create_task(wait_with(http, model, draw.randint(*lengths), 16, number)))
        done, late = await asyncio.wait(waits, timeout=max(0.0, until - time.monotonic()))
        for task in late:
            task.cancel()
        await asyncio.wait(waits)
        ends.set()
        return [task.result() for task in waits if task in done], await shorts


def judged(waits: Sequence[Wait], share: float) -> dict[str, Any]:
    """How right the news were when so much of the wait was over.

    ratio: the true time to the first token over the median estimate. left: the estimate of what is left of the wait
    over what was left. within_median, within_quote: shares of first tokens that came by then.
    """
    told = [(wait.ttft_s, *found) for wait in waits if wait.ttft_s is not None and (found := wait.at(share))]
    if not told:
        return {"told": 0, "of": len(waits)}
    ratios = sorted(ttft / median for ttft, median, _ in told)
    left = sorted((median - share * ttft) / ((1 - share) * ttft) for ttft, median, _ in told)
    return {
        "told": len(told), "of": len(waits),
        "ratio": {"p10": _part(ratios, 0.1), "median": statistics.median(ratios), "p90": _part(ratios, 0.9)},
        "left": {"p10": _part(left, 0.1), "median": statistics.median(left), "p90": _part(left, 0.9)},
        "within_median": statistics.mean(ttft <= median for ttft, median, _ in told),
        "within_quote": statistics.mean(ttft <= quote for ttft, _, quote in told),
    }  # fmt: skip


def _part(ordered: Sequence[float], share: float) -> float:
    """A quantile, of values in order."""
    return ordered[round(share * (len(ordered) - 1))]


def main() -> None:
    options = arguments(
        __doc__ or "",
        [
            ("model", "smollm2-135m", "model"),
            ("longs", 50, "how many long prompts"),
            ("every", 12.0, "seconds from one of them to the next, on average"),
            ("long", "2000:6000", "their lengths in tokens"),
            ("rate", 0.5, "short prompts a second"),
            ("most", 900.0, "seconds that it may take"),
        ],
    )
    end_cleanly_on_sigterm()
    low, high = map(int, options.long.split(":"))
    command = [sys.executable, "-m", "longspan", "serve", options.model, "--overload", "off"]
    with TemporaryDirectory() as folder, serving(command, Path(folder) / "log") as server:
        name = httpx2.get(f"{server.url}/v1/models", trust_env=False).json()["data"][0]["id"]
        waits, shorts = asyncio.run(
            load(server.url, name, options.longs, options.every, (low, high), options.rate, options.most)
        )
        gauges = server.gauges()
    results = {
        "model": options.model, "longs": len(waits), "given_up": options.longs - len(waits),
        "every_s": options.every, "long_tokens": [low, high],
        "shorts_a_second": options.rate, "num_shorts": len(shorts), "short_ttft_s": statistics.median(shorts),
        "long_ttft_s": {"median": statistics.median(_ttfts(waits)), "max": max(_ttfts(waits))},
        "prefill_pauses": gauges.get("longspan:prefill_pauses_total"),
        "at": {f"{share:.0%}": judged(waits, share) for share in AT},
        "waits": [{"prompt": wait.prompt, "ttft_s": wait.ttft_s, "told": wait.told} for wait in waits],
    }  # fmt: skip
    for share, found in results["at"].items():
        say(f"at {share} of the wait: {json.dumps(found)}")
    save("progress_quotes", results)


def _ttfts(waits: Sequence[Wait]) -> list[float]:
    return [wait.ttft_s for wait in waits if wait.ttft_s is not None]


if __name__ == "__main__":
    main()
