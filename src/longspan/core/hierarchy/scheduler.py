"""A scheduler of schedulers: for fleets that one cannot decide for in time."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

from longspan.config import SchedulerConfig
from longspan.core.actions import Action, CancelBatch, MigrateKV, RefuseRequest, RunBatch, StopRequest
from longspan.core.books.lifecycle import refuse_when_full
from longspan.core.books.numbering import Numbering
from longspan.core.costs.cost_model import CostModel
from longspan.core.decision import ROUTED, Decision
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
from longspan.core.hierarchy.router import Router
from longspan.core.internal_error import InternalError
from longspan.core.inventory import Inventory, all_of
from longspan.core.policies import create_policy
from longspan.core.policies.base import Policy
from longspan.core.progress import Progress
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
        if isinstance(event, FleetEvent):
            self._router.resize(self.nodes.index(node), node.num_serving, node.kv_tokens_serving)
        elif isinstance(event, RequestAborted):
            self._router.end(event.request_id)  # its node may hear of it without telling its policy
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

    def progress(self, request_id: str, now: float) -> Progress | None:
        """Return what `Scheduler.progress` does."""
        node = self._home(request_id)
        return None if node is None else node.progress(request_id, now)

    def knows(self, request_id: str) -> bool:
        """Tell whether the request is alive, or has ended and still drains: its id is in use."""
        return self._home(request_id) is not None

    def waits_for_instances(self) -> bool:
        """Return what `Scheduler.waits_for_instances` does."""
        return not self.idle() and all([node.idle() or node.waits_for_instances() for node in self.nodes])

    def idle(self) -> bool:
        """Tell whether no request is alive, not even to drain, and no KV moves, so that nothing runs."""
        return all([node.idle() for node in self.nodes])

    def check_invariants(self) -> None:
        """Raise `InternalError` if the books of a node contradict themselves. Walks over everything."""
        for node in self.nodes:
            node.check_invariants()

    def inventory(self) -> Inventory:
        """Return what `Scheduler.inventory` does, of all nodes."""
        return all_of([node.inventory() for node in self.nodes])

    def stats(self) -> SchedulerStats:
        every = [node.stats() for node in self.nodes]
        used, cached = dict[int, int](), dict[int, int]()
        for stats in every:
            used.update(zip(stats.instances, stats.kv_tokens_used, strict=True))
            cached.update(zip(stats.instances, stats.kv_tokens_cached, strict=True))
        return SchedulerStats(
            num_running=sum([stats.num_running for stats in every]),
            num_waiting=sum([stats.num_waiting for stats in every]),
            kv_tokens_used=tuple([used[number] for number in sorted(used)]),
            kv_tokens_per_instance=self.config.kv_tokens,
            num_preemptions=sum([stats.num_preemptions for stats in every]),
            num_migrations=sum([stats.num_migrations for stats in every]),
            kv_tokens_cached=tuple([cached[number] for number in sorted(cached)]),
            instances=tuple(sorted(used)),
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
            case InstanceLost() | InstanceJoined() | InstanceLeaving():
                return self._of_instance(event.instance)

    def _of_instance(self, number: int) -> Scheduler:
        """Return the node that has the instance; a new one is the last node's."""
        return next((node for node in self.nodes if number in node.instances), self.nodes[-1])

    def _refusal(self, event: RequestArrived) -> RefuseRequest | None:
        wanted = event.num_prompt_tokens + event.max_tokens
        most = max([node.most_tokens for node in self.nodes])
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
        cached = [node.cached(event) for node in self.nodes] if event.prefix_keys else ()
        choice = self._router.choose(event, (count, generated), cached)
        node = self.nodes[choice.node]
        told = {
            "node": choice.node, "first": node.first_instance, "instances": len(node.instances),
            "before_s": choice.before_s, "most_s": choice.most_s,
        }  # fmt: skip
        if choice.most_cached:
            told |= {"cached_tokens": choice.cached, "most_cached_tokens": choice.most_cached}
        self.decisions = (Decision(ROUTED, (event.request_id,), (), told),)
        return node

    def _forget(self, void: CancelBatch) -> None:
        for batch_id in void.batch_ids:
            del self._batches[batch_id]
        for migration_id in void.migration_ids:
            del self._migrations[migration_id]

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
            elif isinstance(action, CancelBatch):
                self._forget(action)
            elif isinstance(action, StopRequest) and action.reason == "preempted":
                self._router.begin_anew(action.request_id)
        for request in node.news.ended:
            self._router.end(request.id)
