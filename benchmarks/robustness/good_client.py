"""A client that means well, as a process of its own: it streams one answer after the other, and asks after /health.

    python -m benchmarks.robustness.good_client PORT MODEL > told.jsonl

One line for each stream: when it was asked for, when each token came, on the monotonic clock, which all processes of a
machine share; or what went wrong. One for each look at /health: when, and how long it took. SIGTERM ends it.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.robustness.http_answer import read_answer

TOKENS = 120
HEALTH_EVERY_S = 0.25
PROMPT = "The whale turned slowly in the water, and"


@dataclass
class Told:
    """What a good client wrote down. gaps: [when, seconds since the token before], first_tokens: [when, seconds]."""

    gaps: list[tuple[float, float]] = field(default_factory=list)
    first_tokens: list[tuple[float, float]] = field(default_factory=list)
    health: list[tuple[float, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path) -> Told:
        told = cls()
        for line in path.read_text().splitlines():
            note: dict[str, Any] = json.loads(line)
            if "error" in note:
                told.errors.append(note["error"])
            elif "health_s" in note:
                told.health.append((note["at"], note["health_s"]))
            else:
                at: list[float] = note["tokens_at"]
                told.first_tokens.append((at[0], at[0] - note["at"]))
                told.gaps += [(now, now - before) for before, now in pairwise(at)]
        return told

    def gaps_within(self, spans: Sequence[tuple[float, float]]) -> list[float]:
        return within(self.gaps, spans)


def within(timed: Iterable[tuple[float, float]], spans: Sequence[tuple[float, float]]) -> list[float]:
    """The values whose time lies in one of the spans."""
    return [value for at, value in timed if any(begin <= at <= end for begin, end in spans)]


async def stream_on(port: int, model: str) -> None:
    body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
                       "stream": True})  # fmt: skip
    while True:
        try:
            tell(await _stream(port, body.encode()))
        except (OSError, EOFError, ValueError) as error:
            tell({"at": time.monotonic(), "error": f"stream: {type(error).__name__}: {error}"})
            await asyncio.sleep(1)


async def _stream(port: int, body: bytes) -> dict[str, Any]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        asked_at, tokens_at = time.monotonic(), []
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        writer.write(head.encode() + b"\r\nConnection: close\r\n\r\n" + body)
        status = await reader.readline()
        if b" 200 " not in status:
            raise ValueError((status + await reader.read(500)).decode(errors="replace"))
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                if b'"error"' in line[:20]:
                    raise ValueError(line.decode(errors="replace"))
                tokens_at.append(time.monotonic())
        if len(tokens_at) != TOKENS:
            raise ValueError(f"{len(tokens_at)} of {TOKENS} tokens came")
        return {"at": asked_at, "tokens_at": tokens_at}
    finally:
        writer.close()


async def watch_health(port: int) -> None:
    while True:
        at = time.monotonic()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await read_answer(reader, "GET")
            writer.close()
            if answer is None or answer.status != 200:
                raise ValueError("no answer" if answer is None else f"status {answer.status}: {answer.body[:200]!r}")
            tell({"at": at, "health_s": time.monotonic() - at})
        except (OSError, EOFError, ValueError) as error:
            tell({"at": at, "error": f"/health: {type(error).__name__}: {error}"})
        await asyncio.sleep(HEALTH_EVERY_S)


def tell(note: dict[str, Any]) -> None:
    print(json.dumps(note), flush=True)


async def main() -> None:
    port, model = int(sys.argv[1]), sys.argv[2]
    work = asyncio.gather(stream_on(port, model), watch_health(port))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    try:
        await work
    except asyncio.CancelledError:
        return


if __name__ == "__main__":
    asyncio.run(main())
