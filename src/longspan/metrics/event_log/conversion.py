"""Headers and records of older versions, as those of this one. Whatever an old log says otherwise passes through here.

Version 1 had an object for each line, with everything in full:

    {"version": 1, "config": {...}, "cost_model": {...}}
    {"now": 3.25, "event": {"type": "RequestArrived", ...}, "actions": [{"type": "RunBatch", ...}, ...],
     "why": [{"step": "batch", ...}, ...]}

Versions 1 and 2 knew no residences: each request had one, and freeing it and the request's end were one action. What is
an option of a policy now was in the config, whichever policy it was, and ablations of LoongServe were policies with
names of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any, Literal, Protocol

import msgspec
from msgspec.structs import replace as with_changes

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, FreeKV, MigrateKV, RefuseRequest, RunBatch, Segment, StopRequest
from longspan.core.decision import Decision
from longspan.core.events import Event, RequestArrived
from longspan.core.policies import ALIASES, MOVED_SETTINGS, POLICIES, create_policy, policy_text, split_policy
from longspan.core.policies.options import format_policy, options_of
from longspan.metrics.event_log.decoder import Content, RecordDecoder
from longspan.metrics.event_log.history import FORMAT_VERSION, ResidenceNumbers

RENAMED_OPTIONS: dict[str, str] = {}
"""Of `SchedulerConfig`: what an option was called -> what it is called."""


class Header(msgspec.Struct, frozen=True):
    """The first line of a piece. config: as the log has it, checked by `read_config`.

    policy: the name of the one that decided, options: its own; own_policy: its class, if it is not known by that name.
    requests, running, residences: see `RecordDecoder`.
    """

    config: dict[str, Any]
    policy: str
    version: int
    run: str = ""
    piece: int = 1
    options: dict[str, Any] = {}
    own_policy: str | None = None
    cost_model: dict[str, Any] | None = None
    requests: tuple[Any, ...] = ()
    running: tuple[Any, ...] = ()
    residences: tuple[Any, ...] = ()


class Decoder(Protocol):
    requests: list[tuple[float, RequestArrived]]
    running: list[Action]
    residences: ResidenceNumbers

    def decode(self, text: bytes) -> Content: ...


def read_header(text: bytes) -> Header:
    """Read the first line. Raises ValueError (of which msgspec's errors are some)."""
    try:
        content = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"this is no event log, whose first line is an object of JSON ({error})") from error
    version = content.get("version")
    if version == 1:
        config = content.get("config")
        if not isinstance(config, dict):
            raise ValueError(f"the header's config is {config!r}, but must be an object")
        content["policy"] = config.get("policy", SchedulerConfig().policy)
    elif version not in range(2, FORMAT_VERSION + 1):
        raise ValueError(f"version {version!r}, but this reads 1 to {FORMAT_VERSION}")
    header = msgspec.convert(content, Header)
    if header.piece < 1:
        raise ValueError(f"it is piece {header.piece}, but they count from 1")
    return header


def read_config(header: Header) -> tuple[SchedulerConfig, list[str]]:
    """With the policy and its options, as they are written now; and what there is to say about options that are written
    otherwise now, or unknown.

    Raises ConfigError, ValueError: an option is out of range, or of another type.
    """
    if header.version == FORMAT_VERSION:
        config, notes = _read_knobs(header.config)
        policy, options = header.policy, header.options
    else:
        # A policy that has such an option goes by it; others did not look at it.
        of_policy = {name: value for name, value in header.config.items() if name in MOVED_SETTINGS}
        config, notes = _read_knobs({k: v for k, v in header.config.items() if k not in of_policy})
        policy, options = header.policy, {}
        if header.own_policy is None:
            policy, options, more = _read_old_policy(header.policy, of_policy)
            notes += more
    if header.own_policy is None and policy in POLICIES:
        policy = policy_text(create_policy(policy, options))
    return replace(config, policy=policy), notes


def _read_old_policy(name: str, of_policy: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """Of versions 1 and 2: the policy's name of today, its options, and what there is to say."""
    policy, given = split_policy(name)
    notes = [f"its policy {name} is written {ALIASES[name]} now"] if name in ALIASES else []
    if policy not in POLICIES:
        return policy, {}, notes
    defaults = options_of(create_policy(policy))
    moved = {option: value for option, value in of_policy.items() if option in defaults}
    changed = {option: value for option, value in moved.items() if value != defaults[option]}
    notes += [f"its option {name} is written {format_policy(policy, {name: v})} now" for name, v in changed.items()]
    return policy, given | moved, notes


def _read_knobs(options: dict[str, Any]) -> tuple[SchedulerConfig, list[str]]:
    known = {field.name for field in fields(SchedulerConfig)}
    given: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in options.items():
        present = name if name in known else RENAMED_OPTIONS.get(name)
        if present is None:
            notes.append(f"its option {name} = {value!r} is unknown to this version of Longspan, and left out")
            continue
        if present != name:
            notes.append(f"its option {name} is called {present} now")
        given[present] = value
    return msgspec.convert(given, SchedulerConfig), notes


def make_decoder(header: Header, before: ResidenceNumbers | None = None) -> Decoder:
    """Return a decoder of the piece's version. before: where the piece before came to. Raises ValueError."""
    if header.version == 1:
        return Version1Decoder()
    residences = before.copy() if before is not None and header.version == 2 else header.residences
    return RecordDecoder(header.requests, header.running, residences, names_residences=header.version > 2)


class _FreeKV(msgspec.Struct, tag="FreeKV"):
    """Of version 1."""

    request_id: str
    instances: tuple[int, ...]
    reason: Literal["finished", "aborted", "preempted"]


class _Line(msgspec.Struct):
    now: float
    event: Event
    actions: tuple[RunBatch | MigrateKV | _FreeKV | RefuseRequest, ...]
    why: tuple[Decision, ...] = ()


class Version1Decoder:
    """Each line stands for itself, but for residences, which it does not name."""

    def __init__(self) -> None:
        self.requests: list[tuple[float, RequestArrived]] = []
        self.running: list[Action] = []
        self.residences = ResidenceNumbers()
        self._decoder = msgspec.json.Decoder(_Line)

    def decode(self, text: bytes) -> Content:
        line = self._decoder.decode(text)
        actions = [converted for action in line.actions for converted in self._converted(action)]
        return line.now, line.event, tuple(actions), line.why

    def _converted(self, action: RunBatch | MigrateKV | _FreeKV | RefuseRequest) -> Iterator[Action]:
        match action:
            case RunBatch(batch_id, group, segments):
                yield RunBatch(batch_id, group, tuple(map(self._with_residence, segments)))
            case MigrateKV(request_id=request_id):
                yield with_changes(action, residence=self.residences.of(request_id))
            case _FreeKV(request_id, instances, reason):
                yield FreeKV(self.residences.of(request_id), instances)
                yield StopRequest(request_id, instances, reason)
                self.residences.drop(request_id)
            case RefuseRequest():
                yield action

    def _with_residence(self, segment: Segment) -> Segment:
        number = self.residences.expected(segment.request_id)
        self.residences.take(segment.request_id, number)
        return with_changes(segment, residence=number)
