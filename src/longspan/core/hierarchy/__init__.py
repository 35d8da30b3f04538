"""Large fleets: a scheduler for each node, and a router that divides arrivals among them.

    scheduler = make_scheduler(config)      a `Scheduler`, or a `HierarchicalScheduler` where there are several nodes

Neither kind knows a clock or draws anything, and both decide from the same events; so one event log has all of them,
and replays.
"""

from __future__ import annotations

from longspan.config import SchedulerConfig
from longspan.core.costs.cost_model import CostModel
from longspan.core.hierarchy.scheduler import HierarchicalScheduler
from longspan.core.policies.base import Policy
from longspan.core.scheduler import Scheduler

__all__ = ["AnyScheduler", "HierarchicalScheduler", "make_scheduler"]

AnyScheduler = Scheduler | HierarchicalScheduler


def make_scheduler(
    config: SchedulerConfig, policy: Policy | None = None, cost_model: CostModel | None = None
) -> AnyScheduler:
    """Return the scheduler of a fleet: one for all instances, or of nodes, as `config.node_instances` says.

    policy, cost_model: as `Scheduler` takes them; a node's cost model need know no more instances than the node has.
    Raises ConfigError.
    """
    kind = Scheduler if config.num_nodes == 1 else HierarchicalScheduler
    return kind(config, policy, cost_model)
