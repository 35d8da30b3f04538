"""Fair shares between tenants: who has had more than its share of the service goes behind those who have not.

Service is counted in seconds of work, of prompts and of further tokens, over the tenant's weight: its clock. This is
start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996) in the form that "Fairness in Serving Large Language Models"
(Sheng et al., OSDI 2024, algorithm 2, VTC) gives it for LLMs: whoever comes back after a pause begins where the
least-served of those that wait has come to, so that nobody saves credit up. Each priority has clocks of its own.

A tenant within its share is at most some seconds of work ahead of the least-served one that waits; inside each part
requests keep their order. So with one tenant, or with none over its share, nothing changes, and the order among who is
over is the same again, by how far. What those within their shares leave, the others get: nothing stands idle.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import Floats, N
from longspan.core.policies.longspan.order import HOPELESS
from longspan.errors import ConfigError, RequestError
from longspan.service_level import check_tenant

OVER = 4.0 * HOPELESS
"""Seconds, beyond every key of a request whose tenant is within its share."""

MOST_WEIGHT = 1e6
_MOST_PARTS = 24.0  # keys are tenths of milliseconds apart yet
_CLOCK, _WEIGHT, _LEVEL, _WAITING, _ALIVE = range(5)
_FIRST = 16  # places, doubled when they are taken


class Shift(NamedTuple):
    """A tenant has gone beyond its share, or is within it again. lead_s: seconds of work beyond the least-served."""

    request_id: str
    is_over: bool
    lead_s: float


@dataclass(frozen=True, slots=True)
class _Flow:
    """A tenant at one priority."""

    tenant: str
    priority: int


class TenantShares:
    """The clocks of the tenants that have requests, or are ahead of those that wait.

    weights: by tenant; others have 1. slack_s: seconds of work by which a tenant may be ahead; infinite, none ever is.
    """

    def __init__(self, weights: Mapping[str, float], slack_s: float) -> None:
        self.weights = weights
        self.slack_s = slack_s
        self._places: dict[_Flow, int] = {}
        self._vacant: list[int] = []
        self._columns = np.zeros((5, _FIRST))
        self._flows: dict[str, _Flow] = {}  # by request, from its arrival to when nothing more runs for it
        self._waiting: dict[_Flow, dict[str, None]] = {}  # without their first token, in order of arrival
        self._draining: dict[str, Request] = {}
        self._over: set[_Flow] = set()  # of which that was told
        self._known: Floats | None = None

    # what happens

    def arrive(self, request: Request) -> None:
        """Note a new request. Its tenant's clock, if it had none waiting, goes on to where those are that have."""
        flow = _flow(request)
        place = self._place(flow)
        waiting = self._waiting.setdefault(flow, {})
        if not waiting:
            clocks = self._columns[_CLOCK]
            clocks[place] = max(clocks[place], self._reached(flow.priority))
        waiting[request.id] = None
        self._flows[request.id] = flow
        self._columns[_ALIVE, place] += 1
        self._columns[_WAITING, place] = 1
        self._known = None

    def serve(self, request_id: str, work_s: float) -> None:
        """Count seconds of work for a request; for one that is not known, nobody's."""
        flow = self._flows.get(request_id)
        if flow is not None:
            place = self._places[flow]
            self._columns[_CLOCK, place] += work_s / self._columns[_WEIGHT, place]
            self._known = None
        if (request := self._draining.get(request_id)) is not None:
            self.end(request)

    def answer(self, request_id: str) -> None:
        """Note that it has its first token: it waits no more."""
        flow = self._flows.get(request_id)
        if flow is None or request_id not in self._waiting[flow]:
            return
        del self._waiting[flow][request_id]
        if not self._waiting[flow]:
            self._columns[_WAITING, self._places[flow]] = 0
            self._known = None

    def end(self, request: Request) -> None:
        """Note that it has ended. What runs for it yet is its tenant's all the same."""
        self.answer(request.id)
        if request.in_flight:
            self._draining[request.id] = request
            return
        self._draining.pop(request.id, None)
        flow = self._flows.pop(request.id, None)
        if flow is not None:
            place = self._places[flow]
            self._columns[_ALIVE, place] -= 1
            if not self._columns[_ALIVE, place]:
                self._over.discard(flow)
            self._forget()

    def _place(self, flow: _Flow) -> int:
        place = self._places.get(flow)
        if place is None:
            if not self._vacant:
                size = self._columns.shape[1] if self._places else 0
                if size:
                    self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)), axis=1)
                self._vacant = list(reversed(range(size, self._columns.shape[1])))
            place = self._places[flow] = self._vacant.pop()
            self._columns[:, place] = (0.0, self.weight(flow.tenant), flow.priority, 0.0, 0.0)
        return place

    def _reached(self, priority: int) -> float:
        """The clock of the least-served that waits; where nobody does, of who has come farthest."""
        taken = [place for flow, place in self._places.items() if flow.priority == priority]
        clock, _, _, waiting, _ = self._columns[:, taken]
        return float(clock[waiting > 0].min() if waiting.any() else clock.max())

    def _forget(self) -> None:
        """Of who has no requests, and is not ahead of those that wait, nothing need be known."""
        reached: dict[int, float] = {}
        for flow, place in list(self._places.items()):
            clock, _, _, _, alive = self._columns[:, place]
            if not alive:
                if flow.priority not in reached:
                    reached[flow.priority] = self._reached(flow.priority)
                if clock <= reached[flow.priority]:
                    self._waiting.pop(flow, None)
                    self._vacant.append(self._places.pop(flow))

    # what follows from it

    def place(self, request: Request) -> int:
        """Return the place of its tenant in `parts`; it stays the same as long as the request lives."""
        return self._places[self._flows[request.id]]

    def is_over(self, request: Request) -> bool:
        return bool(self.parts[self.place(request)] > 0.0)

    def part(self, place: N) -> N:
        """Return the parts of one place, or of a column of them."""
        if isinstance(place, np.ndarray):
            return self.parts[place.astype(np.intp)]
        return float(self.parts[int(place)])

    @property
    def parts(self) -> Floats:
        """Return of each place 0 if the tenant is within its share, else the more the farther it is ahead.

        It doubles its lead from one part to the next.
        """
        if self._known is None and self.slack_s == math.inf:
            self._known = np.zeros(self._columns.shape[1])
        if self._known is None:
            lead_s = self._leads()
            over = lead_s > self.slack_s
            self._known = np.zeros_like(lead_s)
            self._known[over] = np.minimum(_MOST_PARTS, np.frexp(lead_s[over] / self.slack_s)[1])
        return self._known

    def _leads(self) -> Floats:
        """Seconds of work that each that waits has had beyond what the least-served of its priority has."""
        clock, weight, level, waiting, _ = self._columns
        leads = np.zeros_like(clock)
        for priority in np.unique(level[waiting > 0]):
            here = np.flatnonzero((waiting > 0) & (level == priority))
            leads[here] = (clock[here] - clock[here].min()) * weight[here]
        return leads

    def shifts(self) -> Iterator[Shift]:
        """Yield whose part has changed between within and over since this was asked last; one request stands for it."""
        parts = self.parts
        for flow, place in self._places.items():
            waiting = self._waiting.get(flow)
            if waiting and (parts[place] > 0.0) != (flow in self._over):
                self._over ^= {flow}
                yield Shift(next(iter(waiting)), flow in self._over, float(self._leads()[place]))

    # how much of others' work goes before one's own

    def weight(self, tenant: str | None) -> float:
        return self.weights.get(tenant or "", 1.0)

    def allowance(self, mine: int, other: int, work_s: float) -> float:
        """Return how much work of another tenant is served before so much of one's own, at most."""
        clock, weight = self._columns[_CLOCK], self._columns[_WEIGHT]
        ahead = clock[mine] + work_s / weight[mine] - clock[other]
        return max(0.0, float(weight[other] * ahead) + self.slack_s)


