"""The event log: everything that the scheduler was told and decided, one line of JSON for each event.

The scheduler is pure, so the log replays to the identical decisions: it is a bug report, a trace and a
dashboard's source at once. Numbers are written so that they read back to the very same bits. docs/event_log.md
describes the files and their lines.
"""

from longspan.metrics.event_log.reader import EventLog, LogRecord, Piece, read_event_log
from longspan.metrics.event_log.replaying import Difference, replay
from longspan.metrics.event_log.writer import EventLogWriter, OpenedLog, open_log, tell_the_end

__all__ = [
    "Difference",
    "EventLog",
    "EventLogWriter",
    "LogRecord",
    "OpenedLog",
    "Piece",
    "open_log",
    "read_event_log",
    "replay",
    "tell_the_end",
]
