"""What the server writes to standard error, as text or as one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType

from longspan.entrypoints.server_config import ServerConfig
from longspan.log_fields import FIELDS, answering

ACCESS = "longspan.access"
_ID = "request_id"


class JsonFormatter(logging.Formatter):
    """One object a line: time (UTC), level, logger, message, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TextFormatter(logging.Formatter):
    """As people read it: the request's id behind the message, where that has none."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        request_id = _fields(record).get(_ID)
        return line if request_id is None or str(request_id) in record.message else f"{line} (request {request_id})"


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    own: Mapping[str, object] = getattr(record, FIELDS, {})
    request_id = answering.get()
    return own if request_id is None else {_ID: request_id, **own}


def configure_logging(config: ServerConfig) -> None:
    """Sets up logging for the process, uvicorn's and Python's warnings included."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if config.log_format == "json" else TextFormatter())
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    logging.captureWarnings(True)
    if config.log_format == "json":
        threading.excepthook = _log_of_thread
        sys.excepthook = _log_uncaught
    if config.log_level != "debug":  # a line for each request that we make
        logging.getLogger("httpx2").setLevel(logging.WARNING)
    logging.getLogger(ACCESS).setLevel(logging.INFO if config.access_log else logging.WARNING)


def logs_are_json() -> bool:
    """Tell whether what this process writes to standard error is read by a machine."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def _log_of_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None:
        _log_uncaught(told.exc_type, told.exc_value, told.exc_traceback)


def _log_uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    logging.getLogger("longspan").critical("nobody caught this", exc_info=(kind, error, traceback))