def behind(key: N, part: N) -> N:
    """Return the key of a request whose tenant is in that part. Who has lost its KV between two tokens stays first."""
    if isinstance(key, np.ndarray):
        return np.where(key < -0.5 * HOPELESS, key, key + OVER * part)
    return key if key < -0.5 * HOPELESS else key + OVER * part


def read_weights(text: str | None) -> dict[str, float]:
    """Read `chat=4,batch=0.5`. Raises ConfigError."""
    weights: dict[str, float] = {}
    wrong = f"tenant_weights is {text!r}, but must be written as in chat=4,batch=0.5"
    for item in filter(None, map(str.strip, (text or "").split(","))):
        name, _, value = map(str.strip, item.rpartition("="))
        try:
            weight = float(value)
            check_tenant(name)
        except (ValueError, RequestError) as error:
            raise ConfigError(f"{wrong}: {error}") from None
        if not 1.0 / MOST_WEIGHT <= weight <= MOST_WEIGHT:
            raise ConfigError(f"{wrong}: the weight of {name} is {value}, not {1 / MOST_WEIGHT:g} to {MOST_WEIGHT:g}")
        if name in weights:
            raise ConfigError(f"{wrong}: it names {name} twice")
        weights[name] = weight
    return weights


def _flow(request: Request) -> _Flow:
    return _Flow(request.service.tenant or "", request.service.priority)
