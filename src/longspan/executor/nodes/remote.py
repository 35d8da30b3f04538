"""Another machine as the engine sees it: its agent starts workers there, and passes on what they hear and say."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress

import msgspec

from longspan.errors import LongspanError
from longspan.executor.machine import Place
from longspan.executor.nodes.line import Line
from longspan.executor.nodes.messages import (
    Alive,
    Ended,
    Join,
    Kill,
    Leave,
    Leaving,
    Met,
    Said,
    Start,
    Started,
    Tell,
    ToAgent,
    ToEngine,
    Welcome,
    decode_to_engine,
    encode,
)
from longspan.executor.outbox import Outbox
from longspan.executor.reader import CHECK_S, Reader
from longspan.executor.vitals import VitalsElsewhere
from longspan.executor.worker_handle import WorkerHandle
from longspan.worker.messages import Reply, decode_reply
from longspan.worker.spec import WorkerSpec

logger = logging.getLogger(__name__)

Post = Callable[[WorkerHandle, Reply | None], None]
_NUMBERS = itertools.count(1)  # of workers and places; never used again


class RemoteHandle(WorkerHandle):
    """A worker of another machine."""

    def __init__(self, spec: WorkerSpec, number: int, pid: int, session: Session) -> None:
        super().__init__(spec, VitalsElsewhere())
        self.number = number
        self.ended: Ended | None = None
        self._pid = pid
        self._session = session

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def has_crashed(self) -> bool:
        return self.ended is not None and self.ended.has_crashed

    def end_message(self) -> str:
        return f"{self.spec.name} ended unexpectedly" if self.ended is None else self.ended.message

    def fence(self) -> None:
        self.is_fenced = True
        self._session.handles.pop(self.number, None)
        with suppress(OSError):  # the machine is lost: its agent ends its workers when it finds itself alone
            self._session.send(Kill(self.number))

    def _send(self, data: bytes) -> None:
        self._session.send(Tell(self.number, data))


class Session:
    """What goes on with a machine from when it joins until its line ends. over: why it has ended, once it has.

    post: takes what its workers say. on_leaving: called when the machine has been told to stop. host: see `Machine`.
    """

    def __init__(self, line: Line, post: Post, on_leaving: Callable[[], None], host: int) -> None:
        self.line = line
        self.host = host
        self.last_heard = time.monotonic()
        self.over: str | None = None
        self.is_leaving = False
        self.handles: dict[int, RemoteHandle] = {}
        self._starting: dict[int, tuple[Start, Future[list[WorkerHandle]]]] = {}
        self._changing = threading.Lock()
        self._post, self._on_leaving = post, on_leaving
        self._outbox = Outbox(line)
        line.wait_without_end()
        self._thread = threading.Thread(target=self._receive, name="node", daemon=True)
        self._thread.start()

    def send(self, message: ToAgent) -> None:
        """Raises OSError once the line is known to have ended."""
        self._outbox.send(encode(message))

    def start(self, start: Start) -> Future[list[WorkerHandle]]:
        started: Future[list[WorkerHandle]] = Future()
        with self._changing:
            if self.over is not None:
                started.set_exception(OSError(self.over))
                return started
            self._starting[start.place] = (start, started)
        with suppress(OSError):  # as is about to be found out
            self.send(start)
        return started

    def end(self, why: str) -> None:
        """End it, from any thread; the first reason counts."""
        with self._changing:
            if self.over is not None:
                return
            self.over = why
            starting, self._starting = self._starting, {}
        self.line.close()
        self._outbox.close()
        for _, started in starting.values():
            started.set_exception(OSError(why))

    def leave(self, timeout_s: float) -> None:
        """Have the machine end its workers and go; wait for that."""
        with suppress(OSError):
            self.send(Leave())
        self._thread.join(timeout_s)

    def _receive(self) -> None:
        try:
            while True:
                message = decode_to_engine(self.line.receive())
                self.last_heard = time.monotonic()
                self._take(message)
        except (OSError, EOFError) as error:
            why = f"the connection to it has ended ({error})"
        except (LongspanError, msgspec.MsgspecError) as error:
            why = str(error)
        self.end(why)

    def _take(self, message: ToEngine) -> None:
        match message:
            case Said(worker, reply):
                if (handle := self.handles.get(worker)) is not None:
                    self._post(handle, decode_reply(reply))
            case Ended(worker):
                if (handle := self.handles.get(worker)) is not None:
                    handle.ended = message
                    self._post(handle, None)
            case Started():
                self._take_started(message)
            case Leaving():
                self.is_leaving = True
                self._on_leaving()
            case Join():
                raise LongspanError("it has joined twice over one line")
            case Alive():
                pass

    def _take_started(self, message: Started) -> None:
        with self._changing:
            start, started = self._starting.pop(message.place, (None, None))
        if start is None or started is None:
            return
        if message.error:
            started.set_exception(OSError(message.error))
            return
        handles = [
            RemoteHandle(spec, number, pid, self)
            for spec, number, pid in zip(start.specs, start.workers, message.pids, strict=False)
        ]
        self.handles.update({handle.number: handle for handle in handles})
        started.set_result(list(handles))


class PlaceThere:
    """`Place` of another machine."""

    def __init__(self, session: Session) -> None:
        self.number = next(_NUMBERS)
        self._session = session
        self._is_closed = False

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            with suppress(OSError):
                self._session.send(Met(self.number))


class RemoteMachine:
    """`Machine` whose agent joins, may be lost, and may join again. Who calls `check` sees that first.

    timeout_s: whoever says nothing for so long is lost. name: by default that of a node.
    """

    def __init__(self, node: int, token: bytes, timeout_s: float, name: str | None = None) -> None:
        self.node = self.host = node
        self.name = name or f"node {node}"
        self.address: str | None = ""
        self.token = token
        self._timeout_s = timeout_s
        self._session: Session | None = None
        self._next: Session | None = None  # it has joined, and is yet to be welcomed
        self._changing = threading.Lock()
        self._told_at = 0.0

    @property
    def is_there(self) -> bool:
        return self._session is not None and self._session.over is None

    @property
    def is_leaving(self) -> bool:
        return self._session is not None and self._session.is_leaving

    def offer(self, line: Line, reader: Reader, on_leaving: Callable[[], None], host: int) -> None:
        """The machine's agent has called. What called before it, and may not know that it is cut off, is given up."""
        with self._changing:
            if self._next is not None:
                self._next.end("it has joined anew")
            if self._session is not None:
                self._session.end("it has joined anew")
            self._next = Session(line, reader.post, on_leaving, host)
        reader.wake()

    def check(self, now: float, late_s: float = 0.0) -> str | None:
        """Notice its end, and say that the engine lives; returns why the machine is lost, when it is.

        late_s: for so long nobody could have heard it.
        """
        session = self._session
        if session is None:
            return None
        session.last_heard += late_s
        if (silent := now - session.last_heard) > self._timeout_s:
            session.end(f"it gave no sign of life for {silent:.0f} s")
        if session.over is not None:
            self._session = None
            return "it was told to stop, and has ended" if session.is_leaving else session.over
        if now - self._told_at >= CHECK_S:
            self._told_at = now
            with suppress(OSError):
                session.send(Alive())
        return None

    def welcome(self) -> bool:
        """Take a machine that has called, if it is missing; tell whether one was taken."""
        with self._changing:
            if self._session is not None or self._next is None:
                return False
            session, self._next = self._next, None
            session.last_heard = time.monotonic()
            self._session, self.address, self.host = session, session.line.peer, session.host
        with suppress(OSError):  # it has gone again
            session.send(Welcome(self._timeout_s, logging.getLogger("longspan").getEffectiveLevel()))
        logger.info("%s, %s, has joined", self.name, self.address)
        return session.over is None

    def make_place(self) -> PlaceThere:
        session = self._session
        if session is None:
            raise OSError(f"{self.name} is not there")
        return PlaceThere(session)

    def start(self, specs: Sequence[WorkerSpec], place: Place) -> Future[list[WorkerHandle]]:
        assert isinstance(place, PlaceThere)
        numbers = tuple([next(_NUMBERS) for _ in specs])
        session = self._session
        if session is None:
            gone: Future[list[WorkerHandle]] = Future()
            gone.set_exception(OSError(f"{self.name} is not there"))
            return gone
        return session.start(Start(place.number, numbers, tuple(specs)))

    def leave(self, timeout_s: float) -> None:
        """The engine ends in good order: so do its workers there, and their agent."""
        if (session := self._session) is not None:
            session.leave(timeout_s)
        self.close()

    def close(self) -> None:
        """Hang up: the agent ends its workers, and calls again."""
        for session in (self._session, self._next):
            if session is not None:
                session.end("the engine has ended")
