"""The default policy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from longspan.config import check_count, check_seconds
from longspan.core.actions import RunBatch
from longspan.core.books.request import Request, RequestStatus
from longspan.core.decision import OVER_SHARE, PROMISED, SERVED_LATE, WITHIN_SHARE, Decision
from longspan.core.estimate import Estimate
from longspan.core.news import News
from longspan.core.policies.chunked.adaptive import AdaptiveChunks
from longspan.core.policies.chunked.memory.pool_shares import PoolShares
from longspan.core.policies.chunked.predictor import Predictor
from longspan.core.policies.chunked.priority import N, Standing
from longspan.core.policies.chunked.ranking import Candidate
from longspan.core.policies.longspan.calibration import Kind
from longspan.core.policies.longspan.crowd import Crowd
from longspan.core.policies.longspan.eta import Forecast, Kinds, time_to_first_token
from longspan.core.policies.longspan.fair_eta import TenantKinds
from longspan.core.policies.longspan.interrupted import Interrupted
from longspan.core.policies.longspan.load import ServiceRate
from longspan.core.policies.longspan.order import INTERRUPTED, SharedProcessor, is_hopeless, rank
from longspan.core.policies.longspan.promise import Promise, Promises, size_class
from longspan.core.policies.longspan.served import served_seconds
from longspan.core.policies.longspan.tenants import TenantShares, behind, read_weights
from longspan.core.policies.longspan.width import ElasticPredictor, ElasticWidth, team_sizes
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError

_CLOSED_TO_LONG = 0.15  # of the pool, where several instances share the work


class Longspan(AdaptiveChunks):
    """Feasible requests by deadline and remaining work, in chunks sized in time, corrected by what iterations took."""

    @dataclass(frozen=True)
    class Options(AdaptiveChunks.Options):
        """c: weight of a prompt's remaining seconds beside its deadline: 0 is earliest deadline first, much is shortest
        remaining first. team: the most instances that compute a prompt together; none: as many as pay. team_burst: an
        iteration of theirs may take so many times the share of the TPOT that `aim` is, as far as decodes are ahead of
        their pace. team_fixed_share: beside decodes they compute a chunk only when so much of it, at most, goes to what
        costs the same for any; until then decodes go on alone, and get ahead. promise_factor: the first token is
        promised within so many times what the prompt takes alone. promise_floor_s: but not within less seconds.
        margin: a request is late when so many times its estimate is beyond the promise. at_risk_share: of the time of a
        promise, its last part: who would get its first token in it competes by its promise; one that is late, but not
        yet there, goes by its own behind all that can be in time; 0: promises change no order. fair_shares: whether
        tenants of one priority share the service while several wait. tenant_weights: their shares, as in
        chat=4,batch=0.5; who is not named has 1. share_slack_s: a tenant is beyond its share when it has had so many
        seconds of every instance's work more than the least-served. closed_to_medium: part of the pool that prompts of
        more than 8192 tokens, or a sixteenth of it, leave to smaller ones, unless one of them alone needs more.
        closed_to_long: the same of 65536 tokens, or a quarter of it; none: .15 where there are several instances."""

        c: float = 2.0
        max_fixed_share: float = 0.3
        least_share: float = 0.25
        idle_fixed_share: float = 0.05
        aim: float = 0.88
        feedback: float = 0.1
        burst: float = 2.5
        spread_decodes: bool = True
        team: int | None = None
        team_burst: float = 5.0
        team_fixed_share: float = 0.15
        promise_factor: float = 25.0
        promise_floor_s: float = 15.0
        margin: float = 1.3
        at_risk_share: float = 0.25
        fair_shares: bool = False
        tenant_weights: str | None = None
        share_slack_s: float = 0.5
        closed_to_medium: float = 0.0
        closed_to_long: float | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            for name, least in (("c", 0.0), ("promise_factor", 1.0), ("margin", 1.0)):
                if not least <= getattr(self, name) <= 1e6:
                    raise ConfigError(f"{name} is {getattr(self, name)}, but must be {least:g} to 1000000")
            if not 1.0 <= self.team_burst <= 100.0:
                raise ConfigError(f"team_burst is {self.team_burst}, but must be at least 1, and 100 at most")
            if not 0.0 < self.team_fixed_share <= 1.0:
                raise ConfigError(f"team_fixed_share is {self.team_fixed_share}, but must be above 0, and 1 at most")
            for name in ("promise_floor_s", "share_slack_s"):
                check_seconds(name, getattr(self, name))
            for name in ("closed_to_medium", "closed_to_long", "at_risk_share"):
                if not 0.0 <= (getattr(self, name) or 0.0) <= 0.5:
                    raise ConfigError(f"{name} is {getattr(self, name)}, but must be 0 to 0.5")
            if read_weights(self.tenant_weights) and not self.fair_shares:
                raise ConfigError("tenant_weights needs fair_shares=true")
            if self.team is not None:
                check_count("team", self.team)

    name = "longspan"
    is_tuned_at_start = True
    options: Options

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._sharing, self._rate = SharedProcessor(1), ServiceRate(1.0)
        self._unserved, self._interrupted = Crowd(self._left), Interrupted(self._left)
        self._kinds, self._tenant_kinds = Kinds(), TenantKinds()
        self._shares = TenantShares({}, math.inf)
        self._promises = Promises(self.options.promise_factor, self.options.promise_floor_s, self.options.margin)
        self._hopeless: set[str] = set()  # of which that was told
        self._scale, self._wait_s = 1.0, 0.0

    def predictor(self, state: SchedulerState) -> ElasticPredictor:
        options, figures = self.options, self.figures()
        figures |= {"team_burst": options.team_burst, "team_fixed_share": options.team_fixed_share}
        figures["kvp_tokens_per_shard"] = figures["kvp_tokens_per_shard"] or state.config.total_kv_tokens
        predictor = ElasticPredictor(state.cost_model, state.config, **figures)
        predictor.use(team_sizes(state.config.num_instances, self.options.team))
        closed_to_long = _CLOSED_TO_LONG if state.config.num_instances > 1 else 0.0
        closed_to_long = closed_to_long if self.options.closed_to_long is None else self.options.closed_to_long
        self.pool_shares = PoolShares(self.options.closed_to_medium, closed_to_long)
        self.width = self._elastic = ElasticWidth(predictor, self.options.team, state.cluster.instances[0].id)
        if self._known is None:
            self._begin(state.config.num_instances)
        return predictor

    def _begin(self, num_instances: int) -> None:
        self._sharing, self._rate = SharedProcessor(num_instances), ServiceRate(float(num_instances))
        if self.options.fair_shares:
            slack_s = self.options.share_slack_s * num_instances
            self._shares = TenantShares(read_weights(self.options.tenant_weights), slack_s)

    def observe(self, state: SchedulerState, news: News, now: float) -> None:
        predictor = self._predictor(state)
        assert isinstance(predictor, ElasticPredictor)
        super().observe(state, news, now)
        if news.fleet.is_other:
            self._follow_fleet(state, predictor)
        self._scale = predictor.feedback.typical("mixed")
        self._wait_s = predictor.target(predictor.pace_s) / state.config.pp
        self._sharing.advance(now)
        self._promises.advance(now, self._kind)
        for batch in news.completed:
            self._note_progress(batch, predictor, now)
            self._count_service(batch, predictor)
        for request in news.ended:
            self._sharing.end(request)
            self._promises.drop(request)
            self._unserved.remove(request.id)
            self._hopeless.discard(request.id)
            self._shares.end(request)
        for request in news.arrived:
            self._welcome(state, request, predictor, now)
        for shift in self._shares.shifts():
            step = OVER_SHARE if shift.is_over else WITHIN_SHARE
            state.explain(Decision(step, (shift.request_id,), (), {"lead_s": shift.lead_s}))
        self._rate.advance(now, len(self._unserved) > max(1, len(state.cluster) * state.config.pp // 2))
        self._elastic.num_others = max(0, len(self._unserved) - 1)
        self._elastic.is_decoding = len(state.placement) + len(state.waiting) > len(self._unserved)

    def _follow_fleet(self, state: SchedulerState, predictor: ElasticPredictor) -> None:
        open_ones = [instance.id for instance in state.cluster.instances if not instance.is_leaving]
        self._elastic.follow(open_ones or [instance.id for instance in state.cluster.instances])
        predictor.use(self._elastic.sizes)
        self._sharing.processors, self._rate.most = len(state.cluster), float(len(state.cluster))
        self._promises.upset()
        self._interrupted.note((*state.with_kv(), *state.waiting))

    def _note_progress(self, batch: RunBatch, predictor: Predictor, now: float) -> None:
        work_s, unserved = 0.0, self._unserved.names
        for segment in batch.segments:
            if segment.length > 1:
                self._unserved.move(segment.request_id, now)
                work_s += predictor.work(segment.end) - predictor.work(segment.start)
            name = segment.request_id
            if segment.emits and name in unserved and (request := self._unserved.remove(name)):
                self._sharing.serve(request)
                self._promises.keep(request, now, self._kind(request))
                self._hopeless.discard(request.id)
                self._shares.answer(request.id)
        self._rate.note(work_s)

    def _count_service(self, batch: RunBatch, predictor: Predictor) -> None:
        if self.options.fair_shares:
            for request_id, work_s in served_seconds(batch, predictor):
                self._shares.serve(request_id, work_s)

    def _welcome(self, state: SchedulerState, request: Request, predictor: ElasticPredictor, now: float) -> None:
        """Make a promise, or refuse the request."""
        work_s, deadline_s = predictor.remaining(request), predictor.deadline(request)
        self._sharing.arrive(request, work_s)
        self._shares.arrive(request)
        self._unserved.add(request, now + deadline_s, self._sharing.tag(request), self._shares.place(request))
        forecast = self._time_to_first_token(state, request, now)
        reach_s = deadline_s + self.options.c * self._scale * work_s
        alone_s = predictor.prompt_alone(request)
        promise = self._promises.make(request, alone_s, deadline_s, forecast, self._kind(request))
        told = {"median_s": promise.estimate.median_s, "quote_s": promise.estimate.quote_s,
                "promised_s": promise.due - request.arrived, "deadline_s": deadline_s,
                "alone_s": alone_s, "ahead": forecast.ahead, "ahead_s": forecast.ahead_s}  # fmt: skip
        state.explain(Decision(PROMISED, (request.id,), (), told))
        late_s = self._promises.late_s(request, promise)
        is_late = late_s > 0.0 and state.config.overload != "off"
        if is_late and state.config.overload == "enforce" and request.service.if_late != "serve":
            self._refuse(state, request, promise, late_s)
            return
        promise.is_upset = len(self._interrupted) > 0
        promise.is_given = self.options.at_risk_share > 0.0 and state.config.overload == "enforce" and not is_late
        kinds = self._tenant_kinds.of(request) if self.options.fair_shares else self._kinds
        kinds.arrive(now, self._left(request)[1], reach_s)
        if is_late:
            state.explain(Decision(SERVED_LATE, (request.id,), (), {"late_s": late_s}))

    def _refuse(self, state: SchedulerState, request: Request, promise: Promise, late_s: float) -> None:
        promised_s = promise.due - request.arrived
        message = (
            f"The server is overloaded: the first token would come after {promised_s + late_s:.0f} s, but is promised "
            f"within {promised_s:.0f} s; try again in {math.ceil(late_s)} s."
        )
        state.refuse(request.id, message, "late", late_s)
        self._sharing.end(request)
        self._promises.refuse(request)
        self._unserved.remove(request.id)
        self._shares.end(request)

    def estimate(self, state: SchedulerState, request: Request, now: float) -> Estimate | None:
        """What is over is known: only what is left is corrected by what came of earlier predictions."""
        running_s = self._unserved.running_s(request, self._scale * self._in_chunks(request), now)
        forecast = self._time_to_first_token(state, request, now).later(running_s)
        left, waited_s = self._promises.calibration.estimate(forecast, self._kind(request)), now - request.arrived
        return Estimate(waited_s + left.median_s, waited_s + left.quote_s, forecast.ahead)

    def _in_chunks(self, request: Request) -> float:
        """Return the seconds that its chunks under way take; what is left of it is without these."""
        assert self._known is not None
        whole = self._known.whole_prefill
        return whole(request.num_known) - whole(request.num_computed) if request.num_scheduled else 0.0

    def _time_to_first_token(self, state: SchedulerState, request: Request, now: float) -> Forecast:
        crowd, rate = self._unserved.standing(state.waiting, self.options.c, self._scale), self._rate()
        mine = self._unserved.one(request, crowd)
        if self.options.fair_shares:
            rivals = self._unserved.rivals(request, crowd, self._shares)
            coming = self._tenant_kinds.now(now, request, self._shares, rate)
        else:
            rivals, coming = self._unserved.rivals(request, crowd), self._kinds.now(now)
        interrupted_s = self._interrupted.seconds_before(request) / rate
        return time_to_first_token(mine, rivals, coming, rate, self._wait_s, now).later(interrupted_s)

    def _kind(self, request: Request) -> Kind:
        """Whose predictions err alike: of a size, without what was cached, and of tenants alike within their shares."""
        tokens = request.num_prompt_tokens - request.num_cached_at_first
        return Kind(size_class(tokens), tokens.bit_length(), self._shares.is_over(request))

    def _left(self, request: Request) -> tuple[float, float]:
        predictor, known = self._known, request.num_known
        assert predictor is not None
        work_s = predictor.work(request.num_tokens) - predictor.work(known)
        return self._elastic.quickest(request, predictor.remaining(request)), work_s

    def standing(self, state: SchedulerState, request: Request, now: float) -> Standing[float]:
        standing = super().standing(state, request, now)
        if request.num_output_tokens:
            return replace(standing, deadline_s=0.0, tag=INTERRUPTED)
        quickest = self._elastic.quickest
        return Standing(
            now, standing.arrived, standing.deadline_s, quickest(request, standing.remaining_s),
            quickest(request, standing.total_s), standing.scale_s, self._sharing.tag(request),
            float(self._shares.place(request)), self._promises.within_s(request),
        )  # fmt: skip

    def candidate(self, state: SchedulerState, request: Request, now: float) -> Candidate:
        """Rank it; and tell when it first turns out to be hopeless."""
        candidate = super().candidate(state, request, now)
        if self.is_hopeless(candidate) and request.id not in self._hopeless:
            self._hopeless.add(request.id)
            self._promises.relegate(request, self._kind(request))
            stood = candidate.standing
            late_s = now + self._scale * stood.remaining_s + self._wait_s - stood.arrived - stood.deadline_s
            state.explain(Decision("hopeless", (request.id,), (), {"late_s": late_s, "promised_s": stood.promised_s}))
        return candidate

    def is_hopeless(self, candidate: Candidate) -> bool:
        """Tell whether it cannot be in time for its deadline."""
        return is_hopeless(candidate.standing, self._scale, self._wait_s)

    def may_wait(self, state: SchedulerState, request: Request, now: float) -> bool:
        """One that is hopeless waits for those before it in rank, as any prompt that is."""
        mine = super().candidate(state, request, now)
        if not self.is_hopeless(mine):
            return False
        others = [self._backlog.queue[place] for place in self._backlog.order(now, self.rule)[:1]]
        for instance in state.cluster.instances:
            others += [other for other in instance.ready.values() if other.status is RequestStatus.PREFILLING]
        return any([super(Longspan, self).candidate(state, other, now).key < mine.key for other in others])

    def yields(self, victim: Standing[float], beneficiary: Standing[float]) -> bool:
        """Only if no more work is lost than is served by it."""
        return victim.total_s - victim.remaining_s <= beneficiary.total_s

    def rule(self, standing: Standing[N]) -> N:
        key = rank(standing, self.options.c, self._scale, self._wait_s, self.options.at_risk_share)
        return key if not self.options.fair_shares else behind(key, self._shares.part(standing.place))
