"""Every error that Longspan raises on purpose. A user's mistake is never an `assert`."""

from __future__ import annotations


class LongspanError(Exception):
    """Root of the tree."""


class ConfigError(LongspanError):
    """A setting is unknown, out of range, or does not go with another."""


class ModelError(LongspanError):
    """The model cannot be found, read, or run."""


class UnsupportedModelError(ModelError):
    """The model's architecture, or one of its features, is not implemented here."""


class RequestError(LongspanError):
    """A request cannot be served as it stands (HTTP 400). `param` names the offending field."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class QueueFullError(LongspanError):
    """Too many requests wait already (HTTP 429)."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class OverloadedError(LongspanError):
    """The first token would come later than is promised, so the request is not begun (HTTP 429)."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FleetTooSmallError(LongspanError):
    """Too few instances serve, and none of the others is expected back: the request does not fit (HTTP 503)."""

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineDeadError(LongspanError):
    """A worker died or hangs: running requests failed, and new ones are refused (HTTP 503)."""


class ModelOutputError(LongspanError):
    """The model gave nothing that a token could be chosen from: its logits are not finite (HTTP 500)."""


class EngineDrainingError(LongspanError):
    """The server is shutting down: running requests finish, new ones are refused (HTTP 503)."""


class RequestFailedError(LongspanError):
    """The server failed on this one request, and ended it; all else goes on (HTTP 500)."""


class EngineStalledError(LongspanError):
    """Work that the engine has decided does not end: it may be dead without knowing (HTTP 503)."""


class ReplayError(LongspanError):
    """An event log cannot be read, or does not belong to this version."""


class TraceError(LongspanError):
    """A workload trace cannot be read; the message names file, line and column."""
