"""Five thousand hostile requests against a real server, while a good client streams.

The server is `longspan serve` under the probe of its event loop: 2 instances, the policy medha, the default model.
Rounds of attacks (grammar.py) take turns with spans in which the good client is alone. Each attack follows from the
seed and its number: `--only N` carries out that one, and shows what went and what came.

Bars: no answer of status 5xx; no hang; every answer as OpenAI's clients can read it; the good client's p99 gap between
tokens at most three times that of the quiet spans; no callback of more than 50 ms of the loop's thread; memory after
the last attack within a tenth of that after the first tenth of them; no traceback in the server's log; at the end a
good answer, nothing left running, exit code 0 after SIGTERM, and an event log that replays. A bar that is missed is an
exit code of 1.

    python -m benchmarks.robustness.fuzz [--count 5000] [--seed 16] [--rate 15] [--only N]
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, save, say
from benchmarks.http_server import end_cleanly_on_sigterm
from benchmarks.robustness.attack import Attack, Send
from benchmarks.robustness.good_client import Told, within
from benchmarks.robustness.grammar import attack as make_attack
from benchmarks.robustness.hostile_client import Outcome, carry_out
from benchmarks.robustness.watched_server import Held, WatchedServer, replays, watched

ROUNDS, QUIET_S = 10, 6.0
AT_ONCE, LINGERING = 8, 40  # attacks at a time; and those, beside them, that wait for the server to close
GIVE_UP_AFTER = 25  # hangs: the server is gone
EXAMPLES, LONGEST = 4, 8  # of each failure, and of callbacks
SERVER = ("--policy", "medha", "--instances", "2", "--max-model-len", "256", "--kv-tokens", "4096")


class Fuzz:
    """One run against one server. outcomes: by number, without those that are well."""

    def __init__(
        self, server: WatchedServer, seed: int, model: str, answer_within_s: float, close_within_s: float
    ) -> None:
        self.server = server
        self.seed = seed
        self.model = model
        self.answer_within_s = answer_within_s
        self.close_within_s = close_within_s
        self.at_once, self.lingering = asyncio.Semaphore(AT_ONCE), asyncio.Semaphore(LINGERING)
        self.left: set[asyncio.Task[None]] = set()
        self.statuses: Counter[str] = Counter()
        self.endings: Counter[str] = Counter()
        self.by_part: dict[str, Counter[str]] = {}
        self.failures: dict[int, tuple[str, str]] = {}
        self.seconds: list[float] = []
        self.spans: dict[int, tuple[float, float]] = {}

    async def round(self, numbers: range, rate: float) -> None:
        """Attacks at the rate, or slower where the server takes longer. What waits for a close goes on afterwards."""
        begin = time.monotonic()
        running = set()
        for place, number in enumerate(numbers):
            await asyncio.sleep(max(0.0, begin + place / rate - time.monotonic()))
            if self.hangs >= GIVE_UP_AFTER:
                break
            attack = make_attack(self.seed, number, self.model)
            slots = self.at_once if attack.due in ("answer", "nothing") else self.lingering
            await slots.acquire()
            task = asyncio.create_task(self._one(number, attack, slots))
            (running if slots is self.at_once else self.left).add(task)
            task.add_done_callback(self.left.discard)
        if running:
            await asyncio.wait(running)

    async def finish(self) -> None:
        """Until all connections have their end."""
        while self.left:
            await asyncio.wait(set(self.left))

    def running_at(self, at: float) -> list[str]:
        """Those that had begun and not ended; waiting ones come last."""
        running = sorted((end - begin, n) for n, (begin, end) in self.spans.items() if begin <= at <= end)
        return [f"{number}: {make_attack(self.seed, number, self.model).name}" for _, number in running[:AT_ONCE]]

    @property
    def hangs(self) -> int:
        return self.endings["hangs"]

    async def _one(self, number: int, attack: Attack, slots: asyncio.Semaphore) -> None:
        begin = time.monotonic()
        try:
            outcome = await carry_out(attack, self.server.port, self.answer_within_s, self.close_within_s)
        finally:
            slots.release()
        self.spans[number] = (begin, time.monotonic())
        self._note(number, outcome)

    def _note(self, number: int, outcome: Outcome) -> None:
        self.endings[outcome.ending] += 1
        self.statuses.update(map(str, outcome.statuses))
        self.by_part.setdefault(outcome.attack.part, Counter()).update(map(str, outcome.statuses or [outcome.ending]))
        if outcome.attack.due == "answer" and outcome.ending == "answered":
            self.seconds.append(outcome.seconds)
        if outcome.failure is not None:
            self.failures[number] = (outcome.attack.name, outcome.failure)

    def report(self) -> dict[str, Any]:
        kinds: dict[str, list[dict[str, Any]]] = {}
        for number, (name, failure) in sorted(self.failures.items()):
            kinds.setdefault(failure[:40], []).append({"number": number, "what": name, "failure": failure})
        return {
            "statuses": dict(sorted(self.statuses.items())),
            "endings": dict(self.endings),
            "by_part": {part: dict(sorted(counts.items())) for part, counts in sorted(self.by_part.items())},
            "answers_of_status_5xx": sum(
                n for status, n in self.statuses.items() if status[0] == "5" and status != "503"
            ),
            "answers_of_status_503": self.statuses["503"],
            "hangs": self.hangs,
            "failures": len(self.failures),
            "failures_by_kind": {kind: {"count": len(of), "examples": of[:EXAMPLES]} for kind, of in kinds.items()},
            "seconds_to_answer": spread(self.seconds),
        }


def spread(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    ordered = sorted(values)
    return {"median": statistics.median(ordered), "p99": quantile(ordered, 0.99), "max": ordered[-1]}


def quantile(values: list[float], share: float) -> float:
    """The least value that so many are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@contextmanager
