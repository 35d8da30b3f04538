"""The inverse of `encoder`: lines of a piece, in order, back to what happened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar, cast, get_args

import msgspec
from msgspec.structs import replace

from longspan.core.actions import (
    Action,
    CancelBatch,
    FreeKV,
    InstanceDrained,
    KVRange,
    MigrateKV,
    RefuseReason,
    RefuseRequest,
    RunBatch,
    Segment,
    StopReason,
    StopRequest,
)
from longspan.core.decision import Decision
from longspan.core.events import (
    BatchCompleted,
    Event,
    FinishReason,
    FirstStageFree,
    FleetEvent,
    InstanceJoined,
    InstanceLeaving,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
    TokenOutput,
)
from longspan.metrics.event_log.history import Clock, History, ResidenceNumbers, continued, lengthen
from longspan.prefix_keys import KEY_BYTES
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

Content = tuple[float, Event, tuple[Action, ...], tuple[Decision, ...]]

T = TypeVar("T")


class _Line(NamedTuple):
    """The segments of a group's newest batch, and the rest behind which they are (see `History`)."""

    segments: tuple[Segment, ...] = ()
    rest: tuple[Segment, ...] = ()


_NOTHING = _Line()


class RecordDecoder:
    """Decodes the records of one piece, in order.

    requests, running: what the header gave: requests that had arrived before, with the times, and work in flight.
    residences: which residence each request writes.
    """

    def __init__(
        self, requests: Iterable[Any] = (), running: Iterable[Any] = (),
        residences: Sequence[Any] | ResidenceNumbers = (), *, names_residences: bool = True,
    ) -> None:  # fmt: skip
        """residences: the header's, or of a piece that says nothing of them, those behind the piece before.

        names_residences: what goes on does so in its residence; in version 2, in whatever the request's was.

        Raises ValueError: a header of nonsense.
        """
        self._names_residences = names_residences
        self._history: History[_Line] = History()
        self._running: dict[int, RunBatch] = {}
        self._clock = Clock()
        self.requests: list[tuple[float, RequestArrived]] = []
        for code in requests:
            now, *rest = _list(code)
            self.requests.append((_number(now), self._arrived(rest)))
        self.residences = residences if isinstance(residences, ResidenceNumbers) else self._numbers(residences)
        self.running: list[Action] = [action for code in running for action in self._actions(code)]

    def decode(self, text: bytes) -> Content:
        """Decode a line. Raises ValueError (msgspec's are some): it is no record, or does not follow those before."""
        line = _list(msgspec.json.decode(text))
        if len(line) < 2:
            raise ValueError("a record has a time and an event")
        code, event_code, *rest = line
        if type(code) is not int and type(code) is not float:
            raise ValueError(f"its time is {code!r}")
        now = self._clock.decode(code)
        self._history.group = None
        event = self._event(event_code)
        why: tuple[Decision, ...] = ()
        told = rest.pop() if rest and isinstance(rest[-1], dict) else None
        actions = tuple([action for code in rest for action in self._actions(code)])
        if told is not None:
            why = tuple([self._decision(code) for code in _list(told.get("why"))])
        return now, event, actions, why

    # events

    def _event(self, code: Any) -> Event:
        if type(code) is int:
            return self._completed(code, ())
        kind, *rest = _list(code)
        match kind, rest:
            case int(), _:
                return self._completed(_int(kind), rest)
            case "done", [batch_id, *outputs]:
                batch = self._running.pop(_int(batch_id), None)
                self._history.group = None if batch is None else batch.group
                return BatchCompleted(batch_id, tuple([self._output(output) for output in outputs]))
            case "arrive", _:
                return self._arrived(rest)
            case "abort", [request]:
                return RequestAborted(self._last_word(request))
            case "left", [batch_id]:
                return FirstStageFree(_int(batch_id))
            case "moved", [migration_id]:
                return KVMigrated(_int(migration_id))
        return _fleet_event(kind, rest)

    def _arrived(self, code: Sequence[Any]) -> RequestArrived:
        if not 3 <= len(code) <= 5:
            raise ValueError("an arrival has an id, its prompt's tokens, and its max_tokens")
        is_default = len(code) == 3 or (len(code) == 5 and code[3] is None)
        service = DEFAULT_SERVICE if is_default else msgspec.convert(code[3], ServiceLevel)
        keys = _keys(code[4]) if len(code) == 5 else b""
        return RequestArrived(self._name(code[0]), _int(code[1]), _int(code[2]), service, keys)

    def _completed(self, batch_id: int, ends: Sequence[Any]) -> BatchCompleted:
        batch = self._running.pop(batch_id, None)
        if batch is None:
            raise ValueError(f"batch {batch_id} does not run")
        self._history.group = batch.group
        outputs = [TokenOutput(segment.request_id) for segment in batch.segments if segment.emits]
        for place, reason in zip(ends[::2], ends[1::2], strict=True):
            if not 0 <= _int(place) < len(outputs):
                raise ValueError(f"batch {batch_id} has no output {place}")
            told = outputs[place]
            if isinstance(reason, list):
                outputs[place] = replace(told, prefix_keys=_keys(*reason))
            else:
                outputs[place] = replace(told, finish_reason=_one_of(reason, FinishReason))
        return BatchCompleted(batch_id, tuple(outputs))

    def _output(self, code: Any) -> TokenOutput:
        match code:
            case [request]:
                return TokenOutput(self._known(request))
            case [request, [keys]]:
                return TokenOutput(self._known(request), None, _keys(keys))
            case [request, reason, *rest] if len(rest) < 2:
                keys = _keys(*rest[0]) if rest else b""
                return TokenOutput(self._known(request), _one_of(reason, FinishReason), keys)
        raise ValueError(f"{code!r} is no output")

    # actions

    def _actions(self, code: Any) -> Iterator[Action]:
        if type(code) is int:
            yield self._again(code)
            return
        match _list(code):
            case ["free", request, instances, reason]:
                known = self._known(request)
                yield FreeKV(self.residences.of(known), _ints(instances))
                yield self._stop(known, instances, reason)
            case rest:
                yield self._action(rest)

    def _action(self, code: list[Any]) -> Action:
        match code:
            case ["run", batch_id, group, *parts]:
                return self._batch(_int(batch_id), _ints(group), parts)
            case ["move", migration_id, whose, source, target, *ranges]:
                name, *residences = whose if isinstance(whose, list) else [whose]
                request = "" if name is None else self._name(name)
                number, *flat = _ints(residences) if residences else (self.residences.of(request),)
                pairs = tuple([_pair(each) for each in ranges])
                earlier = tuple(zip(flat[::2], flat[1::2], strict=True))
                return MigrateKV(_int(migration_id), request, _int(source), _int(target), pairs, number, earlier)
            case ["copy", migration_id, into, [residence, *flat], source, target, *ranges]:
                self.residences.skip(_int(into))
                earlier = tuple(zip(_ints(flat)[::2], _ints(flat)[1::2], strict=True))
                pairs = tuple([_pair(each) for each in ranges])
                ends = _int(source), _int(target)
                return MigrateKV(_int(migration_id), "", *ends, pairs, _int(residence), earlier, _int(into))
            case ["drop", residence, instances, *ranges]:
                return FreeKV(_int(residence), _ints(instances), tuple([_pair(each) for each in ranges]))
            case ["stop", request, instances, reason]:
                return self._stop(self._known(request), instances, reason)
            case ["refuse", request, message, reason, *later] if isinstance(message, str) and len(later) < 2:
                retry_after_s = _number(later[0]) if later else None
                return RefuseRequest(self._last_word(request), message, _one_of(reason, RefuseReason), retry_after_s)
            case ["cancel", batch_ids, migration_ids, instances]:
                for batch_id in _ints(batch_ids):
                    self._running.pop(batch_id, None)
                return CancelBatch(_ints(batch_ids), _ints(migration_ids), _ints(instances))
            case ["drained", instance]:
                return InstanceDrained(_int(instance))
        raise ValueError(f"{code!r} is no action")

    def _stop(self, request_id: str, instances: Any, reason: Any) -> StopRequest:
        self.residences.drop(request_id)
        if reason != "preempted":
            self._history.forget(request_id)
        return StopRequest(request_id, _ints(instances), _one_of(reason, StopReason))

    def _again(self, batch_id: int) -> RunBatch:
        group = self._history.group
        base = None if group is None else self._history.latest.get(group)
        if base is None or group is None:
            raise ValueError(f"batch {batch_id} continues none")
        segments = tuple([self._continued(old, 1, True) for old in base.segments])
        return self._issue(RunBatch(batch_id, group, segments), base.rest)

    def _batch(self, batch_id: int, group: tuple[int, ...], parts: Sequence[Any]) -> RunBatch:
        latest = self._history.latest.get(group, _NOTHING)
        base = (*latest.rest, *latest.segments)
        place = 0
        segments: list[Segment] = []
        for part in parts:
            if type(part) is int:
                count, further = part, None
            elif isinstance(part, list) and 1 <= len(part) <= 2:
                count, further = 1, part
            else:
                segments.append(self._segment(_list(part)))
                continue
            following = place + abs(count)
            if following > len(base):
                raise ValueError(f"batch {batch_id} continues more than the {len(base)} segments of those before")
            if further is not None:
                emits = len(further) < 2 or _bool(further[1])
                segments.append(self._continued(base[place], _int(further[0]), emits))
            elif count > 0:
                segments += [self._continued(old, 1, True) for old in base[place:following]]
            place = following
        repeated = [-len(latest.rest), len(latest.segments)] if latest.rest else [len(latest.segments)]
        repeats = latest is not _NOTHING and parts == repeated
        rest = latest.rest if repeats else self._history.rest_behind(segments, latest.rest, latest.segments)
        return self._issue(RunBatch(batch_id, group, tuple(segments)), rest)

    def _continued(self, old: Segment, length: int, emits: bool) -> Segment:
        if self._names_residences:
            return continued(old, length, emits)
        return replace(continued(old, length, emits), residence=self.residences.of(old.request_id))

    def _issue(self, batch: RunBatch, rest: tuple[Segment, ...]) -> RunBatch:
        self._running[batch.batch_id] = batch
        self._history.set_latest(batch.group, _Line(batch.segments, rest))
        return batch

    def _segment(self, code: Sequence[Any]) -> Segment:
        if not 4 <= len(code) <= 9:
            raise ValueError(f"{code!r} is no segment")
        request_id, start, length = self._name(code[0]), _int(code[1]), _int(code[2])
        compute = _ints(code[3])
        store = _store(code[4] if len(code) > 4 else None, start, length, compute)
        flat = _ints(code[5]) if len(code) > 5 else ()
        context = tuple(zip(flat[::2], flat[1::2], strict=True))
        emits = len(code) < 7 or _bool(code[6])
        residence, *earlier = _ints(code[7]) if len(code) > 7 else (self.residences.expected(request_id),)
        self.residences.take(request_id, residence)
        pairs = tuple(zip(earlier[::2], earlier[1::2], strict=True))
        cuts = _ints(code[8]) if len(code) > 8 else ()
        return Segment(request_id, start, length, compute, store, context, emits, residence, pairs, cuts)

    # why

    def _decision(self, code: Any) -> Decision:
        if not isinstance(code, list) or not 2 <= len(code) <= 4 or not isinstance(code[0], str):
            raise ValueError(f"{code!r} is no decision")
        names = tuple([self._known(name) for name in _list(code[1])])
        predicted = code[3] if len(code) > 3 else {}
        if not isinstance(predicted, dict):
            raise ValueError(f"{predicted!r} are no predictions")
        values = {lengthen(name, names): float(value) for name, value in predicted.items()}
        return Decision(code[0], names, _ints(code[2]) if len(code) > 2 else (), values)

    # requests

    def _numbers(self, code: Sequence[Any]) -> ResidenceNumbers:
        following, *known = code or [0]
        return ResidenceNumbers(_int(following), {self._known(name): _int(number) for name, number in known})

    def _name(self, code: Any) -> str:
        if isinstance(code, str) and code not in self._history.numbers:
            self._history.introduce(code)
            return code
        return self._known(code)

    def _known(self, code: Any) -> str:
        if isinstance(code, str):
            return code
        name = self._history.names.get(_int(code))
        if name is None:
            raise ValueError(f"no request has the number {code} here")
        return name

    def _last_word(self, code: Any) -> str:
        request_id = self._known(code)
        self._history.forget(request_id)
        return request_id


