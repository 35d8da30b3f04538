"""How many choices a request may have, and how many of them run at once. The engine checks its length."""

from __future__ import annotations

from longspan.engine.protocol import EngineClient
from longspan.errors import RequestError

_SHARE = 16


def check_choices(engine: EngineClient, num_choices: int, param: str) -> None:
    """Raises RequestError for more choices than the queue could ever hold."""
    limit = engine.config.max_waiting
    if num_choices > limit:
        raise RequestError(f"{num_choices} choices were asked for, but at most {limit} can wait", param=param)


def choices_at_once(engine: EngineClient) -> int:
    """Return a sixteenth of the queue: a client that asks for a thousand choices leaves the rest its place in it."""
    return max(1, engine.config.max_waiting // _SHARE)
