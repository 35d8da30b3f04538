"""The policy `longspan` decides vLLM's steps. No vLLM here, and no clock: it is told what happens, and when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch, Segment
from longspan.core.books.request import Request, RequestStatus
from longspan.core.events import BatchCompleted, RequestAborted, RequestArrived, TokenOutput
from longspan.core.news import News
from longspan.core.policies.chunked.feedback import Kind
from longspan.core.policies.chunked.predictor import Predictor
from longspan.integrations.vllm.columns import NOBODY, columns
from longspan.integrations.vllm.costs import LearnedCosts, Work
from longspan.integrations.vllm.journal import Journal
from longspan.integrations.vllm.policy import Decodes, VllmLongspan
from longspan.integrations.vllm.settings import AIM, IDLE_FIXED_SHARE, Settings
from longspan.integrations.vllm.view import INSTANCE, EngineView
from longspan.service_level import ServiceLevel
from longspan.tuning.targets import targets

EndReason = Literal["stop", "length", "abort"]

_GROUP = (INSTANCE,)
_OFF = 1.3
"""Corrections beyond so much, or below its inverse, call for another fit."""


class Scheduled(NamedTuple):
    """Whose tokens are in a step, in columns. names: ids, each once. starts: how many tokens of each are before these.
    outputs: how many it has generated, those on their way too. lengths: by id, how many are in the step. goes_on: of an
    id, whether there are more of its prompt behind these."""

    names: list[str]
    starts: list[int]
    outputs: list[int]
    lengths: Mapping[str, int]
    goes_on: Callable[[str], bool]


class Room(NamedTuple):
    """What vLLM has left. slots: of KV, tokens. seats: requests that may begin."""

    slots: int
    seats: int


@dataclass(frozen=True, slots=True)
class Plan:
    """A step. Every request that decodes takes part.

    chunks: tokens of each prompt that has begun, 0 of one that pauses, and of those that begin. begin: these, first
    things first. preempt: who loses its KV before.
    """

    chunks: Mapping[str, int]
    begin: Sequence[str]
    preempt: Sequence[str]


@dataclass(slots=True)
class _Step:
    """One that was issued. expected_s: seconds, corrected. is_logged: some request in it is ours to schedule."""

    batch: RunBatch
    work: Work
    begun: float
    expected_s: float
    is_logged: bool


@dataclass(slots=True)
class _News:
    arrived: list[Request] = field(default_factory=list)
    ended: list[Request] = field(default_factory=list)


class Decider:
    """Asks the policy for one step after the other, and keeps what it sees as vLLM tells.

    view: what the policy sees. `is_ready`: whether costs are known; until then vLLM decides as it would.
    """

    def __init__(self, config: SchedulerConfig, settings: Settings) -> None:
        """Raises ConfigError: the policy has no such option, or it cannot have such a value."""
        self.settings = settings
        self.policy = VllmLongspan(**{"idle_fixed_share": IDLE_FIXED_SHARE, **settings.policy})
        self.costs = LearnedCosts()
        self.view = EngineView(self._with_targets(config), self.costs.model)
        self._journal: Journal | None = None
        if settings.event_log is not None:
            self._journal = Journal(settings.event_log, self.view.config, self.costs.model, self.policy)
        self._news = _News()
        self._steps: deque[_Step] = deque()
        self._num_arrivals = self._num_batches = 0
        self._ended_by_output: dict[str, EndReason] = {}
        self._columns = NOBODY
        self._decoded: tuple[list[str], tuple[Segment, ...]] = [], ()  # in the step before

    @property
    def is_ready(self) -> bool:
        return self.costs.known

    @property
    def num_in_flight(self) -> int:
        """Steps that were issued and are not completed."""
        return len(self._steps)

    @property
    def log_path(self) -> Path | None:
        """The file that is written; none is wanted, or can be."""
        return None if self._journal is None else self._journal.path

    def told(self) -> str:
        """What was learned, for the log."""
        row, decode = self.costs.model.prefill_coefficients[0], self.costs.model.decode_coefficients[0]
        return (
            f"a step takes {1e3 * row.fixed:.3g} ms, {1e6 * row.per_token:.3g} us a token of a prompt and "
            f"{1e9 * row.per_pair:.3g} ns a pair, {1e6 * decode.per_request:.3g} us a decode and "
            f"{1e9 * decode.per_context_token:.3g} ns a token of its context; default TPOT "
            f"{1e3 * self.view.config.tpot_slo_s:.3g} ms, least deadline {self.view.config.ttft_slo_floor_s:.3g} s"
        )

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()

    # what happens

    def arrive(
        self, request_id: str, num_prompt_tokens: int, max_tokens: int, service: ServiceLevel, arrived: float,
        now: float,
    ) -> None:  # fmt: skip
        """A request has come. It does not begin before `ready` tells of it. arrived: when, perhaps before `now`."""
        request = Request(request_id, num_prompt_tokens, max_tokens, arrived, self._num_arrivals, service)
        self._num_arrivals += 1
        self.view.requests[request_id] = request
        self._news.arrived.append(request)
        if self._journal is not None:
            self._journal.event(now, RequestArrived(request_id, num_prompt_tokens, max_tokens, service))

    def knows(self, request_id: str) -> bool:
        return request_id in self.view.requests

    def is_queued(self, request_id: str) -> bool:
        """Tell whether it may begin, and has not."""
        return self.view.is_queued(self.view.requests[request_id])

    def ready(self, request_id: str, num_found: int) -> None:
        """It may begin. num_found: its first tokens, whose KV the prefix cache holds."""
        self.view.queue(self.view.requests[request_id], num_found)

    def found(self, request_id: str, num_found: int) -> None:
        """The prefix cache holds so much now of one that may begin."""
        request = self.view.requests[request_id]
        if self.view.find(request, num_found):
            self.policy.restand(self.view, request)

    def preempted(self, request_id: str, num_output_tokens: int) -> None:
        """It has lost its KV, which is no news where the policy wanted it so; nothing of it is on its way any more."""
        request = self.view.requests[request_id]
        request.num_output_tokens = num_output_tokens
        if request.status is not RequestStatus.WAITING:
            self._predictor().feedback.forget(request)
            self.view.drop(request)
        if self._journal is not None:
            self._journal.stop(request_id, "preempted")

    def end(self, request_id: str, reason: EndReason, now: float) -> None:
        """It has come to its end: of its own, which the step that brings its last token then tells, or aborted."""
        request = self.view.requests[request_id]
        is_own = reason != "abort"
        request.end_reason = "finished" if is_own else "aborted"
        self.view.end(request)
        if request in self._news.arrived:
            self._news.arrived.remove(request)
        else:
            self._news.ended.append(request)
        if is_own:
            self._ended_by_output[request_id] = reason
        elif self._journal is not None:
            self._journal.event(now, RequestAborted(request_id))
            self._journal.stop(request_id, "aborted")

    # a step

    def plan(self, room: Room, now: float, kept_back: Collection[str] = ()) -> Plan:
        """Return the next step. kept_back: who may not begin in it, for reasons of vLLM's."""
        view = self.view
        self._hear(now)
        for request_id in kept_back:
            view.waiting.remove(view.requests[request_id])
        view.preempted.clear()
        decodes = self._decodes(room.slots, self._begins(now))
        iteration, admitted = self.policy.step(view, decodes, room.slots, room.seats, now)
        for request_id in kept_back:
            view.waiting.add(view.requests[request_id])
        chunks = {chunk.request.id: chunk.length for part in iteration.parts() for chunk in part.chunks}
        # Who has just lost its KV does not begin again in the same step: vLLM's worker would not see that it did.
        begin = [name for name in admitted if name not in view.preempted][: max(0, room.seats)]
        if self._journal is not None:
            self._journal.explain((*view.take_decisions(), iteration.explained(_GROUP, chunks)))
        view.take_decisions()
        return Plan(dict.fromkeys(view.prefills, 0) | chunks, begin, list(view.preempted))

    def issued(self, scheduled: Scheduled, now: float) -> None:
        """A step has been issued: the plan's, or any other."""
        self._hear(now)
        view, decoding, lengths = self.view, self.view.decodes, scheduled.lengths
        others: list[tuple[str, int, int]] = []
        tokens = pairs = context = ahead = 0
        for row in zip(scheduled.names, scheduled.starts, scheduled.outputs, strict=True):
            request_id, start, outputs = row
            request = decoding.get(request_id)
            if request is None:
                others.append(row)
                continue
            end = start + lengths[request_id]
            context, ahead = context + start, ahead + end - request.num_computed
            request.num_computed, request.num_output_tokens = end, outputs + 1
        view.decode_tokens += ahead
        decodes = len(scheduled.names) - len(others)
        segments = [*self._decode_segments(scheduled)] if decodes else []
        for request_id, start, outputs in others:
            length, goes_on = lengths[request_id], scheduled.goes_on(request_id)
            segments.append(Segment(request_id, start, length, _GROUP, (), (), not goes_on))
            request = view.requests.get(request_id)
            if request is None:
                decodes, context = decodes + 1, context + start
                continue
            tokens, pairs = tokens + length, pairs + length * (length + 2 * start)
            if request.status is RequestStatus.WAITING:
                self.policy.begins(request)
            request.num_output_tokens = outputs + (not goes_on)
            view.run(request, start + length, goes_on)
        if segments:
            self._note_step(tuple(segments), Work(tokens, pairs, decodes, context), now)

    def completed(self, now: float) -> None:
        """The oldest step that was issued has run."""
        step = self._steps.popleft()
        if step.is_logged:
            self._write_completed(step.batch, now)
        self._ended_by_output.clear()
        self.costs.note(step.work, now - step.begun)
        self._observe(News((), self._news.ended, (step.batch,)), now)
        self._news.ended = []
        if self._steps:
            self._steps[0].begun = now
            self._predictor().feedback.begin(self._steps[0].batch.batch_id, now)
        elif self._journal is not None and not self.view.requests:
            self._journal.flush()
        self._renew()

    # inside

    def _predictor(self) -> Predictor:
        return self.policy.known(self.view)

    def _hear(self, now: float) -> None:
        """Let the policy know who has come, and who has ended without a step's end."""
        news, self._news = self._news, _News()
        self._observe(News(news.arrived, news.ended), now)

    def _observe(self, news: News, now: float) -> None:
        if news.arrived or news.ended or news.completed:
            self.policy.observe(self.view, news, now)
            if self._journal is not None:
                self._journal.explain(self.view.take_decisions())

    def _begins(self, now: float) -> float:
        """When a step that is planned now will begin."""
        if not self._steps:
            return now
        return max(now, self._steps[0].begun + sum([step.expected_s for step in self._steps]))

    def _note_step(self, segments: tuple[Segment, ...], work: Work, now: float) -> None:
        predictor = self._predictor()
        kind: Kind = "decode" if not work.tokens else "mixed" if work.decodes else "prefill"
        batch = RunBatch(self._num_batches, _GROUP, segments)
        self._num_batches += 1
        predicted_s = work.seconds(self.costs.model)
        predictor.feedback.expect(batch.batch_id, now, predicted_s, kind)
        is_logged = self._journal is not None and any([s.request_id in self.view.requests for s in segments])
        self._steps.append(_Step(batch, work, now, predicted_s * predictor.feedback.scale(kind), is_logged))
        if self._journal is not None and is_logged:
            self._journal.run(batch)

    def _decodes(self, slots: int, now: float) -> Decodes:
        """Those of a step that begins at `now`. slots: of KV that are free."""
        view, predictor = self.view, self._predictor()
        requests = list(view.decodes.values())
        if not requests:
            return Decodes()
        default_s = view.config.tpot_slo_s
        if not self._columns.holds(requests, default_s):
            self._columns = columns(requests, default_s, predictor.feedback.first_at)
        gaps = self._columns.gaps(predictor.pace, now)
        return Decodes(len(requests), view.decode_tokens, gaps, self._promised(slots))

    def _decode_segments(self, scheduled: Scheduled) -> tuple[Segment, ...]:
        """Return those of a step's decodes: the same again and again, unless somebody asks where they are."""
        decoding, lengths = self.view.decodes, scheduled.lengths
        if self._journal is None and not self.policy.options.fair_shares:
            names = list(filter(decoding.__contains__, scheduled.names))
            if names != self._decoded[0]:
                self._decoded = names, tuple([Segment(name, 0, 1, _GROUP, (), ()) for name in names])
            return self._decoded[1]
        return tuple([
            Segment(name, start, lengths[name], _GROUP, (), ())
            for name, start in zip(scheduled.names, scheduled.starts, strict=True) if name in decoding
        ])  # fmt: skip

    def _promised(self, slots: int) -> int:
        """Slots that decodes count on. slots: that are free; where they are plenty it is not worked out."""
        decodes, headroom = self.view.decodes.values(), self.view.config.decode_headroom
        if 2 * len(decodes) * headroom < slots:
            return len(decodes) * headroom
        return sum(map(self.view.headroom, decodes))

    def _renew(self) -> None:
        feedback = self._predictor().feedback
        kinds: tuple[Kind, ...] = ("prefill", "decode", "mixed")
        is_off = any([not 1 / _OFF <= feedback.typical(kind) <= _OFF for kind in kinds])
        if self.costs.renewed(is_off):
            self.view.renew(self._with_targets(self.view.config), self.costs.model)
            self.policy.renew(self.view)

    def _with_targets(self, config: SchedulerConfig) -> SchedulerConfig:
        """With paces and deadlines that suit the costs, where they are not set."""
        objective = self.settings.objective
        found = targets(self.costs.model, objective or "throughput", None if objective else AIM)
        tpot_s, floor_s = self.settings.tpot_slo_s, self.settings.ttft_slo_floor_s
        return replace(
            config, overload="warn", ttft_slo_factor=self.settings.ttft_slo_factor,
            tpot_slo_s=found.tpot_s if tpot_s is None else tpot_s,
            ttft_slo_floor_s=found.ttft_floor_s if floor_s is None else floor_s,
        )  # fmt: skip

    def _write_completed(self, batch: RunBatch, now: float) -> None:
        assert self._journal is not None
        ended = self._ended_by_output
        outputs = [TokenOutput(s.request_id, ended.get(s.request_id)) for s in batch.segments if s.emits]
        self._journal.event(now, BatchCompleted(batch.batch_id, tuple(outputs)))
        for request_id in ended:
            self._journal.stop(request_id, "finished")
