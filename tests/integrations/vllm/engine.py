"""An engine that does as vLLM does with what the adapter decides: blocks, budgets, and one step after the other.

It is no test of vLLM; these are in acceptance/vllm. It lets the adapter be tried where vLLM cannot run.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import Any

from longspan.config import SchedulerConfig
from longspan.integrations.vllm.costs import Work, cost_model
from longspan.integrations.vllm.decider import Decider, Room, Scheduled
from longspan.integrations.vllm.settings import Settings
from longspan.service_level import ServiceLevel

TRUTH = cost_model(0.015, 5e-4, 2e-7, 8e-4, 3e-6)
"""As measured of vLLM's CPU build, about."""


@dataclass(eq=False)
class Asked:
    name: str
    prompt: int
    most: int
    arrived: float
    cached: int = 0
    computed: int = 0
    tokens: int = 0
    first_at: float | None = None
    ended_at: float | None = None
    preempted: int = 0

    @property
    def known(self) -> int:
        return self.prompt + self.tokens


class Engine:
    """depth: steps that are on their way at once. slots: of KV."""

    def __init__(
        self, slots: int = 50_000, seats: int = 64, depth: int = 1, budget: int = 2048, **settings: Any
    ) -> None:
        config = SchedulerConfig(num_instances=1, kv_tokens=slots, max_batch_tokens=budget, max_waiting=1 << 30)
        self.decider = Decider(config, Settings(**settings))
        self.now, self.slots, self.seats, self.depth, self.budget = 100.0, slots, seats, depth, budget
        self.alive: dict[str, Asked] = {}
        self.waiting: list[Asked] = []
        self.running: list[Asked] = []
        self.all: dict[str, Asked] = {}
        self.flight: deque[tuple[list[tuple[Asked, bool]], float]] = deque()
        self.plans: list[Any] = []

    # clients

    def ask(self, name: str, prompt: int, most: int, service: ServiceLevel | None = None, cached: int = 0) -> Asked:
        asked = self.all[name] = self.alive[name] = Asked(name, prompt, most, self.now, cached)
        self.waiting.append(asked)
        self.decider.arrive(name, prompt, most, service or ServiceLevel(), self.now, self.now)
        self.decider.ready(name, cached)
        return asked

    def abort(self, name: str) -> None:
        asked = self.alive.pop(name)
        (self.running if asked in self.running else self.waiting).remove(asked)
        self.decider.end(name, "abort", self.now)

    # steps

    @property
    def free(self) -> int:
        return self.slots - sum(asked.computed for asked in self.running)

    def step(self) -> None:
        if len(self.flight) < self.depth and self._issue() and len(self.flight) < self.depth:
            return
        if self.flight:
            self._complete()
        else:
            self.now += 0.01

    def run(self, until: float | None = None) -> None:
        while (self.alive or self.flight) if until is None else self.now < until:
            before = self.now
            self.step()
            assert self.now > before or self.flight, "nothing runs, though somebody is there"

    def _issue(self) -> bool:
        most: dict[str, int] | None = None
        begin = [asked.name for asked in self.waiting]
        if self.decider.is_ready:
            plan = self.decider.plan(Room(self.free, self.seats - len(self.running)), self.now)
            self.plans.append(plan)
            for name in plan.preempt:
                self._preempt(self.alive[name])
            most, begin = dict(plan.chunks), list(plan.begin)
        left = self.budget
        scheduled: list[tuple[Asked, tuple[int, int, bool]]] = []
        for asked in [*self.running, *(self.alive[name] for name in begin)]:
            if asked not in self.running and (len(self.running) >= self.seats or asked.known > self.free):
                break
            in_flight = self._in_flight(asked)
            start = asked.computed if asked in self.running else asked.cached
            count = min(asked.known + in_flight - start, left, (most or {}).get(asked.name, left))
            if count <= 0 or asked.tokens + in_flight >= asked.most:
                continue
            if count > self.free:
                self._preempt(max(self.running, key=lambda each: each.arrived))
                return self._issue()
            if asked not in self.running:
                self.waiting.remove(asked)
                self.running.append(asked)
            asked.computed, left = start + count, left - count
            scheduled.append((asked, (start, count, start + count < asked.known + in_flight)))
        self.decider.issued(
            Scheduled(
                [asked.name for asked, _ in scheduled], [start for _, (start, _, _) in scheduled],
                [asked.tokens + self._in_flight(asked) for asked, _ in scheduled],
                {asked.name: count for asked, (_, count, _) in scheduled},
                {asked.name: goes_on for asked, (_, _, goes_on) in scheduled}.__getitem__,
            ),
            self.now,
        )  # fmt: skip
        if scheduled:
            emitting = [(asked, not goes_on) for asked, (_, _, goes_on) in scheduled]
            self.flight.append((emitting, self._seconds(scheduled)))
        return bool(scheduled)

    def _in_flight(self, asked: Asked) -> int:
        return sum(asked is other and emits for step, _ in self.flight for other, emits in step)

    def _preempt(self, asked: Asked) -> None:
        self.running.remove(asked)
        self.waiting.insert(0, asked)
        asked.computed, asked.cached = 0, 0
        asked.preempted += 1
        self.decider.preempted(asked.name, asked.tokens)

    def _seconds(self, scheduled: list[tuple[Asked, tuple[int, int, bool]]]) -> float:
        steps = [(start, length, goes_on) for _, (start, length, goes_on) in scheduled]
        chunks = [(length, start) for start, length, goes_on in steps if length > 1 or goes_on]
        decodes = [start for start, length, goes_on in steps if length == 1 and not goes_on]
        pairs = sum(length * (length + 2 * start) for length, start in chunks)
        return Work(sum(length for length, _ in chunks), pairs, len(decodes), sum(decodes)).seconds(TRUTH)

    def _complete(self) -> None:
        step, seconds = self.flight.popleft()
        self.now += seconds
        for asked, emits in step:
            if not emits or self.alive.get(asked.name) is not asked or asked not in self.running:
                continue
            asked.tokens += 1
            asked.first_at = asked.first_at or self.now
            if asked.tokens == asked.most:
                self.running.remove(asked)
                del self.alive[asked.name]
                asked.ended_at = self.now
                self.decider.end(asked.name, "length", self.now)
        self.decider.completed(self.now)


def learned(engine: Engine) -> Engine:
    """Let it find out what steps cost."""
    for number in range(6):
        engine.ask(f"first {number}", 100 + 150 * number, 8)
        engine.run()
    engine.ask("first long", 6000, 4)
    engine.run()
    assert engine.decider.is_ready
    return engine


def random_prompt(draw: random.Random) -> tuple[int, int]:
    return draw.choice((5, 60, 300, 1200, 5000)), draw.randint(1, 30)
