"""The reducer: events and actions in, what a fleet looks like out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from longspan.core.actions import Action, CancelBatch, FreeKV, MigrateKV, RefuseRequest, RunBatch, StopRequest
from longspan.core.decision import PROMISED, Decision
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    InstanceJoined,
    InstanceLeaving,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
)
from longspan.core.inventory import Inventory, State
from longspan.metrics.fleet.lines import Line
from longspan.metrics.fleet.lives import Known, Latencies, Life, News, Totals
from longspan.metrics.fleet.spans import Running, Spans
from longspan.metrics.kv_slots import KVSlots
from longspan.metrics.request_reader import Opening

MOST_NEWS, MOST_ENDED = 200, 200
WINDOW_S = 30.0
BEFORE = 1_000_000_000
_STATES: dict[type[Event], State] = {InstanceJoined: "up", InstanceLeaving: "leaving", InstanceLost: "lost"}
_QUOTED = ("median_s", "quote_s", "promised_s", "deadline_s")


class Fleet:
    """What there is to see, once it is settled. It holds ids, lengths, times and tenants; texts it never gets.

    num_instances: with which it begins. window_s: over which latencies are measured. lives: of requests that are alive.
    waiting: of those, the ones without KV. draining: that have ended, while work that was issued before goes on.
    instances: by number, whether it is there: up, leaving, lost. news, ended: the latest, oldest first; they are taken.
    """

    def __init__(
        self, num_instances: int, window_s: float = WINDOW_S, numbers: Mapping[str, int] | None = None
    ) -> None:
        """numbers: of what comes before another fleet, the requests' numbers in that; its own are below 0."""
        self.now = 0.0
        self.slots = KVSlots()
        self.spans = Spans(0 if numbers is None else -BEFORE)
        self.lives: dict[str, Life] = {}
        self.waiting: dict[str, Life] = {}
        self.draining: dict[str, Life] = {}
        self.instances: dict[int, State] = dict.fromkeys(range(num_instances), "up")
        self.ttft, self.tpot = Latencies(window_s), Latencies(window_s)
        self.totals = Totals()
        self.news: deque[News] = deque(maxlen=MOST_NEWS)
        self.ended: deque[Life] = deque(maxlen=MOST_ENDED)
        self._batches: dict[int, RunBatch] = {}
        self._moves: dict[int, MigrateKV] = {}
        self._lines: dict[tuple[int, ...], Line] = {}
        self._arrivals = 0 if numbers is None else -BEFORE
        self._numbers = numbers or {}

    def open(self, inventory: Inventory, known: Mapping[str, Known], now: float) -> None:
        """Begin in the middle, with what is there."""
        self.now = now
        self.instances = dict(inventory.instances)
        self.slots.open(inventory)
        for request in inventory.requests:
            life = self._begin(request.id, request.arrived, request.num_prompt_tokens, request.max_tokens)
            life.priority, life.tenant = request.service.priority, request.service.tenant
            life.output, life.computed = request.num_output_tokens, request.num_computed
            life.preemptions = request.num_preemptions
            told = known.get(request.id, Known())
            life.started, life.quote = told.started, told.quote
            life.first_token, life.last_token = told.first_token, told.last_token
            if self.slots.holds(request.id):
                del self.waiting[request.id]
            if request.end_reason is not None:
                self.draining[request.id] = self.lives.pop(request.id)
        for action in inventory.running:
            self._issue(action, now)

    def skip_to(self, opening: Opening, now: float) -> None:
        """Go on where a log does, after a part that it lacks. Of KV only that is known that is told from here on."""
        self.now, self.slots, self.spans = now, KVSlots(), Spans(self.spans.count)
        alive = {event.request_id for _, event in opening.requests}
        for request_id in [name for name in self.lives if name not in alive]:
            self._end(request_id, "unknown", now)
        self.draining.clear()
        self._batches, self._moves, self._lines = {}, {}, {}
        for at, event in opening.requests:
            if event.request_id not in self.lives:
                self._happen(event, at)
            self.lives[event.request_id].in_flight = 0
        for action in opening.running:
            self._act(action, now)

    def read(
        self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision] = ()
    ) -> None:
        """Take in one call of the scheduler."""
        self.now = now
        if type(event) is BatchCompleted:  # as mostly
            self._complete(event, now)
        else:
            self._happen(event, now)
        for action in actions:
            self._act(action, now)
        for decision in why:
            if decision.step == PROMISED:
                self._promise(decision)

    def settle(self) -> None:
        """Work out what has been put off: then all is as the calls so far have made it."""
        for line in self._lines.values():
            line.settle(self.slots, self.totals)

    # events

    def _happen(self, event: Event, now: float) -> None:
        match event:
            case RequestArrived():
                if event.request_id not in self.lives:
                    life = self._begin(event.request_id, now, event.num_prompt_tokens, event.max_tokens)
                    life.priority, life.tenant = event.service.priority, event.service.tenant
            case RequestAborted(request_id):
                self._part(request_id)
                self._end(request_id, "abort", now)
            case FirstStageFree(batch_id):
                self.spans.leave_first_stage(batch_id, now)
            case KVMigrated(migration_id):
                self.spans.end(self.spans.moves.pop(migration_id, None), now)
                if (move := self._moves.pop(migration_id, None)) is not None:
                    self._part(move.request_id)
                    self.slots.end_move(move)
            case InstanceJoined() | InstanceLeaving() | InstanceLost():
                self._change(event.instance, _STATES[type(event)], now)

    def _change(self, instance: int, state: State, now: float) -> None:
        """An instance joins the fleet, or leaves it. It may be told again that it is lost."""
        if self.instances.get(instance) == state:
            return
        self.instances[instance] = state
        if state == "lost":
            self._part()
            self._recount(self.slots.lose(instance))
        self.news.append(News(now, state, instance=instance))

    def _begin(self, request_id: str, now: float, prompt: int, max_tokens: int) -> Life:
        self._arrivals += 1
        life = self.lives[request_id] = self.waiting[request_id] = Life(
            self._numbers.get(request_id, self._arrivals), request_id, now, prompt, max_tokens
        )
        return life

    def _complete(self, event: BatchCompleted, now: float) -> None:
        self.spans.end(self.spans.batches.pop(event.batch_id, None), now)
        batch = self._batches.pop(event.batch_id, None)
        line = None if batch is None else self._lines.get(batch.group)
        if line is not None and line.complete(event, now):
            return
        self.settle()
        for segment in batch.segments if batch is not None else ():
            life = self.lives.get(segment.request_id)
            if life is None:
                continue
            life.in_flight -= 1
            if segment.start < life.prompt:
                self.totals.prompt_tokens += min(segment.end, life.prompt) - segment.start
            life.computed += segment.length
            for name, tokens in self.slots.others_of(segment):
                if name in self.lives:
                    self.lives[name].computed += tokens
        for output in event.outputs:
            if (life := self.lives.get(output.request_id)) is not None:
                self._emit(life, now)
                if output.finish_reason is not None:
                    self._part(output.request_id)
                    self._end(output.request_id, output.finish_reason, now)

    def _emit(self, life: Life, now: float) -> None:
        self.totals.output_tokens += 1
        life.emit(now)
        if life.output == 1:
            self.ttft.add(life.size, now, now - life.arrived)

    def _end(self, request_id: str, reason: str, now: float) -> None:
        life = self.lives.pop(request_id, None)
        if life is None:
            return
        life.ended = reason
        if self.waiting.pop(request_id, None) is None:
            self.draining[request_id] = life
        if (tpot_s := life.tpot_s) is not None:
            self.tpot.add(life.size, now, tpot_s)
        if reason in ("stop", "length"):
            self.totals.answered += 1
        else:
            self.totals.turned_away += 1
        self.ended.append(life)

    def _part(self, request_id: str | None = None) -> None:
        """The batches that the request is in do not go on as they were; None: those of all do not."""
        self.settle()
        for group in [group for group, line in self._lines.items() if request_id is None or request_id in line.ids]:
            del self._lines[group]

    # actions

    def _act(self, action: Action, now: float) -> None:
        match action:
            case RunBatch():
                self._run(action, now)
            case MigrateKV():
                self._part(action.request_id)
                self.totals.migrations += 1
                self.slots.begin_move(action)
                self._issue(action, now)
            case FreeKV():
                self.settle()
                self.slots.free(action)
            case StopRequest(request_id, _, reason):
                self._part(request_id)
                self._stop(request_id, reason, now)
            case RefuseRequest(request_id):
                self._refuse(request_id, action.reason, now)
            case CancelBatch():
                self._part()
                self._cancel(action)

    def _run(self, batch: RunBatch, now: float) -> None:
        line = self._lines.pop(batch.group, None)
        if line is not None and line.take(batch):
            self._batches[batch.batch_id] = batch
            self.spans.issue_again(batch.batch_id, line.ran, now)
            self._lines[batch.group] = line
            return
        if line is not None:
            line.settle(self.slots, self.totals)
        self.settle()
        for segment in batch.segments:
            self.slots.store(segment)
        ran = self._issue_batch(batch, now)
        if (begun := Line.begin(batch, self.lives, ran)) is not None:
            self._lines[batch.group] = begun

    def _issue(self, action: RunBatch | MigrateKV, now: float) -> None:
        if isinstance(action, RunBatch):
            self._issue_batch(action, now)
            return
        self._moves[action.migration_id] = action
        found = self.lives.get(action.request_id) or self.draining.get(action.request_id)
        self.spans.issue_move(action, 0 if found is None else found.number, now)

    def _issue_batch(self, action: RunBatch, now: float) -> Running:
        self._batches[action.batch_id] = action
        named: list[tuple[int, int]] = []
        for segment in action.segments:
            life = self.lives.get(segment.request_id)
            if life is None:  # for nobody any more
                gone = self.draining.get(segment.request_id)
                named.append((0 if gone is None else gone.number, segment.length))
                continue
            named.append((life.number, segment.length))
            life.in_flight += 1
            if self.waiting.pop(segment.request_id, None) is not None:
                life.found = life.computed = segment.start
                life.started = now if life.started is None else life.started
        return self.spans.issue(action, named, now)

    def _cancel(self, action: CancelBatch) -> None:
        """Take back what is void, the last first."""
        touched: dict[str, None] = {}
        for batch_id in reversed(action.batch_ids):
            self.spans.batches.pop(batch_id, None)
            batch = self._batches.pop(batch_id, None)
            for segment in reversed(batch.segments) if batch is not None else ():
                touched |= dict.fromkeys([segment.request_id, *[name for name, _ in self.slots.others_of(segment)]])
                self.slots.take_back(segment)
                if (life := self.lives.get(segment.request_id)) is not None:
                    life.in_flight -= 1
        for migration_id in action.migration_ids:
            self.spans.moves.pop(migration_id, None)
            if (move := self._moves.pop(migration_id, None)) is not None:
                self.slots.cancel_move(move)
        self._recount(touched)

    def _recount(self, request_ids: Iterable[str]) -> None:
        """Requests have lost KV, or work that would have stored some: they go on with what they have."""
        for request_id in request_ids:
            if (life := self.lives.get(request_id)) is not None:
                life.computed = sum([tokens for _, tokens in self.slots.of_request(request_id)])
                if not self.slots.holds(request_id):
                    self.waiting[request_id] = life

    def _stop(self, request_id: str, reason: str, now: float) -> None:
        self.slots.release(request_id)
        if reason != "preempted":
            self.draining.pop(request_id, None)
            self._end(request_id, "unknown", now)  # by an event that this log lacks
            self.draining.pop(request_id, None)
            return
        self.totals.preemptions += 1
        if (life := self.lives.get(request_id)) is not None:
            life.preemptions += 1
            life.computed = 0
            self.waiting[request_id] = life
            self.news.append(News(now, "preempted", request=request_id))

    def _refuse(self, request_id: str, reason: str, now: float) -> None:
        self.waiting.pop(request_id, None)
        if (life := self.lives.pop(request_id, None)) is not None:
            life.ended = f"refused: {reason}"
            self.totals.turned_away += 1
            self.ended.append(life)
            self.news.append(News(now, "refused", request=request_id, detail=reason))

    def _promise(self, decision: Decision) -> None:
        told = [decision.predicted.get(name) for name in _QUOTED]
        for request_id in decision.request_ids:
            life = self.lives.get(request_id) or (self.ended[-1] if self.ended else None)
            if life is not None and life.id == request_id:
                median_s, quote_s, promised_s, deadline_s = [value or 0.0 for value in told]
                life.quote = (median_s, quote_s, promised_s, deadline_s)
