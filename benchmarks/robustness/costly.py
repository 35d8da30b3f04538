"""What single clients could make the server spend before it looked: each case against a fresh server, before and now.

Of each case: what was answered and when, the server's memory, the longest callback on its event loop in processor time
of the loop's thread, and what others saw meanwhile: the longest wait for /health, and for one token of an innocent
prompt. A case that is not through in CUT_OFF_S is cut off.

    git worktree add BEFORE 68f1b9d
    python -m benchmarks.robustness.costly --before BEFORE/src [--cases text_60_mb,stop_10_mb]
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, arguments, save, say
from benchmarks.http_server import end_cleanly_on_sigterm
from benchmarks.robustness.attack import Attack, Leave, Send, Wait
from benchmarks.robustness.grammar import CHAT, COMPLETIONS, post
from benchmarks.robustness.hostile_client import Outcome, carry_out
from benchmarks.robustness.watched_server import WatchedServer, watched

CUT_OFF_S = 60.0
SETTLE_S = 3.0  # then memory is read once more
LOOK_EVERY_S = 0.05
SERVER = ("--instances", "2", "--policy", "medha", "--kv-tokens", "16384")
MILLION = 1_000_000


def completion(fields: bytes) -> Attack:
    return Attack("", (Send(post(COMPLETIONS, b'{"max_tokens":1,' + fields + b"}")),))


def chat(messages: bytes) -> Attack:
    return Attack("", (Send(post(CHAT, b'{"max_tokens":1,"messages":[' + messages + b"]}")),))


def text(size: int) -> bytes:
    words = b"the whale turned slowly in the water and "
    return b'"' + (words * (size // len(words) + 1))[:size] + b'"'


def leaving() -> Attack:
    request = completion(b'"prompt":' + text(4_800_000)).steps[0]
    return Attack("", (request, Wait(0.3), Leave()), "nothing", ())


def long_head() -> Attack:
    lines = b"".join(b"X-%07d: %s\r\n" % (i, b"x" * 87) for i in range(2 * MILLION))
    return Attack("", (Send(b"POST /v1/completions HTTP/1.1\r\n" + lines),), "close", ())


def slow() -> Attack:
    return Attack(
        "", (Send(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n", piece=1, every_s=2.0),), "close", ()
    )


CASES: dict[str, Callable[[], list[Attack]]] = {
    "text_60_mb": lambda: [completion(b'"prompt":' + text(60 * MILLION))],
    "eight_send_4.8_mb_and_leave": lambda: [leaving()] * 8,
    "million_empty_messages": lambda: [chat(b",".join([b'{"role":"user","content":""}'] * MILLION))],
    "100_000_empty_messages": lambda: [chat(b",".join([b'{"role":"user","content":""}'] * (MILLION // 10)))],
    "million_empty_prompts": lambda: [completion(b'"prompt":[' + b",".join([b'""'] * MILLION) + b"]")],
    "million_token_ids": lambda: [completion(b'"prompt":[' + b",".join([b"1"] * MILLION) + b"]")],
    "stop_of_10_mb": lambda: [completion(b'"prompt":"x","stop":' + text(10 * MILLION))],
    "128_stops_of_300_kb": lambda: [
        completion(b'"prompt":"x","stop":[' + b",".join([text(300_000)] * 128) + b"]")
    ],
    "unknown_field_60_mb": lambda: [
        completion(b'"prompt":"x","unknown":[' + b",".join([b"1"] * (30 * MILLION)) + b"]")
    ],
    "surrogate_in_stop": lambda: [completion(b'"prompt":"x","stop":"\\ud800"')] * 2,  # one an instance
    "unfinished_head_of_200_mb": lambda: [long_head()],
    "50_slow_connections": lambda: [slow()] * 50,
}  # fmt: skip


@dataclass
class Others:
    """What those saw who did nothing wrong. Seconds; None: it had not come when the case was cut off."""

    health_s: list[float] = field(default_factory=list)
    token_s: float | None = None
    token_error: str | None = None

    async def watch_health(self, server: WatchedServer) -> None:
        look = Attack("", (Send(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"),), "answer", ("GET",))
        while True:
            begin = time.monotonic()
            try:
                await carry_out(look, server.port, CUT_OFF_S, CUT_OFF_S)
            finally:
                self.health_s.append(time.monotonic() - begin)  # also of one that is cut off
            await asyncio.sleep(LOOK_EVERY_S)

    async def ask_for_a_token(self, server: WatchedServer) -> None:
        await asyncio.sleep(0.5)
        outcome = await carry_out(completion(b'"prompt":"Once upon a time"'), server.port, CUT_OFF_S, CUT_OFF_S)
        if outcome.statuses == [200]:
            self.token_s = outcome.seconds
        else:
            self.token_error = outcome.failure or f"statuses {outcome.statuses}"


class Memory:
    """The server process's resident memory over time, MiB."""

    def __init__(self, server: WatchedServer) -> None:
        self.server = server
        self.before = self.peak = server.held().server_mib

    async def watch(self) -> None:
        while True:
            self.peak = max(self.peak, self.server.held().server_mib)
            await asyncio.sleep(LOOK_EVERY_S)


