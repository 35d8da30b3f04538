"""Requests that a policy can never serve."""

from __future__ import annotations

from longspan.core.state import SchedulerState


def refuse_the_too_long(state: SchedulerState) -> None:
    """Called at every event, so only who has just arrived can be too long."""
    if not state.waiting:
        return
    request, most = state.waiting.last, state.config.kv_tokens
    if request.max_kv_tokens > most:
        message = (
            f"The prompt has {request.num_prompt_tokens} tokens and max_tokens is {request.max_tokens}, but "
            f"the policy {state.config.policy!r} keeps a request on one instance, which holds {most}."
        )
        state.refuse(request.id, message)
