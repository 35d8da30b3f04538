"""Elastic sequence parallelism, first come first served; prefills before decodes.

The mechanisms are LoongServe's (section 4 of the paper): striped prefill with a retention plan, multi-master
decode, scale up by adding masters, scale down by re-deriving the group at each iteration. The decisions are
simple rules in place of its cost model and dynamic programs. Where its released code strands idle instances
or packs them full, this policy decides at every event, and leaves headroom.
"""

from __future__ import annotations

from longspan.core.news import News
from longspan.core.policies.base import Policy
from longspan.core.policies.elastic_fcfs.decode import start_decodes
from longspan.core.policies.elastic_fcfs.prefill import start_prefills
from longspan.core.policies.parts.patience import somebody_is_overdue
from longspan.core.state import SchedulerState


class ElasticFcfs(Policy):
    """Whole prompts on as many instances as have room, first come first served; stateless.

    No request starves:

    - The queue is strictly first come first served, so its head gets in once enough of those ahead of it have
      ended; when no request holds KV it gets in at once, for a request that could exceed the whole pool was
      refused on arrival. Only who waits for a prefix that is being computed is passed over, until that is done.
    - Prefills go first, but an overdue decode stops them until it had its turn.
    - Waiting for instances to come back means that nothing new starts on the rest, so each wait ends with
      the iterations that run now.
    - A preempted request is computed again only when its turn comes, and then gains at least one token.
    """

    name = "elastic_fcfs"

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        if somebody_is_overdue(state):
            start_decodes(state)
            return
        head_waits_for_instances = start_prefills(state)
        if not head_waits_for_instances:
            start_decodes(state)