def _fleet_event(kind: Any, rest: Sequence[Any]) -> FleetEvent:
    match kind, rest:
        case "lost", [instance, *returns] if len(returns) < 2:
            return InstanceLost(_int(instance), _bool(returns[0]) if returns else True)
        case "joined", [instance, kv_tokens]:
            return InstanceJoined(_int(instance), _int(kv_tokens))
        case "leaving", [instance]:
            return InstanceLeaving(_int(instance))
    raise ValueError(f"{kind!r} is no event, or not one with {len(rest)} values")


def _store(code: Any, start: int, length: int, compute: tuple[int, ...]) -> tuple[KVRange, ...]:
    if code is None:
        if len(compute) != 1:
            raise ValueError("it does not say who keeps the KV")
        return (KVRange(compute[0], start, start + length),)
    parts = _list(code)
    if parts and isinstance(parts[0], list):
        return tuple([KVRange(*_ints(part)) for part in parts])
    flat, position = _ints(parts), start
    store: list[KVRange] = []
    for instance, tokens in zip(flat[::2], flat[1::2], strict=True):
        store.append(KVRange(instance, position, position + tokens))
        position += tokens
    return tuple(store)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is no array")
    return cast("list[Any]", value)


def _int(value: Any) -> int:
    if type(value) is not int:
        raise ValueError(f"{value!r} is no whole number")
    return value


def _keys(value: Any) -> bytes:
    """Raises ValueError: it is no base64, or no whole keys."""
    keys: bytes = msgspec.convert(value, bytes)
    if not keys or len(keys) % KEY_BYTES:
        raise ValueError(f"{len(keys)} bytes are no keys of prefixes")
    return keys


def _number(value: Any) -> float:
    if type(value) is not int and type(value) is not float:
        raise ValueError(f"{value!r} is no number")
    return float(value)


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def _ints(value: Any) -> tuple[int, ...]:
    return tuple([_int(number) for number in _list(value)])


def _pair(value: Any) -> tuple[int, int]:
    start, end = _ints(value)
    return start, end


def _one_of(value: Any, allowed: Any) -> Any:
    if value not in get_args(allowed):
        raise ValueError(f"{value!r} is none of {', '.join(get_args(allowed))}")
    return value
