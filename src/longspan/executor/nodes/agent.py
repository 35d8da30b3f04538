"""What runs on the other machines: it starts workers there, watches them, and passes on what is said to and by them.

Where it loses the engine it ends its workers, for the engine takes them for lost, and calls again. So does the engine
where it loses an agent: each ends what the other may not reach.
"""

from __future__ import annotations

import logging
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from longspan.errors import ConfigError, LongspanError
from longspan.executor.launcher import Launcher
from longspan.executor.meeting_place import MeetingPlace
from longspan.executor.nodes.access import check_access, resolve
from longspan.executor.nodes.line import Line, LineRefusedError, call
from longspan.executor.nodes.messages import (
    Alive,
    Ended,
    Join,
    Kill,
    Leave,
    Leaving,
    Met,
    Refused,
    Said,
    Start,
    Started,
    Tell,
    ToAgent,
    ToEngine,
    Welcome,
    decode_to_agent,
    encode,
)
from longspan.executor.outbox import Outbox
from longspan.executor.reader import CHECK_S, Reader
from longspan.executor.worker_handle import WorkerHandle
from longspan.worker.messages import (
    BatchDone,
    Beat,
    Cancel,
    FirstStageDone,
    KVAllocated,
    MigrationDone,
    Reply,
    WorkLeft,
    decode_command,
)
from longspan.worker.messages import encode as encode_reply

logger = logging.getLogger(__name__)

_AGAIN_S = 1.0
_GRACE_S = 5.0  # for its reader to end
STOPPED_BY_SIGNAL = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """host, port: of the engine. facts: see `Gathering`. model_path: of the model on this machine.

    leave_s: so long a machine that is told to stop waits for its instances to be emptied. own_host: see `Join`.
    threads: of each device, where the engine does not say.
    """

    host: str
    port: int
    key: bytes
    node: int
    facts: Mapping[str, str]
    model_path: str
    leave_s: float
    own_host: int | None = None
    threads: int | None = None


