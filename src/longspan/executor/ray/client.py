"""The engine's end of the process that speaks to Ray for it (`driver.py`): started anew when it is lost."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO

import msgspec

from longspan.executor.ray.messages import Connect, Failed, ToDriver, ToEngine, decode_to_engine, encode
from longspan.executor.restarts import LONGEST_S, Restarts

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-m", "longspan.executor.ray.driver")
_END_S = 15.0  # to leave Ray in good order, and to end a cluster that was started for the engine


class RayClient:
    """Over one driver after the other: Ray ends it, with all actors, when its head node is lost.

    take: hears what it says, on a thread of this client. on_failure: hears, once, why there is none, if that comes
    before `survive`. command: what a driver is started with.
    """

    def __init__(
        self, connect: Connect, restarts: Restarts, take: Callable[[ToEngine], None],
        on_failure: Callable[[str], None], command: Sequence[str] = COMMAND,
    ) -> None:  # fmt: skip
        self._connect, self._restarts, self._command = connect, restarts, command
        self._take, self._on_failure = take, on_failure
        self._sending, self._ending = threading.Lock(), threading.Event()
        self._survives = False
        self._driver: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="ray", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def survive(self) -> None:
        """From now on a driver that is lost is replaced by another."""
        self._survives = True

    def send(self, message: ToDriver) -> None:
        """Any thread; one that has ended is told nothing."""
        with self._sending, suppress(OSError, ValueError):
            if self._driver is not None and self._driver.stdin is not None:
                self._driver.stdin.write(encode(message) + b"\n")
                self._driver.stdin.flush()

    def end(self) -> None:
        """Have it end, by closing its input: it may go on for a while to clear up. May be called twice."""
        self._ending.set()
        self._close_input()

    def join(self) -> None:
        """Wait until it has ended."""
        if self._thread.is_alive():
            self._thread.join(_END_S)

    def _close_input(self) -> None:
        with self._sending, suppress(OSError):
            if self._driver is not None and self._driver.stdin is not None:
                self._driver.stdin.close()

    def _keep(self) -> None:
        while True:
            why = self._converse()
            if self._ending.is_set() or not self._survives:
                self._on_failure(why)
                return
            delay_s = self._restarts.delay_s(time.monotonic())
            again_s = LONGEST_S if delay_s is None else delay_s
            logger.error("Ray is lost: %s. It is joined again in %g s", why, again_s)
            if self._ending.wait(again_s):
                return

    def _converse(self) -> str:
        """Start a driver, and hear it to its end; returns why it has ended."""
        with TemporaryFile() as errors:
            driver = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True,  # Ctrl-C is the engine's to handle
            )  # fmt: skip
            with self._sending:
                self._driver = driver
            if self._ending.is_set():
                self._close_input()
            self.send(self._connect)
            assert driver.stdout is not None
            why = self._hear(driver.stdout)
            self._close_input()
            driver.stdout.close()
            code = _end_of(driver)
            errors.seek(0)
            *_, last = ["", *errors.read().decode(errors="replace").splitlines()]
            return why or f"the process that speaks to it has ended with status {code} ({last.strip()})"

    def _hear(self, said: IO[bytes]) -> str:
        why = ""
        with suppress(msgspec.MsgspecError):
            for line in said:
                message = decode_to_engine(line)
                if isinstance(message, Failed):
                    why = message.why
                else:
                    self._take(message)
        return why


def _end_of(driver: subprocess.Popen[bytes]) -> int:
    try:
        return driver.wait(_END_S)
    except subprocess.TimeoutExpired:
        driver.kill()
        return driver.wait()
