"""The pure scheduler: an event and the time in, actions out. No clock, no I/O, no randomness.

`handle` is the whole of it: apply the event to the books, ask the policy, look ahead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.books.ledger import Ledger
from longspan.core.books.lifecycle import abort, arrive, complete_batch, complete_migration, free_first_stage
from longspan.core.books.numbering import Numbering
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import CostModel, FittedCostModel
from longspan.core.decision import EXTRAPOLATED, Decision
from longspan.core.estimate import Estimate
from longspan.core.events import (
    BatchCompleted,
    Event,
    FirstStageFree,
    FleetEvent,
    InstanceJoined,
    InstanceLeaving,
    InstanceLost,
    KVMigrated,
    RequestAborted,
    RequestArrived,
)
from longspan.core.fleet.draining import Draining
from longspan.core.fleet.loss import lose_instance
from longspan.core.fleet.mending import Mending
from longspan.core.fleet.refitting import forget_who_left, refit, stop_the_overgrown
from longspan.core.fleet.turns import Turns
from longspan.core.internal_error import InternalError
from longspan.core.invariants import check_invariants
from longspan.core.inventory import Inventory, take_inventory
from longspan.core.lookahead import look_ahead, may_look_ahead
from longspan.core.news import News
from longspan.core.policies import create_policy
from longspan.core.policies.base import Policy, may_wait
from longspan.core.progress import Progress, progress_of
from longspan.core.state import SchedulerState


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot for gauges. `num_running` counts every request that holds KV, also one that is draining.

    instances: the numbers of all that have ever served. kv_tokens_used, kv_tokens_cached: of each of these; slots of
    tokens that some request refers to, and that none does.
    """

    num_running: int
    num_waiting: int
    kv_tokens_used: tuple[int, ...]
    kv_tokens_per_instance: int
    num_preemptions: int
    num_migrations: int = 0
    kv_tokens_cached: tuple[int, ...] = ()
    instances: tuple[int, ...] = ()


