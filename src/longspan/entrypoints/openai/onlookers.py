"""Who may look at what other clients' requests are like: ids, lengths, times."""

from __future__ import annotations

import ipaddress

from fastapi import Request

from longspan.entrypoints.openai.context import Context
from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal


def require_onlooker(context: Context, request: Request) -> None:
    """Raises Refusal (403) unless the request has shown a key, or keys are not asked for and it is of this machine."""
    if not context.config.has_keys and not _is_of_this_machine(request):
        message = (
            "what requests are like is told to this machine only, or to whoever has an API key; start with "
            "--api-key-file"
        )
        raise Refusal(ErrorAnswer(403, message, "invalid_request_error", None, "forbidden"))


def _is_of_this_machine(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False
