"""How long decodes let prefills go first."""

from __future__ import annotations

from longspan.core.state import SchedulerState

PATIENCE = 4
"""Prefill batches per instance that a ready request lets pass, before decodes go first for once."""


def somebody_is_overdue(state: SchedulerState) -> bool:
    """A request that could have decoded on an idle instance has watched too many prefills pass."""
    patience = PATIENCE * len(state.cluster)
    return any(
        state.num_prefills - next(iter(instance.ready.values())).prefills_seen > patience
        for instance in state.cluster.idle()
        if instance.ready
    )