class Scheduler:
    """One scheduler for all instances. Two that are given the same calls decide the same, in any process."""

    def __init__(
        self, config: SchedulerConfig, policy: Policy | None = None, cost_model: CostModel | None = None,
        *, first_instance: int = 0, numbering: Numbering | None = None,
    ) -> None:
        """Schedule by `policy`, if one is given; else by the one that `config` names, with its options.

        cost_model: for policies that predict; the rest runs without. first_instance, numbering: where this is one of
        several schedulers of a fleet, see `core/hierarchy`. Raises ConfigError.
        """
        self.policy = policy if policy is not None else create_policy(config.policy)
        self.config = replace(config, policy=self.policy.name)
        self._ledger = Ledger(self.config, first_instance, numbering, cost_model)
        self._state = SchedulerState(self._ledger, cost_model)
        self._cost_model = cost_model
        self._may_look_ahead = may_look_ahead(config)
        self._ledger.keeps_on_one_instance = self.policy.keeps_on_one_instance
        self._turns = Turns(self._ledger)
        self._mending, self._draining = Mending(self._ledger, self._turns), Draining(self._ledger, self._turns)
        ledger = self._ledger
        self.news = News(ledger.arrived, ledger.ended, ledger.completed, ledger.changes)
        self._untold: list[Request] | None = None
        self._now = float("-inf")
        self.decisions: tuple[Decision, ...] = ()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Decide what to do about `event`, in order. `now` (seconds, any origin) never goes backwards.

        Why it was decided so, as far as the policy tells, is in `decisions` until the next call.
        """
        if not now >= self._now:
            raise InternalError(f"time went backwards, from {self._now} to {now}")
        self._now, ledger = now, self._ledger
        self._clear_news()
        self._apply(event, now)
        if ledger.cluster.fleet.is_reduced:
            stop_the_overgrown(ledger)
            forget_who_left(ledger)
        self._decide(now)
        for request in list(ledger.prefixes.adopting.values()):  # one that waits refers to nothing
            ledger.undo_adoption(request)
        started = ledger.take_started()
        if started and self._may_look_ahead and not self._is_mending() and self.policy.looks_ahead(self._state, now):
            look_ahead(ledger, started)
        self.decisions = ledger.take_decisions()
        return ledger.take_actions()

    @property
    def first_instance(self) -> int:
        """The number of its first instance: above 0 if others of a fleet have those before."""
        return self._ledger.cluster.numbers[0]

    @property
    def instances(self) -> Sequence[int]:
        """The numbers of all instances that have ever served."""
        return self._ledger.cluster.numbers

    @property
    def num_serving(self) -> int:
        """Instances that serve."""
        return len(self._ledger.cluster)

    @property
    def kv_tokens_serving(self) -> int:
        """KV slots of all that serve."""
        return self._ledger.cluster.total_capacity

    @property
    def most_tokens(self) -> int:
        """KV slots of all instances, whether or not they serve."""
        return self._ledger.cluster.fleet.full.total

    @property
    def num_waiting(self) -> int:
        """Requests that wait."""
        return self._ledger.waiting.num_all

    def cached(self, event: RequestArrived) -> int:
        """Return how many tokens of a prompt that may come here are there already."""
        found = self._ledger.prefixes.index.longest(event.prefix_keys, event.num_prompt_tokens - 1)
        return 0 if found is None else found[1]

    @property
    def finished_outputs(self) -> tuple[int, int]:
        """How many requests have finished, and the tokens that they generated, all together."""
        return self._state.finished_outputs

    @property
    def request_limit(self) -> int:
        """Tokens that one request may have, prompt and output together, with this policy and the instances that serve
        or are expected back."""
        return self._ledger.most(self._ledger.cluster.fleet.expected)

    def estimate(self, request_id: str, now: float) -> Estimate | None:
        """Return when the request gets its first token; None if it has it or has ended, or nobody can say."""
        request = self._ledger.requests.get(request_id)
        if request is None or request.num_output_tokens or request.end_reason is not None:
            return None
        if self._untold is not None:  # the policy may not know it
            return None
        return self.policy.estimate(self._state, request, now)

    def progress(self, request_id: str, now: float) -> Progress | None:
        """Return how far the request is; None if it has ended, or is unknown."""
        request = self._ledger.requests.get(request_id)
        if request is None or request.end_reason is not None:
            return None
        place = self._ledger.waiting.place(request)
        return progress_of(request, place, self.estimate(request_id, now), now)

    def knows(self, request_id: str) -> bool:
        """Tell whether the request is alive, or has ended and still drains: its id is in use."""
        return request_id in self._ledger.requests

    def waits_for_instances(self) -> bool:
        """Tell whether all requests that are alive wait for instances to join, so that nothing need run."""
        return 0 < len(self._ledger.requests) == len(self._ledger.waiting.aside)

    def idle(self) -> bool:
        """Tell whether no request is alive, not even to drain, and no KV moves, so that nothing runs."""
        return not self._ledger.requests and not self._ledger.migrations

    def check_invariants(self) -> None:
        """Raise `InternalError` if the books contradict themselves. Walks over everything."""
        check_invariants(self._ledger)

    def inventory(self) -> Inventory:
        """Return requests, their KV, and what is under way, for who begins to watch. Walks over everything."""
        return take_inventory(self._ledger)

    def stats(self) -> SchedulerStats:
        cluster = self._ledger.cluster
        serving = {instance.id: instance for instance in cluster.instances}
        instances = [serving.get(number) for number in cluster.numbers]
        return SchedulerStats(
            num_running=len(self._ledger.placement),
            num_waiting=self.num_waiting,
            kv_tokens_used=tuple([0 if instance is None else instance.used for instance in instances]),
            kv_tokens_per_instance=self.config.kv_tokens,
            num_preemptions=self._ledger.num_preemptions,
            num_migrations=self._ledger.num_migrations,
            kv_tokens_cached=tuple([0 if instance is None else instance.cached for instance in instances]),
            instances=tuple(cluster.numbers),
        )

    def _apply(self, event: Event, now: float) -> None:
        match event:
            case BatchCompleted():
                complete_batch(self._ledger, event)
            case RequestArrived():
                arrive(self._ledger, event, now)
            case RequestAborted():
                abort(self._ledger, event)
            case FirstStageFree():
                free_first_stage(self._ledger, event)
            case KVMigrated():
                complete_migration(self._ledger, event)
            case InstanceLost() | InstanceJoined() | InstanceLeaving():
                self._change_fleet(event)

    def _change_fleet(self, event: FleetEvent) -> None:
        ledger = self._ledger
        ledger.changes.is_other = True
        match event:
            case InstanceLost(number, returns) if number in ledger.cluster:
                lose_instance(ledger, number, returns)
                self._turns.forget(number)
            case InstanceLost(number, returns):
                ledger.cluster.expect(number, returns)
            case InstanceJoined(number, kv_tokens):
                ledger.cluster.join(number, kv_tokens)
                self._tell_what_is_extrapolated()
            case InstanceLeaving(number):
                ledger.cluster.leave(number)
        refit(ledger)

    def _tell_what_is_extrapolated(self) -> None:
        model, serving = self._cost_model, len(self._ledger.cluster)
        if isinstance(model, FittedCostModel) and serving > model.max_instances:
            told = {"instances": serving, "measured": model.max_instances}
            self._ledger.decisions.append(Decision(EXTRAPOLATED, (), (), told))

    def _is_mending(self) -> bool:
        """Whether instances are to come back as soon as may be, for what the policy does not know of."""
        return bool(self._ledger.repairing or self._ledger.parted or self._ledger.cluster.fleet.leaving)

    def _clear_news(self) -> None:
        """Begin another event. What the policy has not been told, since no instance served, stays new."""
        ledger = self._ledger
        if self._untold is None:
            ledger.arrived.clear()
            ledger.changes.clear()
        ledger.ended.clear()
        ledger.completed.clear()

    def _decide(self, now: float) -> None:
        ledger = self._ledger
        if not ledger.cluster.instances:
            self._keep_news()
            return
        if self._untold is not None:
            ledger.ended[:0], self._untold = self._untold, None
        is_mending = self._is_mending() or bool(ledger.cluster.held)
        if is_mending:
            self._mending.begin(lambda request: may_wait(self.policy, self._state, request, now))
            self._draining.begin()
            if not ledger.cluster.instances:  # the last one has left
                self._keep_news()
                return
            self._turns.begin()
        ledger.prefixes.lookup.forget()
        self.policy.schedule(self._state, self.news, now)
        if is_mending:
            self._turns.end()
            self._mending.go_on()
            heard = list(ledger.completed), list(ledger.ended)
            self._clear_news()
            self._draining.go_on()
            if ledger.changes.are_any or ledger.ended:  # since the policy's turn
                self._decide(now)
            ledger.completed[:0], ledger.ended[:0] = heard  # for who divides arrivals among nodes

    def _keep_news(self) -> None:
        """Of who has come and gone meanwhile the policy need not hear at all."""
        arrived, ended = self._ledger.arrived, self._ledger.ended
        known = [request for request in ended if request not in arrived]
        self._untold = [*(self._untold or []), *known]
        arrived[:] = [request for request in arrived if request not in ended]

