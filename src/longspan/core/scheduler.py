"""The pure scheduler: an event and the time in, actions out. No clock, no I/O, no randomness.

`handle` is the whole of it: apply the event to the books, ask the policy, look ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longspan.config import SchedulerConfig
from longspan.core.actions import Action
from longspan.core.books.invariants import check_invariants
from longspan.core.books.ledger import Ledger
from longspan.core.books.lifecycle import abort, arrive, complete_batch, complete_migration, free_first_stage
from longspan.core.books.numbering import Numbering
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import Decision
from longspan.core.estimate import Estimate
from longspan.core.events import BatchCompleted, Event, FirstStageFree, KVMigrated, RequestAborted, RequestArrived
from longspan.core.internal_error import InternalError
from longspan.core.lookahead import look_ahead, may_look_ahead
from longspan.core.news import News
from longspan.core.policies import create_policy
from longspan.core.policies.base import Policy
from longspan.core.state import SchedulerState


@dataclass(frozen=True, slots=True)
class SchedulerStats:
    """A snapshot for gauges. `num_running` counts every request that holds KV, also one that is draining."""

    num_running: int
    num_waiting: int
    kv_tokens_used: tuple[int, ...]
    kv_tokens_per_instance: int
    num_preemptions: int
    num_migrations: int = 0


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
        self._ledger = Ledger(self.config, first_instance, numbering)
        self._state = SchedulerState(self._ledger, cost_model)
        self._may_look_ahead = may_look_ahead(config)
        self.news = News(self._ledger.arrived, self._ledger.ended, self._ledger.completed)
        self._now = float("-inf")
        self.decisions: tuple[Decision, ...] = ()

    def handle(self, event: Event, now: float) -> list[Action]:
        """Decide what to do about `event`, in order. `now` (seconds, any origin) never goes backwards.

        Why it was decided so, as far as the policy tells, is in `decisions` until the next call.
        """
        if not now >= self._now:
            raise InternalError(f"time went backwards, from {self._now} to {now}")
        self._now, ledger = now, self._ledger
        ledger.arrived.clear()
        ledger.ended.clear()
        ledger.completed.clear()
        self._apply(event, now)
        self.policy.schedule(self._state, self.news, now)
        started = ledger.take_started()
        if started and self._may_look_ahead and self.policy.looks_ahead(self._state, now):
            look_ahead(ledger, started)
        self.decisions = ledger.take_decisions()
        return ledger.take_actions()

    @property
    def first_instance(self) -> int:
        """The number of its first instance: above 0 if others of a fleet have those before."""
        return self._ledger.cluster.instances[0].id

    @property
    def num_waiting(self) -> int:
        """Requests in the queue."""
        return len(self._ledger.waiting)

    @property
    def finished_outputs(self) -> tuple[int, int]:
        """How many requests have finished, and the tokens that they generated, all together."""
        return self._state.finished_outputs

    @property
    def request_limit(self) -> int:
        """Tokens that one request may have, prompt and output together, with this policy and these instances."""
        cluster = self._ledger.cluster
        return cluster.largest_capacity if self.policy.keeps_on_one_instance else cluster.total_capacity

    def estimate(self, request_id: str, now: float) -> Estimate | None:
        """Return when the request gets its first token; None if it has it or has ended, or nobody can say."""
        request = self._ledger.requests.get(request_id)
        if request is None or request.num_output_tokens or request.end_reason is not None:
            return None
        return self.policy.estimate(self._state, request, now)

    def knows(self, request_id: str) -> bool:
        """Tell whether the request is alive, or has ended and still drains: its id is in use."""
        return request_id in self._ledger.requests

    def idle(self) -> bool:
        """Tell whether no request is alive, not even to drain, so that nothing runs."""
        return not self._ledger.requests

    def check_invariants(self) -> None:
        """Raise `InternalError` if the books contradict themselves. Walks over everything."""
        check_invariants(self._ledger)

    def stats(self) -> SchedulerStats:
        return SchedulerStats(
            num_running=len(self._ledger.placement),
            num_waiting=len(self._ledger.waiting),
            kv_tokens_used=tuple([instance.used for instance in self._ledger.cluster.instances]),
            kv_tokens_per_instance=self.config.kv_tokens,
            num_preemptions=self._ledger.num_preemptions,
            num_migrations=self._ledger.num_migrations,
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
