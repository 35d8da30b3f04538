"""A scheduler of schedulers: for fleets that one cannot decide for in time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, MigrateKV, RefuseRequest, RunBatch, StopRequest
from longspan.core.books.lifecycle import refuse_when_full
from longspan.core.books.numbering import Numbering
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import ROUTED, Decision
from longspan.core.estimate import Estimate
from longspan.core.events import BatchCompleted, Event, FirstStageFree, KVMigrated, RequestAborted, RequestArrived
from longspan.core.hierarchy.router import Router
from longspan.core.internal_error import InternalError
from longspan.core.policies import create_policy
from longspan.core.policies.base import Policy
from longspan.core.scheduler import Scheduler, SchedulerStats


class HierarchicalScheduler:
    """Nodes of instances, each with a `Scheduler` and a policy of its own, and a `Router` that divides arrivals.

    To whom it is called like a `Scheduler`, it is one: instances, batches, migrations and residences are numbered
    through the whole fleet. A request stays at its node, so it can be no longer than a node holds.

    nodes: the schedulers. decisions: as of a `Scheduler`.
    """

    def __init__(
        self, config: SchedulerConfig, policy: Policy | None = None, cost_model: CostModel | None = None
    ) -> None:
        """Take what a `Scheduler` takes; each node gets a policy like the one given. Raises ConfigError."""
        numbering, first = Numbering(), 0
        self.nodes: list[Scheduler] = []
        for node in range(config.num_nodes):
            own = create_policy(config.policy) if policy is None else deepcopy(policy)
            told = config.of_node(node)
            self.nodes.append(Scheduler(told, own, cost_model, first_instance=first, numbering=numbering))
            first += told.num_instances
        self.policy = self.nodes[0].policy
        self.config = replace(config, policy=self.policy.name)
        self.decisions: tuple[Decision, ...] = ()
        self._router = Router([node.config.num_instances for node in self.nodes], config.kv_tokens, cost_model)
        self._batches: dict[int, Scheduler] = {}
        self._migrations: dict[int, Scheduler] = {}
        self._now = float("-inf")

    def handle(self, event: Event, now: float) -> list[Action]:
        """Decide as `Scheduler.handle` does: the node that the event is about does."""
        if not now >= self._now:
            raise InternalError(f"time went backwards, from {self._now} to {now}")
        self._now, self.decisions = now, ()
        if isinstance(event, RequestArrived):
            refusal = self._refusal(event)
            if refusal is not None:
                return [refusal]
        node = self._node(event)
        if node is None:
            return []
        actions = node.handle(event, now)
        self.decisions += node.decisions
        self._note(node, actions)
        return actions

    @property
    def request_limit(self) -> int:
        """Tokens that one request may have, prompt and output together: at the largest node."""
        return max([node.request_limit for node in self.nodes])

    def estimate(self, request_id: str, now: float) -> Estimate | None:
        """Return what `Scheduler.estimate` does."""
        node = self._home(request_id)
        return None if node is None else node.estimate(request_id, now)

    def knows(self, request_id: str) -> bool:
        """Tell whether the request is alive, or has ended and still drains: its id is in use."""
        return self._home(request_id) is not None

    def idle(self) -> bool:
        """Tell whether no request is alive, not even to drain, so that nothing runs."""
        return all([node.idle() for node in self.nodes])

    def check_invariants(self) -> None:
        """Raise `InternalError` if the books of a node contradict themselves. Walks over everything."""
        for node in self.nodes:
            node.check_invariants()

    def stats(self) -> SchedulerStats:
        every = [node.stats() for node in self.nodes]
        return SchedulerStats(
            num_running=sum([stats.num_running for stats in every]),
            num_waiting=sum([stats.num_waiting for stats in every]),
            kv_tokens_used=tuple([used for stats in every for used in stats.kv_tokens_used]),
            kv_tokens_per_instance=self.config.kv_tokens,
            num_preemptions=sum([stats.num_preemptions for stats in every]),
            num_migrations=sum([stats.num_migrations for stats in every]),
        )

    def _node(self, event: Event) -> Scheduler | None:
        """Return the one that the event is about; None if that is over."""
        match event:
            case BatchCompleted():
                return self._at_work(self._batches.pop(event.batch_id, None), event)
            case FirstStageFree():
                return self._at_work(self._batches.get(event.batch_id), event)
            case KVMigrated():
                return self._at_work(self._migrations.pop(event.migration_id, None), event)
            case RequestAborted():
                return self._home(event.request_id)
            case RequestArrived():
                return self._home(event.request_id) or self._route(event)

    def _refusal(self, event: RequestArrived) -> RefuseRequest | None:
        wanted, most = event.num_prompt_tokens + event.max_tokens, self.config.of_node().total_kv_tokens
        if wanted > most:
            message = (
                f"The prompt has {event.num_prompt_tokens} tokens and max_tokens is {event.max_tokens}: {wanted} "
                f"tokens together, but each node of this server holds {most} at most, and a request stays at one."
            )
            return RefuseRequest(event.request_id, message, "too_long")
        return refuse_when_full(event, sum([node.num_waiting for node in self.nodes]), self.config.max_waiting)

    def _at_work(self, node: Scheduler | None, event: Event) -> Scheduler:
        if node is None:
            raise InternalError(f"{event}, but no node has it in flight")
        return node

    def _home(self, request_id: str) -> Scheduler | None:
        for node in self.nodes:
            if node.knows(request_id):
                return node
        return None

    def _route(self, event: RequestArrived) -> Scheduler:
        finished = [node.finished_outputs for node in self.nodes]
        count, generated = (sum(column) for column in zip(*finished, strict=True))
        choice = self._router.choose(event, (count, generated))
        node = self.nodes[choice.node]
        told = {
            "node": choice.node, "first": node.first_instance, "instances": node.config.num_instances,
            "before_s": choice.before_s, "most_s": choice.most_s,
        }  # fmt: skip
        self.decisions = (Decision(ROUTED, (event.request_id,), (), told),)
        return node

    def _note(self, node: Scheduler, actions: list[Action]) -> None:
        for batch in node.news.completed:
            self._router.ran(batch)
        for action in actions:
            if isinstance(action, RunBatch):
                self._batches[action.batch_id] = node
            elif isinstance(action, MigrateKV):
                self._migrations[action.migration_id] = node
            elif isinstance(action, RefuseRequest):
                self._router.end(action.request_id)
            elif isinstance(action, StopRequest) and action.reason == "preempted":
                self._router.begin_anew(action.request_id)
        for request in node.news.ended:
            self._router.end(request.id)
