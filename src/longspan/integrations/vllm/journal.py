"""The event log of what was decided inside vLLM, in Longspan's format (docs/event_log.md)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, KVRange, RunBatch, Segment, StopReason, StopRequest
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.decision import Decision
from longspan.core.events import Event
from longspan.core.policies.base import Policy
from longspan.integrations.vllm.view import INSTANCE
from longspan.metrics.event_log import EventLogWriter

_WHERE = (INSTANCE,)


class Journal:
    """Writes an event with all that is done until the next one.

    In vLLM nothing is decided in the moment of an event, but soon after it: so a record has the time of its event.
    """

    def __init__(self, path: Path, config: SchedulerConfig, costs: FittedCostModel, policy: Policy) -> None:
        self._writer = EventLogWriter(path, config, costs, policy=policy)
        self._residences: dict[str, int] = {}
        self._next_residence = 0
        self._held: tuple[float, Event] | None = None
        self._actions: list[Action] = []
        self._why: list[Decision] = []

    @property
    def path(self) -> Path | None:
        return self._writer.path

    def event(self, now: float, event: Event) -> None:
        self.flush()
        self._held = now, event

    def explain(self, why: Iterable[Decision]) -> None:
        self._why += why

    def run(self, batch: RunBatch) -> None:
        """Note a step. Its segments say which tokens; where these are follows."""
        self._actions.append(RunBatch(batch.batch_id, batch.group, tuple(map(self._in_full, batch.segments))))

    def stop(self, request_id: str, reason: StopReason) -> None:
        """Note that a request has ended, or lost its KV; nothing if it holds none."""
        residence = self._residences.pop(request_id, None)
        if residence is not None:
            self._actions += FreeKV(residence, _WHERE), StopRequest(request_id, _WHERE, reason)

    def flush(self) -> None:
        """Write what has been done since the last event: nothing more will be before the next."""
        if self._held is not None:
            actions: Sequence[Action] = self._actions
            self._writer.write(*self._held, actions, self._why)
        self._held, self._actions, self._why = None, [], []

    def close(self) -> None:
        self.flush()
        self._writer.close()

    def _in_full(self, segment: Segment) -> Segment:
        residence = self._residences.get(segment.request_id)
        if residence is None:
            residence = self._residences[segment.request_id] = self._next_residence
            self._next_residence += 1
        start = segment.start
        store = (KVRange(INSTANCE, start, segment.end),)
        context = ((INSTANCE, start),) if start else ()
        return Segment(segment.request_id, start, segment.length, _WHERE, store, context, segment.emits, residence)
