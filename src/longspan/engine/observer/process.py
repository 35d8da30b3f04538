"""The observer itself: it reads what the engine's process hands over, up to its end, whatever ends it."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable

import msgspec

from longspan.engine.observer.messages import (
    Frames,
    Kind,
    Unpacker,
    Watch,
    decisions,
    decode_look,
    decode_past,
    decode_records,
    encode,
    packed,
)
from longspan.metrics.event_log import EventLogWriter
from longspan.metrics.fleet import Fleet
from longspan.metrics.fleet.watched import Watched

_PIECE = 1 << 20

logger = logging.getLogger(__name__)


def main(source: int, target: int) -> None:
    """Be the process. source, target: descriptors of the pipes from the engine's process, and to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # signals are the engine's to handle
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(5)
    writing = threading.Lock()

    def send(kind: Kind, body: bytes) -> None:
        """Nobody may be there any more: what is left to write is written all the same."""
        rest = memoryview(packed(kind, body))
        try:
            with writing:
                while rest:
                    rest = rest[os.write(target, rest) :]
        except OSError:
            pass

    root = logging.getLogger("longspan")
    root.addHandler(_Sayer(send))
    root.propagate = False
    unpacker, observer = Unpacker(), Observer(send)
    while piece := os.read(source, _PIECE):
        for kind, body in unpacker.take(piece):
            observer.take(kind, body)
    observer.close()
    sys.stderr.flush()
    os._exit(0)  # a thread may wait for a disk that is stuck


class Observer:
    """What becomes of messages. send: answers."""

    def __init__(self, send: Callable[[Kind, bytes], None]) -> None:
        self._send = send
        self._log: EventLogWriter | None = None
        self._watched: dict[int, Watched] = {}

    def take(self, kind: Kind, body: bytes) -> None:
        """Take in one message."""
        match kind:
            case Kind.LOG:
                self._log = EventLogWriter.to(pickle.loads(body), lambda why: self._send(Kind.LOG_ENDED, why.encode()))
            case Kind.RECORDS:
                self._take_in(body)
            case Kind.LACKING:
                self._lack(ValueError(body.decode()))
            case Kind.HURRY if self._log is not None:
                self._log.flush()
            case Kind.WATCH:
                self._watch(pickle.loads(body))
            case Kind.PAST:
                self._read_past(body)
            case Kind.LOOK:
                self._look(body)
            case Kind.LEAVE:
                self._watched.pop(int(body), None)

    def close(self) -> None:
        """Write what is left."""
        if self._log is not None:
            self._log.close()

    def _take_in(self, body: bytes) -> None:
        try:
            self._read(body)
        except msgspec.MsgspecError:  # a policy of one's own may do as it likes: those before count
            self._read_those_before_the_broken(body)

    def _read_those_before_the_broken(self, body: bytes) -> None:
        for each in msgspec.msgpack.decode(body, type=list[msgspec.Raw]):
            try:
                self._read(encode([each]))
            except msgspec.MsgspecError as error:
                self._lack(error)
                return

    def _read(self, body: bytes) -> None:
        """Raises MsgspecError before anything is taken in: they are not what they should be."""
        records = [(now, event, actions, decisions(why)) for now, event, actions, why in decode_records(body)]
        if self._log is not None:
            for record in records:
                self._log.write(*record)
        for watched in self._watched.values():
            for record in records:
                watched.read(*record)

    def _lack(self, error: Exception) -> None:
        """Nothing goes on without the records that could not be sent."""
        if self._log is not None:
            self._log.switch_off(error)
        for watched in self._watched.values():
            watched.failed = True

    def _watch(self, watch: Watch) -> None:
        fleet = Fleet(watch.num_instances)
        watched = self._watched[watch.number] = Watched(fleet, watch.shift)
        try:
            fleet.open(watch.inventory, watch.known, watch.now)
            if watch.past is not None:
                watched.begin_past(*watch.past)
        except Exception:
            watched.failed = True
            logger.exception("what the page shows cannot be begun")

    def _read_past(self, body: bytes) -> None:
        past = decode_past(body)
        watched = self._watched.get(past.number)
        if watched is None or watched.failed:
            return
        try:
            for now, event, actions, why in past.records:
                watched.read_past(now, event, actions, decisions(why))
            if past.is_last:
                watched.end_past()
        except Exception:
            watched.failed = True
            logger.exception("what was before cannot be shown")

    def _look(self, body: bytes) -> None:
        look, begun = decode_look(body), time.thread_time()
        watched = self._watched[look.number]
        if not watched.failed:
            try:
                changes, whole = watched.frame(look.now, look.about, look.state)
            except Exception:
                watched.failed = True
                logger.exception("the page cannot be told what there is to see")
        if watched.failed:
            self._send(Kind.FRAMES, encode(Frames(look.question, is_over=True)))
            return
        is_empty = not watched.fleet.lives
        took_s = time.thread_time() - begun
        self._send(Kind.FRAMES, encode(Frames(look.question, changes, whole, is_empty, took_s)))


class _Sayer(logging.Handler):
    """Has the engine's process say what is said here."""

    def __init__(self, send: Callable[[Kind, bytes], None]) -> None:
        super().__init__(logging.INFO)
        self._say = send

    def emit(self, record: logging.LogRecord) -> None:
        self._say(Kind.SAID, encode((record.name, record.levelno, self.format(record))))
