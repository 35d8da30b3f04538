"""How long decodes let prefills go first."""

from __future__ import annotations

from longspan.core.state import SchedulerState

PATIENCE = 4
"""Prefill batches per instance that a ready request lets pass, before decodes go first for once."""


def somebody_is_overdue(state: SchedulerState) -> bool:
    """Tell whether a request that could decode on an idle instance has watched too many prefills pass."""
    patience = PATIENCE * len(state.cluster)
    resting = state.cluster.resting()
    longest_ready = [next(iter(instance.ready.values())) for instance in resting if instance.ready]
    return any([state.num_prefills - request.prefills_seen > patience for request in longest_ready])
