"""The requests of an event log, as a trace: what came, when, and how many tokens it got."""

from __future__ import annotations

import gzip
from collections import Counter
from pathlib import Path

from longspan.core.actions import RefuseRequest
from longspan.core.events import BatchCompleted, RequestArrived
from longspan.errors import ReplayError, TraceError
from longspan.metrics.event_log import EventLog
from longspan.workload.traces import TraceRequest

_SIGN = b'{"version":'
_GZIP_MAGIC = b"\x1f\x8b"


def is_event_log(path: Path | str) -> bool:
    """Tell whether a file begins as an event log does. False where there is no such file."""
    try:
        with open(path, "rb") as file:
            opened = gzip.open if file.read(2) == _GZIP_MAGIC else open
        with opened(path, "rb") as file:
            return file.read(len(_SIGN)) == _SIGN
    except (OSError, EOFError):
        return False


def read_logged(path: Path | str) -> list[TraceRequest]:
    """Return the requests in order of arrival, by seconds from the first one.

    One that was refused wants as many tokens as it may have; one that was aborted, or goes on at the log's end, as many
    as it got, and at least one.

    Raises:
        TraceError: the log cannot be read, or has no request.
    """
    arrived: dict[str, tuple[float, RequestArrived]] = {}
    tokens: Counter[str] = Counter()
    ended: set[str] = set()
    try:
        for piece in EventLog(path).pieces:
            for record in piece:
                match record.event:
                    case RequestArrived(request_id):
                        arrived[request_id] = record.now, record.event
                    case BatchCompleted(_, outputs):
                        # A token sampled behind a request's end is nobody's.
                        tokens.update([each.request_id for each in outputs if each.request_id not in ended])
                        ended.update([each.request_id for each in outputs if each.finish_reason is not None])
                for action in record.actions:
                    if isinstance(action, RefuseRequest):
                        tokens[action.request_id] = arrived[action.request_id][1].max_tokens
    except ReplayError as error:
        raise TraceError(str(error)) from error
    if not arrived:
        raise TraceError(f"{path}: no request arrives in it")
    begun = min(at for at, _ in arrived.values())
    return [
        TraceRequest(at - begun, event.num_prompt_tokens, max(1, tokens[name]), service=event.service)
        for name, (at, event) in arrived.items()
    ]