def good_client(server: WatchedServer, model: str, told: Path) -> Iterator[None]:
    with told.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.robustness.good_client", str(server.port), model], stdout=output
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


async def attack_in_rounds(fuzz: Fuzz, count: int, rate: float) -> dict[str, Any]:
    """The spans of each kind on the monotonic clock, and what the server held after a tenth and at the end."""
    quiet, hostile, held = [], [], {}
    for number in range(ROUNDS):
        begin = time.monotonic()
        await asyncio.sleep(QUIET_S)
        middle = time.monotonic()
        await fuzz.round(range(count * number // ROUNDS, count * (number + 1) // ROUNDS), rate)
        quiet.append((begin, middle))
        hostile.append((middle, time.monotonic()))
        held[count * (number + 1) // ROUNDS] = fuzz.server.held() if fuzz.server.alive else Held(0, 0, 0, 0)
        say(f"{count * (number + 1) // ROUNDS} attacks: {dict(sorted(fuzz.statuses.items()))}, {fuzz.hangs} hangs, "
            f"{len(fuzz.failures)} failures, {held[count * (number + 1) // ROUNDS].server_mib:.0f} MiB")  # fmt: skip
        if fuzz.hangs >= GIVE_UP_AFTER or not fuzz.server.alive:
            say("the server does not answer any more")
            break
    await fuzz.finish()
    return {"quiet": quiet, "hostile": hostile, "held": held}


def disturbance(told: Told, spans: dict[str, Any]) -> dict[str, Any]:
    """The good client's gaps, quiet and under attack."""
    gaps = {kind: within(told.gaps, spans[kind]) for kind in ("quiet", "hostile")}
    firsts = {kind: within(told.first_tokens, spans[kind]) for kind in ("quiet", "hostile")}
    health = {kind: within(told.health, spans[kind]) for kind in ("quiet", "hostile")}
    ratios = [
        quantile(loud, 0.99) / quantile(calm, 0.99)
        for q, h in zip(spans["quiet"], spans["hostile"], strict=True)
        if (calm := within(told.gaps, [q])) and (loud := within(told.gaps, [h]))
    ]
    return {
        "gap_s": {kind: spread(values) | {"count": len(values)} for kind, values in gaps.items()},
        "first_token_s": {kind: spread(values) for kind, values in firsts.items()},
        "health_s": {kind: spread(values) for kind, values in health.items()},
        "p99_ratio_by_round": ratios,
        "p99_ratio": statistics.median(ratios) if ratios else math.inf,
        "p99_ratio_of_all": quantile(gaps["hostile"], 0.99) / quantile(gaps["quiet"],
                                                                       0.99) if all(gaps.values()) else math.inf,
        "errors": told.errors,
    }  # fmt: skip


def loop_figures(server: WatchedServer, fuzz: Fuzz, spans: dict[str, Any]) -> dict[str, Any]:
    """The longest callbacks since the first attack; what the server did before, it did for itself."""
    probe = server.probe()
    since = spans["hostile"][0][0]
    slow = sorted((call for call in probe["slow"] if call[0] >= since), key=lambda call: -call[1])
    return {
        "callbacks": probe["calls"],
        "longest_ms": 1000 * slow[0][1] if slow else None,
        "over_10_ms": len(slow),
        "over_50_ms": sum(call[1] > 0.05 for call in slow),
        "longest": [
            {"ms": 1000 * took, "what": what, "stack": stack, "beside_attacks": fuzz.running_at(ended - took / 2)}
            for ended, took, what, stack in slow[:LONGEST]
        ],
    }


def verdicts(results: dict[str, Any]) -> dict[str, bool]:
    attacks, ending = results["attacks"], results["ending"]
    return {
        "no_5xx": attacks["answers_of_status_5xx"] == 0 and attacks["answers_of_status_503"] == 0,
        "no_hangs": attacks["hangs"] == 0,
        "no_other_failure": attacks["failures"] == 0,
        "good_client_undisturbed": results["good_client"]["p99_ratio"] <= 3 and not results["good_client"]["errors"],
        "loop_below_50_ms": (results["event_loop"]["longest_ms"] or 0) <= 50,
        "memory_flat": abs(results["memory"]["growth"]) <= 0.1,
        "no_traceback": results["tracebacks"]["count"] == 0,
        "ends_well": ending["answers"] and not ending["busy"] and ending["exit_code"] == 0 and ending["replays"],
    }


def end(server: WatchedServer, model: str, event_log: Path) -> dict[str, Any]:
    """A last good request, then SIGTERM."""
    ending: dict[str, Any] = {"answers": False, "busy": None, "exit_code": None, "replays": False}
    try:
        answer = server.ask("/v1/completions", {"model": model, "prompt": "Once", "max_tokens": 4, "ignore_eos": True})
        ending["answers"] = answer["usage"]["completion_tokens"] == 4
        ending["busy"] = server.busy_after(30)
    except OSError as error:
        ending["busy"] = {"error": str(error)}
    ending["exit_code"] = server.stop()
    ending["replays"] = replays(event_log)
    return ending


def run(options: Any, folder: Path) -> dict[str, Any]:
    source = Path(options.source) if options.source else None
    event_log = folder / "events.jsonl"
    with watched([options.model, *SERVER, "--event-log", str(event_log)], folder, source) as server:
        told = folder / "told.jsonl"

        async def attacked() -> tuple[Fuzz, dict[str, Any]]:
            fuzz = Fuzz(server, options.seed, options.model, options.answer_within, options.close_within)
            with good_client(server, options.model, told):
                spans = await attack_in_rounds(fuzz, options.count, options.rate)
            return fuzz, spans

        begin = time.monotonic()
        fuzz, spans = asyncio.run(attacked())
        seconds = time.monotonic() - begin
        ending = end(server, options.model, event_log) if server.alive else {
            "answers": False, "busy": None, "exit_code": server.http.process.returncode, "replays": replays(event_log)
        }  # fmt: skip
        event_loop = loop_figures(server, fuzz, spans)
        tracebacks = server.tracebacks()
        if options.log:
            Path(options.log).write_bytes(server.log.read_bytes())
    held = spans["held"]
    first, last = next(iter(held.values())), list(held.values())[-1]
    results = {
        "server": ["longspan", "serve", options.model, *SERVER],
        "seed": options.seed, "count": options.count, "rate": options.rate, "at_once": AT_ONCE, "seconds": seconds,
        "attacks": fuzz.report(),
        "good_client": disturbance(Told.read(told), spans),
        "event_loop": event_loop,
        "memory": {"after": {n: asdict(h) for n, h in held.items()},
                   "growth": (last.server_mib + last.workers_mib) / (first.server_mib + first.workers_mib) - 1,
                   "server_growth": last.server_mib / first.server_mib - 1},
        "ending": ending,
        "tracebacks": {"count": len(tracebacks), "of": sorted(set(tracebacks))[:8]},
    }  # fmt: skip
    return results | {"verdicts": verdicts(results)}


def show_one(options: Any, folder: Path) -> int:
    """One attack, against a server of its own or one that runs already (--port)."""
    attack = make_attack(options.seed, options.only, options.model)
    print(attack.name, "| due:", attack.due)
    for step in attack.steps:
        print(" ", step if not isinstance(step, Send) or len(step.data) < 3000 else f"Send {step.data[:1500]!r} ... "
              f"({len(step.data)} bytes)")  # fmt: skip
    if options.port:
        outcome = asyncio.run(carry_out(attack, options.port, options.answer_within, options.close_within))
    else:
        with watched([options.model, *SERVER], folder) as server:
            outcome = asyncio.run(carry_out(attack, server.port, options.answer_within, options.close_within))
            time.sleep(1)
            slow = [call for call in server.probe()["slow"] if call[1] > 0.02]
            print("slow callbacks, with those of the start:", *slow, sep="\n  ")
    for answer in outcome.answers:
        print(answer.status, dict(answer.headers), answer.body[:1000])
    print(f"{outcome.ending} after {outcome.seconds:.2f} s; failure: {outcome.failure}")
    return int(outcome.failure is not None)


def main() -> int:
    options = arguments(
        (__doc__ or "").partition("\n")[0],
        [("model", "smollm2-135m", "model"), ("count", 5000, "attacks"), ("seed", 16, "what they follow from"),
         ("rate", 15.0, "attacks a second"), ("only", -1, "carry out this one, and show it"),
         ("port", 0, "with --only: of a server that runs"), ("name", "fuzz", "result; empty writes none"),
         ("source", "", "src folder of another version"), ("log", "", "where to keep what the server logs"),
         ("answer-within", 30.0, "seconds"), ("close-within", 90.0, "seconds")],
    )  # fmt: skip
    end_cleanly_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        if options.only >= 0:
            return show_one(options, Path(folder))
        results = run(options, Path(folder))
    for kind, failures in results["attacks"]["failures_by_kind"].items():
        say(f"{failures['count']} x {kind}")
        for example in failures["examples"]:
            say(f"    --only {example['number']}: {example['what']}: {example['failure']}")
    parts = ("good_client", "event_loop", "memory", "ending", "tracebacks")
    say(json.dumps({name: results[name] for name in parts}, indent=1))
    for name, met in results["verdicts"].items():
        say(f"{'met   ' if met else 'MISSED'} {name}")
    if options.name:
        save(options.name, results)
    return int(not all(results["verdicts"].values()))


if __name__ == "__main__":
    sys.exit(main())
