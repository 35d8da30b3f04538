"""Feeds a log's events to a new scheduler, and compares what it decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from longspan.core.actions import Action
from longspan.core.hierarchy import AnyScheduler, make_scheduler
from longspan.core.internal_error import InternalError
from longspan.core.policies import POLICIES
from longspan.core.policies.base import Policy
from longspan.errors import ReplayError
from longspan.metrics.event_log.reader import EventLog, LogRecord


@dataclass(frozen=True, slots=True)
class Difference:
    """The first call that a replay decides otherwise than the log says."""

    line: int
    expected: tuple[Action, ...]
    got: tuple[Action, ...]
    path: Path = Path()

    def lines(self) -> list[str]:
        """Tell it to people."""
        told = [f"{self.path}, line {self.line}: the log has"]
        told += [f"  {action}" for action in self.expected] or ["  nothing"]
        told += ["but it is decided now"]
        return told + ([f"  {action}" for action in self.got] or ["  nothing"])


def replay(
    path: Path | str, policy: Policy | None = None, on_read: Callable[[int], object] = lambda count: None
) -> Difference | None:
    """Return where a fresh scheduler, given the log's events, first decides otherwise; or None.

    policy: a fresh one, for logs of a policy that is not known by name. An unfinished last line is left out.

    Raises:
        ReplayError: the log cannot be read, is not whole, or is of a policy that must be given.
    """
    return replay_log(EventLog(path, on_read), policy)


def replay_log(log: EventLog, policy: Policy | None = None) -> Difference | None:
    """Replay a log that is open, as `replay` does."""
    _require_whole(log)
    if policy is None:
        _require_known(log)
    scheduler = make_scheduler(log.config, policy, log.cost_model)
    for number, piece in enumerate(log.pieces, start=1):
        for record in piece:
            got = _decide(scheduler, record)
            if got != record.actions:
                return Difference(record.line, record.actions, got, record.path)
        if piece.truncated_line is not None and number < len(log.pieces):
            raise ReplayError(f"{piece.path}, line {piece.truncated_line}: it is cut short, though a piece follows")
    return None


def _decide(scheduler: AnyScheduler, record: LogRecord) -> tuple[Action, ...]:
    try:
        return tuple(scheduler.handle(record.event, record.now))
    except InternalError as error:
        raise ReplayError(f"{record.path}, line {record.line}: the scheduler refuses it: {error}") from error
    except Exception as error:  # what a policy raises, as it did in the engine
        cause, name = f"{type(error).__name__}: {error}", scheduler.policy.name
        raise ReplayError(f"{record.path}, line {record.line}: the policy {name} fails: {cause}") from error


def _require_whole(log: EventLog) -> None:
    missing = log.missing()
    if missing is not None:
        raise ReplayError(
            f"{log.path}: {missing}, and a replay needs every event from the first; "
            f"`longspan explain` reads what is here"
        )


def _require_known(log: EventLog) -> None:
    if log.own_policy is not None:
        raise ReplayError(
            f"{log.path}: it was decided by {log.own_policy}, a policy of one's own named {log.policy!r}: "
            f"give a fresh one, as replay(path, policy=...) or `longspan replay --policy MODULE:CLASS`"
        )
    if log.policy not in POLICIES:
        raise ReplayError(
            f"{log.path}: there is no policy {log.policy!r} here: give one, as replay(path, policy=...) or "
            f"`longspan replay --policy MODULE:CLASS`; known by name are {', '.join(sorted(POLICIES))}"
        )
