"""What a line of the log tells beside its message: fields by name, the request that it is about among them.

    logger.warning("request %s is odd", name, extra=fields(request_id=name))

While a request is being answered, every line is about it, unless the line says otherwise: `answering`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

FIELDS = "fields"  # of a record of logging

answering: ContextVar[str | None] = ContextVar("answering", default=None)
"""The X-Request-Id of the request that is being answered here."""


def fields(**known: object) -> dict[str, Mapping[str, object]]:
    """Return them as logging's `extra`."""
    return {FIELDS: known}
