"""What happened, as one line of JSON: what the lines before it tell already is left out (docs/event_log.md)."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import msgspec

from longspan.core.actions import (
    Action,
    CancelBatch,
    FreeKV,
    InstanceDrained,
    KVRange,
    MigrateKV,
    RefuseRequest,
    RunBatch,
    Segment,
    StopRequest,
)
from longspan.core.decision import Decision
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
    TokenOutput,
)
from longspan.metrics.event_log.history import Clock, History, ResidenceNumbers, context_behind, shorten
from longspan.service_level import DEFAULT_SERVICE


class _Line:
    """Batches of one group that repeat each other, each one token further; what makes that cheap to see.

    segments: of the newest. rest: see `History`. outputs: what each has when no request ends with it.
    """

    __slots__ = ("_may_repeat", "outputs", "rest", "segments")

    def __init__(self, segments: Sequence[Segment], rest: tuple[Segment, ...]) -> None:
        self.segments, self.rest = segments, rest
        self.outputs = tuple([TokenOutput(segment.request_id) for segment in segments if segment.emits])
        self._may_repeat: bool | None = None

    def repeated(self) -> list[int]:
        """Return how a batch is told that is the newest, one token further."""
        return [-len(self.rest), len(self.segments)] if self.rest else [len(self.segments)]

    def is_repeated_by(self, segments: Sequence[Segment]) -> bool:
        """Tell whether these are its own, one token further, and of the simple kind."""
        before = self.segments
        if not segments or len(segments) != len(before) or segments[-1].request_id != before[-1].request_id:
            return False
        if self._may_repeat is None:
            self._may_repeat = len(self.outputs) == len(before) and all(map(_is_simple, before))
        return self._may_repeat and _is_same_again(segments, before)


class RecordEncoder:
    """Encodes the records of one piece, in order; `next_piece` is what the piece behind it needs to know of them."""

    def __init__(self) -> None:
        self._history: History[_Line] = History()
        self._running: dict[int, tuple[RunBatch, _Line]] = {}
        self._clock = Clock()
        self._json = msgspec.json.Encoder()
        self._arrived: dict[str, tuple[float, RequestArrived]] = {}
        self._migrations: dict[int, MigrateKV] = {}
        self._residences = ResidenceNumbers()

    def encode(self, now: float, event: Event, actions: Sequence[Action], why: Sequence[Decision] = ()) -> bytes:
        """Return the line, with its end. Raises whatever msgspec raises, for values that JSON cannot carry."""
        if type(event) is BatchCompleted:
            line = [self._clock.encode(now), self._completed(event)]
        else:
            self._history.group = None
            line = [self._clock.encode(now), self._event(now, event)]
        before: Action | None = None
        for action in actions:
            if type(action) is StopRequest and self._is_freed_by(action, before):  # as mostly: both are one
                line[-1] = ["free", self._stopped(action), action.instances, action.reason]
            else:
                line.append(self._batch(action) if type(action) is RunBatch else self._action(action))
            before = action
        if why:
            line.append({"why": [self._decision(decision) for decision in why]})
        return self._json.encode(line) + b"\n"

    def next_piece(self) -> tuple[RecordEncoder, dict[str, Any]]:
        """Return an encoder for it, and what its header says of requests that are alive and work that runs."""
        following = RecordEncoder()
        requests = [[now, *following._arrive(now, event)] for now, event in self._arrived.values()]
        residences = self._residences
        known = [[following._known(request_id), number] for request_id, number in residences.known.items()]
        following._residences = residences.copy()
        running = [following._batch(batch) for batch, _ in self._running.values()]
        running += [following._action(migration) for migration in self._migrations.values()]
        header = {"requests": requests, "running": running, "residences": [residences.following, *known]}
        return following, {name: value for name, value in header.items() if value}

    # events

    def _event(self, now: float, event: Event) -> Any:
        match event:
            case RequestArrived():
                return ["arrive", *self._arrive(now, event)]
            case RequestAborted(request_id):
                return ["abort", self._last_word(request_id)]
            case FirstStageFree(batch_id):
                return ["left", batch_id]
            case KVMigrated(migration_id):
                self._migrations.pop(migration_id, None)
                return ["moved", migration_id]
            case InstanceLost(instance, returns):
                return ["lost", instance] if returns else ["lost", instance, False]
            case InstanceJoined(instance, kv_tokens):
                return ["joined", instance, kv_tokens]
            case InstanceLeaving(instance):
                return ["leaving", instance]
        raise TypeError(f"{event!r} is no event")

    def _arrive(self, now: float, event: RequestArrived) -> list[Any]:
        code = [self._name(event.request_id), event.num_prompt_tokens, event.max_tokens]
        self._arrived[event.request_id] = now, event
        if event.prefix_keys:
            return [*code, None if event.service == DEFAULT_SERVICE else event.service, event.prefix_keys]
        return code if event.service == DEFAULT_SERVICE else [*code, event.service]

    def _completed(self, event: BatchCompleted) -> Any:
        batch_id, outputs = event.batch_id, event.outputs
        found = self._running.pop(batch_id, None)
        if found is None:
            self._history.group = None
            return self._completed_in_full(event)
        batch, line = found
        self._history.group = batch.group
        if outputs == line.outputs:
            return batch_id
        if [output.request_id for output in outputs] != [output.request_id for output in line.outputs]:
            return self._completed_in_full(event)
        code: list[Any] = [batch_id]
        for place, output in enumerate(outputs):
            if output.finish_reason is not None:
                code += place, output.finish_reason
            if output.prefix_keys:
                code += place, [output.prefix_keys]
        return code

    def _completed_in_full(self, event: BatchCompleted) -> list[Any]:
        outputs = [
            [self._known(output.request_id), *([] if output.finish_reason is None else [output.finish_reason]),
             *([[output.prefix_keys]] if output.prefix_keys else [])]
            for output in event.outputs
        ]  # fmt: skip
        return ["done", event.batch_id, *outputs]

    # actions

    def _action(self, action: Action) -> list[Any]:
        match action:
            case MigrateKV():
                return self._migration(action)
            case FreeKV(residence, instances, ranges):
                return ["drop", residence, instances, *ranges]
            case StopRequest(_, instances, reason):
                return ["stop", self._stopped(action), instances, reason]
            case RefuseRequest(request_id, message, reason, retry_after_s):
                later = [] if retry_after_s is None else [retry_after_s]
                return ["refuse", self._last_word(request_id), message, reason, *later]
            case CancelBatch(batch_ids, migration_ids, instances):
                for batch_id in batch_ids:
                    self._running.pop(batch_id, None)
                for migration_id in migration_ids:
                    self._migrations.pop(migration_id, None)
                return ["cancel", batch_ids, migration_ids, instances]
            case InstanceDrained(instance):
                return ["drained", instance]
        raise TypeError(f"{action!r} is no action")

    def _migration(self, action: MigrateKV) -> list[Any]:
        migration_id, ends = action.migration_id, (action.source, action.target)
        self._migrations[migration_id] = action
        residences = [action.residence, *_flat(action.earlier)]
        if action.is_copy:
            self._residences.skip(action.into)
            return ["copy", migration_id, action.into, residences, *ends, *action.ranges]
        whose: Any = self._name(action.request_id) if action.request_id else None
        if action.residence != self._residences.of(action.request_id) or action.earlier:
            whose = [whose, *residences]
        return ["move", migration_id, whose, *ends, *action.ranges]

    def _is_freed_by(self, stop: StopRequest, before: Action | None) -> bool:
        """Whether the action before frees the whole residence of the request on the same instances."""
        return (
            type(before) is FreeKV and not before.ranges and before.instances == stop.instances
            and before.residence == self._residences.known.get(stop.request_id)
        )  # fmt: skip

    def _stopped(self, stop: StopRequest) -> int | str:
        self._residences.drop(stop.request_id)
        known = self._known(stop.request_id)
        return known if stop.reason == "preempted" else self._last_word(stop.request_id)

    def _batch(self, batch: RunBatch) -> Any:
        """A number alone: the group of the batch that ended goes on, one token further."""
        history, batch_id, group, segments = self._history, batch.batch_id, batch.group, batch.segments
        base = history.latest.get(group)
        if base is not None and base.is_repeated_by(segments):
            base.segments = segments
            self._running[batch_id] = batch, base
            return batch_id if group == history.group else ["run", batch_id, group, *base.repeated()]
        if base is None:
            parts: list[Any] = [self._segment(segment) for segment in segments]
            rest: tuple[Segment, ...] = ()
        else:
            parts = self._parts(segments, [*base.rest, *base.segments])
            repeats = parts == base.repeated()
            rest = base.rest if repeats else history.rest_behind(segments, base.rest, base.segments)
        line = _Line(segments, rest)
        self._running[batch_id] = batch, line
        history.set_latest(group, line)
        if base is not None and group == history.group and parts == base.repeated():
            return batch_id
        return ["run", batch_id, group, *parts]

    def _parts(self, segments: Sequence[Segment], before: Sequence[Segment]) -> list[Any]:
        """Numbers: so many of those before go on, or if it is below 0, are left out. Lists: one segment."""
        parts: list[Any] = []
        places: dict[str, int] | None = None
        place = count = 0
        for segment in segments:
            if place < len(before) and before[place].request_id == segment.request_id:
                found = place
            else:
                if places is None:
                    places = {old.request_id: number for number, old in enumerate(before)}
                found = places.get(segment.request_id, -1)
            if found < place or not _goes_on(segment, before[found]):
                parts += [count] * (count > 0)
                count = 0
                parts.append(self._segment(segment))
                continue
            is_step = segment.length == 1 and segment.emits
            if found > place or not is_step:
                parts += [count] * (count > 0) + [place - found] * (found > place)
                count = 0
            place = found + 1
            if is_step:
                count += 1
            else:
                parts.append([segment.length] if segment.emits else [segment.length, False])
        return [*parts, count] if count else parts

    def _segment(self, segment: Segment) -> list[Any]:
        """In full, without what follows from the rest: that the one that computes keeps all, no context, a token."""
        store = _store(segment)
        code: list[Any] = [self._name(segment.request_id), segment.start, segment.length, segment.compute]
        is_expected = segment.residence == self._residences.expected(segment.request_id) and not segment.earlier
        self._residences.take(segment.request_id, segment.residence)
        if not is_expected or segment.cuts:
            residences = [segment.residence, *_flat(segment.earlier)]
            code = [*code, store, _flat(segment.context), segment.emits, residences]
            return [*code, segment.cuts] if segment.cuts else code
        if not segment.emits:
            return [*code, store, _flat(segment.context), False]
        if segment.context:
            return [*code, store, _flat(segment.context)]
        return code if store is None else [*code, store]

    # why

    def _decision(self, decision: Decision) -> list[Any]:
        values: dict[str, float | str] = {}
        for name, predicted in decision.predicted.items():
            value = float(predicted)
            values[shorten(name, decision.request_ids)] = value if isfinite(value) else str(value)
        code = [decision.step, [self._known(name) for name in decision.request_ids], decision.instances, values]
        while len(code) > 2 and not code[-1]:
            code.pop()
        return code

    # requests

    def _name(self, request_id: str) -> int | str:
        """Its number; in full at first, which gives it one."""
        number = self._history.numbers.get(request_id)
        if number is None:
            self._history.introduce(request_id)
            return request_id
        return number

    def _known(self, request_id: str) -> int | str:
        """Its number; in full if it has none."""
        return self._history.numbers.get(request_id, request_id)

    def _last_word(self, request_id: str) -> int | str:
        """As `_known`, and it is forgotten."""
        known = self._known(request_id)
        self._history.forget(request_id)
        self._arrived.pop(request_id, None)
        return known


def _is_simple(segment: Segment) -> bool:
    """Whether one instance computes and keeps it, and holds all before it."""
    start, compute = segment.start, segment.compute
    if len(compute) != 1 or segment.store != (KVRange(compute[0], start, start + segment.length),):
        return False
    if segment.earlier or segment.cuts:
        return False
    return segment.context == (((compute[0], start),) if start else ())


def _is_same_again(segments: Sequence[Segment], before: Sequence[Segment]) -> bool:
    """Whether these are simple segments one token behind those before, which are simple. (The loop that costs.)"""
    try:
        for new, old in zip(segments, before, strict=True):
            start = new.start
            (kept,), ((instance, tokens),) = new.store, new.context
            if (
                start != old.start + old.length or new.request_id != old.request_id or new.compute != old.compute
                or new.length != 1 or not new.emits or tokens != start or kept.start != start
                or kept.end != start + 1 or kept.instance != instance or (instance,) != new.compute
                or new.residence != old.residence or new.earlier or new.cuts
            ):  # fmt: skip
                return False
    except ValueError:  # several instances keep or hold it
        return False
    return True


def _goes_on(new: Segment, old: Segment) -> bool:
    """Whether `new` is what `continued` makes of `old`."""
    start, compute, store = old.start + old.length, old.compute, new.store
    if new.start != start or new.request_id != old.request_id or new.compute != compute:
        return False
    if len(compute) != 1 or len(store) != 1:
        return False
    kept = store[0]
    if kept.start != start or kept.end != start + new.length or kept.instance != compute[0]:
        return False
    if new.cuts or old.cuts or (new.residence, new.earlier) != (old.residence, old.earlier):
        return False
    return new.context == context_behind(old)


def _store(segment: Segment) -> list[int] | list[tuple[int, int, int]] | None:
    """None: all of it at the one that computes. Else instance, tokens, instance, tokens ... in order, or ranges."""
    whole = (KVRange(segment.compute[0], segment.start, segment.end),) if len(segment.compute) == 1 else None
    if segment.store == whole:
        return None
    position = segment.start
    flat: list[int] = []
    for kept in segment.store:
        if kept.start != position:
            return [(kept.instance, kept.start, kept.end) for kept in segment.store]
        flat += kept.instance, kept.end - kept.start
        position = kept.end
    return flat


def _flat(pairs: Sequence[tuple[int, int]]) -> list[int]:
    return [number for pair in pairs for number in pair]
