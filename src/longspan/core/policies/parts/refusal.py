"""Requests that a policy can never serve."""

from __future__ import annotations

from longspan.core.news import News
from longspan.core.state import SchedulerState


def refuse_the_too_long(state: SchedulerState, news: News) -> None:
    """Refuse those that have just arrived and that no instance can hold alone."""
    most = state.cluster.largest_capacity
    for request in [request for request in news.arrived if request.max_kv_tokens > most]:
        message = (
            f"The prompt has {request.num_prompt_tokens} tokens and max_tokens is {request.max_tokens}, but "
            f"the policy {state.config.policy!r} keeps a request on one instance, which holds {most}."
        )
        state.refuse(request.id, message)