async def one_case(server: WatchedServer, attacks: list[Attack]) -> dict[str, Any]:
    others, memory = Others(), Memory(server)
    begin = time.monotonic()
    watching = [asyncio.create_task(work) for work in (others.watch_health(server), memory.watch())]
    token = asyncio.create_task(others.ask_for_a_token(server))
    outcomes = await asyncio.gather(*(carry_out(attack, server.port, CUT_OFF_S, CUT_OFF_S) for attack in attacks))
    seconds = time.monotonic() - begin
    await asyncio.wait({token}, timeout=max(1.0, CUT_OFF_S - seconds))
    await asyncio.sleep(SETTLE_S)
    await cancel([*watching, token])
    slow = [call for call in server.probe()["slow"] if call[0] >= begin]
    worst = max(slow, key=lambda call: call[1], default=None)
    return {
        **ends(outcomes),
        "seconds": seconds,
        "memory_mib": {"before": memory.before, "peak": memory.peak, "after": server.held().server_mib},
        "longest_callback_ms": None if worst is None else 1000 * worst[1],
        "longest_callback": None if worst is None else worst[2:],
        "health_longest_s": max(others.health_s),
        "innocent_token_s": others.token_s,
        "innocent_token_error": others.token_error,
    }


def ends(outcomes: list[Outcome]) -> dict[str, Any]:
    statuses = sorted({str(status) for outcome in outcomes for status in outcome.statuses})
    endings = sorted({outcome.ending for outcome in outcomes})
    says = [answer.body[:300].decode(errors="replace") for outcome in outcomes for answer in outcome.answers[:1]]
    return {"endings": endings, "statuses": statuses, "says": says[0] if says else None}


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def measure(case: str, model: str, source: Path | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, watched([model, *SERVER], Path(folder), source) as server:
        figures = run_bounded(one_case(server, CASES[case]()))
        figures["still_answers"] = still_answers(server)
        figures["exit_code"] = server.stop() if figures["still_answers"] else None
        if not figures["still_answers"]:
            server.http.process.kill()
        return figures


def run_bounded(work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    return asyncio.run(asyncio.wait_for(work, 4 * CUT_OFF_S))


def still_answers(server: WatchedServer) -> bool:
    try:
        server.ask("/v1/completions", {"prompt": "x", "max_tokens": 1}, within_s=20)
    except (OSError, ValueError):
        return False
    return True


def earlier(name: str) -> dict[str, Any]:
    """Cases of an earlier run, which stay where they are not measured again."""
    path = RESULTS / f"{name}.json"
    return dict(json.loads(path.read_text())["results"]["cases"]) if path.exists() else {}


def tell(case: str, side: str, figures: dict[str, Any]) -> None:
    memory, callback = figures["memory_mib"], figures["longest_callback_ms"]
    say(
        f"{case}, {side}: {'/'.join(figures['statuses'] or figures['endings'])} after {figures['seconds']:.1f} s, "
        f"memory {memory['before']:.0f} -> {memory['peak']:.0f} -> {memory['after']:.0f} MiB, longest callback "
        f"{'below 10' if callback is None else f'{callback:.0f}'} ms, /health {figures['health_longest_s']:.2f} s, "
        f"innocent {figures['innocent_token_s'] or figures['innocent_token_error']}"
    )


def main() -> int:
    options = arguments(
        (__doc__ or "").partition("\n")[0],
        [("before", "", "src folder of the version before"), ("cases", ",".join(CASES), "which"),
         ("model", "smollm2-135m", "model"), ("name", "costly", "result; empty writes none")],
    )  # fmt: skip
    end_cleanly_on_sigterm()
    sides = {"before": Path(options.before)} if options.before else {}
    results: dict[str, Any] = {}
    for case in options.cases.split(","):
        results[case] = {}
        for side, source in (*sides.items(), ("now", None)):
            results[case][side] = measure(case, options.model, source)
            tell(case, side, results[case][side])
    met = all(
        (now["longest_callback_ms"] or 0) <= 50 and now["still_answers"] and now["exit_code"] == 0
        for now in (sides["now"] for sides in results.values())
    )  # fmt: skip
    if options.name:
        results = {case: sides for case, sides in (earlier(options.name) | results).items() if case in CASES}
        save(options.name, {"server": ["longspan", "serve", options.model, *SERVER], "cut_off_s": CUT_OFF_S,
                            "cases": results})  # fmt: skip
    return int(not met)


if __name__ == "__main__":
    sys.exit(main())