class NodeAgent:
    """One machine's agent, from start to end."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings = settings
        self._signals: list[int] = []
        self._stopping = threading.Event()
        self._line: Line | None = None
        self._serves = False

    def run(self) -> int:
        """Serve engines, one after the other, until one ends in good order or a signal comes; on the main thread.

        Returns 0; or 128 + signal, if it was stopped before its instances were empty. Raises ConfigError: the engine
        refuses this machine.
        """
        before = [(number, signal.signal(number, self._on_signal)) for number in (signal.SIGINT, signal.SIGTERM)]
        try:
            return self._run()
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    def _run(self) -> int:
        while not self._stopping.is_set():
            line, welcome = self._join()
            if line is None or welcome is None:
                continue
            self._serves = True
            session = AgentSession(line, welcome, self._settings, self._stopping)
            why = session.serve()
            self._serves, self._line = False, None
            if session.has_left:
                logger.info("the engine has ended, or needs this node no more")
                return 0
            if not self._stopping.is_set():
                logger.error("the engine is lost: %s. The workers here are ended, and this node calls again", why)
        return STOPPED_BY_SIGNAL + self._signals[-1]

    def _on_signal(self, number: int, _frame: object) -> None:
        """The first has the instances here emptied; a second ends them."""
        self._signals.append(number)
        self._stopping.set()
        if self._line is not None and (len(self._signals) > 1 or not self._serves):
            self._line.close()

    def _join(self) -> tuple[Line, Welcome] | tuple[None, None]:
        """Call until the engine answers; (None, None): a signal came."""
        settings, told = self._settings, False
        while not self._stopping.is_set():
            try:
                address = resolve(settings.host)
                check_access(settings.key, address)
                line = call(address, settings.port, settings.key)
            except LineRefusedError as error:
                raise ConfigError(str(error)) from error
            except (OSError, EOFError) as error:
                if not told:
                    told = True
                    where = f"{settings.host}, port {settings.port}"
                    logger.info("waiting for the node with --node-rank 0 at %s (%s)", where, error)
                self._stopping.wait(_AGAIN_S)
                continue
            self._line = line
            with suppress(OSError, EOFError):  # it has gone again
                line.send_bytes(encode(Join(settings.node, dict(settings.facts), settings.own_host)))
                match decode_to_agent(line.receive()):
                    case Welcome() as welcome:
                        logger.info("node %d has joined the engine at %s, by %s", settings.node, address, line.address)
                        return line, welcome
                    case Refused(why):
                        raise ConfigError(f"the node with --node-rank 0 refuses this one: {why}")
            line.close()
            self._stopping.wait(_AGAIN_S)
        return None, None


class AgentSession:
    """What goes on with one engine. has_left: it has ended in good order, or the machine has been emptied.

    All but receiving is on the thread that hears the workers.
    """

    def __init__(
        self, line: Line, welcome: Welcome, settings: AgentSettings, stopping: threading.Event
    ) -> None:
        self.has_left = False
        self._line = line
        self._timeout_s = welcome.timeout_s
        self._settings = settings
        self._stopping = stopping
        self._outbox = Outbox(line)
        line.wait_without_end()
        self._launcher = Launcher(welcome.timeout_s, settings.node, line.address, log_level=welcome.log_level)
        self._reader = Reader(self._take, self._on_end, self._check)
        self._workers: dict[int, WorkerHandle] = {}
        self._numbers: dict[WorkerHandle, int] = {}
        self._allocated: set[WorkerHandle] = set()
        self._places: dict[int, MeetingPlace] = {}
        self._wishes: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._last_heard = time.monotonic()
        self._last_told = 0.0
        self._leaves_since: float | None = None

    def serve(self) -> str:
        """Serve until the line ends; returns why. No worker is left then."""
        self._reader.begin([])
        try:
            while True:
                message = decode_to_agent(self._line.receive())
                self._last_heard = time.monotonic()
                self._hear(message)
                if isinstance(message, Leave):
                    return "it has ended"
        except (OSError, EOFError) as error:
            return f"the connection to it has ended ({error})"
        except (LongspanError, msgspec.MsgspecError) as error:
            return str(error)
        finally:
            self._end()

    def _end(self) -> None:
        self._launcher.close()
        self._reader.end(_GRACE_S)
        for handle in self._workers.values():
            handle.fence()
        for place in self._places.values():
            place.close()
        self._launcher.end()
        self._line.close()
        self._outbox.close()

    def _hear(self, message: ToAgent) -> None:
        match message:
            case Tell(number, data):
                self._pass_on(number, data)
            case Start():
                self._wish(lambda: self._start(message))
            case Kill(number):
                self._wish(lambda: self._kill(number))
            case Met(place):
                self._wish(lambda: self._leave_place(place))
            case Leave():
                self.has_left = True
            case _:
                assert isinstance(message, Alive), f"unexpected {message!r}"

    def _pass_on(self, number: int, data: bytes) -> None:
        handle = self._workers.get(number)
        if handle is None:
            return
        command = decode_command(data)
        if isinstance(command, Cancel):
            handle.vitals.reset(time.monotonic())  # it may have waited for what was lost
        with suppress(OSError):  # it has ended, as the engine is about to hear
            handle.send(command, data)

    def _wish(self, wish: Callable[[], None]) -> None:
        """Have the reader's thread see to it."""
        self._wishes.put(wish)
        self._reader.wake()

    def _tell(self, message: ToEngine) -> None:
        with suppress(OSError):  # whoever receives finds out
            self._outbox.send(encode(message))

    # -- on the reader's thread -----------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        settings = self._settings
        specs = [
            replace(spec, model_path=settings.model_path, threads=spec.threads or settings.threads)
            for spec in start.specs
        ]
        try:
            place = self._places[start.place] = MeetingPlace()
            handles = self._launcher.start(specs, place).result()
        except OSError as error:
            self._tell(Started(start.place, error=str(error)))
            return
        self._workers.update(zip(start.workers, handles, strict=False))
        self._numbers.update(zip(handles, start.workers, strict=False))
        self._reader.watch(list(self._workers.values()))
        self._tell(Started(start.place, tuple([handle.pid for handle in handles])))

    def _kill(self, number: int) -> None:
        if (handle := self._workers.get(number)) is not None:
            self._forget(handle)

    def _forget(self, handle: WorkerHandle) -> None:
        handle.fence()
        del self._workers[self._numbers.pop(handle)]
        self._allocated.discard(handle)
        self._reader.watch(list(self._workers.values()))

    def _leave_place(self, number: int) -> None:
        if (place := self._places.pop(number, None)) is not None:
            place.close()

    def _take(self, handle: WorkerHandle, reply: Reply) -> None:
        match reply:
            case Beat(progress):
                handle.vitals.beat(progress, time.monotonic())
            case FirstStageDone() | BatchDone() | MigrationDone() | WorkLeft():
                handle.answered()
            case KVAllocated():
                handle.vitals.reset(time.monotonic())  # it took any time to load
                self._allocated.add(handle)
        self._tell(Said(self._numbers[handle], encode_reply(reply)))

    def _on_end(self, handle: WorkerHandle) -> None:
        self._give_up(handle, handle.end_message(), has_crashed=handle.has_crashed)

    def _give_up(self, handle: WorkerHandle, message: str, *, has_crashed: bool) -> None:
        number = self._numbers[handle]
        self._forget(handle)
        self._tell(Ended(number, message, has_crashed))

    def _check(self, late_s: float) -> None:
        while not self._wishes.empty():
            self._wishes.get()()
        now = time.monotonic()
        for handle in list(self._allocated):
            handle.vitals.excuse(late_s)
            if (how := handle.vitals.verdict(now, has_work=handle.has_work)) is not None:
                self._give_up(handle, f"{handle.spec.name} {how}", has_crashed=False)
                for other in self._allocated:
                    other.vitals.reset(now)  # they may have waited for it
                break
        self._last_heard += late_s
        if now - self._last_heard > self._timeout_s:
            logger.error("the engine gave no sign of life for %.0f s", now - self._last_heard)
            self._line.close()
        if now - self._last_told >= CHECK_S:
            self._last_told = now
            self._tell(Alive())
        if self._stopping.is_set():
            self._leave(now)

    def _leave(self, now: float) -> None:
        """Have the instances here emptied, and go when they have been ended."""
        if self._leaves_since is None:
            self._leaves_since = now
            logger.info("stopping: what is here moves away; a second signal stops at once")
            self._tell(Leaving())
        if not self._workers:
            self.has_left = True
        if self.has_left or now - self._leaves_since > self._settings.leave_s:
            self._line.close()
