"""The process that speaks to Ray for an engine: `python -m longspan.executor.ray.driver`, a line of JSON a message.

A process of its own, since Ray ends the one that it runs in when its head node is lost, takes signals to itself, and
may wait without end. It ends in good order when the engine closes its standard input, as the kernel does for an engine
that was killed.
"""

from __future__ import annotations

import os
import queue
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from contextlib import suppress

import msgspec

from longspan.executor.ray.messages import Add, Connect, Connected, Failed, Place, ToDriver, ToEngine, decode_to_driver
from longspan.executor.ray.messages import encode as encode_line

LOOK_S = 0.5
_END_S = 10.0  # in which it ends in good order, or else at once
_STORE_BYTES = 80_000_000  # little more than Ray's least: nothing is put there


class Driver:
    """From start to end. folder: of a cluster that it has started."""

    def __init__(self, out: int) -> None:
        self._out = out
        self._commands: queue.SimpleQueue[ToDriver] = queue.SimpleQueue()
        self._over = threading.Event()
        self._folder: str | None = None
        threading.Thread(target=self._listen, name="engine", daemon=True).start()

    def run(self) -> None:
        """Do as the engine says until it ends, or nothing can be placed."""
        connect = self._await()
        if not isinstance(connect, Connect):
            return
        if (failed := self._connect(connect)) is not None:
            self._tell(failed)
            return
        from longspan.executor.ray.seats import Seats

        told = self._await()
        if not isinstance(told, Place):
            return
        seats = Seats(told, self._tell)
        try:
            while not self._over.is_set():
                while not self._commands.empty():
                    if isinstance(command := self._commands.get(), Add):
                        seats.add(command.machine)
                if (failed := seats.look(LOOK_S)) is not None:
                    self._tell(failed)
                    return
        finally:
            seats.end()

    def end(self) -> None:
        """Leave the cluster, or end it where it was started here."""
        if (ray := sys.modules.get("ray")) is not None:
            ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _connect(self, told: Connect) -> Failed | None:
        late = threading.Timer(told.timeout_s, self._give_up, [told])
        late.daemon = True
        late.start()
        if told.address is None:  # a token of its own: Ray would write one to the user's home, for all clusters to come
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        try:
            import ray

            from longspan.executor.ray.seats import in_a_line
        except ImportError as error:
            return Failed(f"Ray cannot be used: {error}; pip install 'longspan[ray]'")
        try:
            if told.address is not None:
                ray.init(told.address, log_to_driver=False, configure_logging=False)
            else:
                self._folder = tempfile.mkdtemp(prefix="longspan-ray-", dir=os.environ.get("RAY_TMPDIR", "/tmp"))
                ray.init(
                    "local", log_to_driver=False, configure_logging=False, include_dashboard=False,
                    object_store_memory=_STORE_BYTES, _temp_dir=self._folder,
                )  # fmt: skip
        except Exception as error:  # of any kind, depending on what does not answer
            return Failed(f"Ray at {told.address or 'this machine'} cannot be joined: {in_a_line(error)}")
        finally:
            late.cancel()
        self._tell(Connected(ray.util.get_node_ip_address()))
        return None

    def _give_up(self, told: Connect) -> None:
        self._tell(Failed(f"Ray at {told.address or 'this machine'} does not answer"))
        os._exit(1)

    def _await(self) -> ToDriver | None:
        """Return the next command; None: the engine has ended."""
        while not self._over.is_set():
            with suppress(queue.Empty):
                return self._commands.get(timeout=LOOK_S)
        return None

    def _tell(self, message: ToEngine) -> None:
        with suppress(OSError):  # the engine has ended
            os.write(self._out, encode_line(message) + b"\n")

    def _listen(self) -> None:
        with suppress(msgspec.MsgspecError):
            for line in sys.stdin.buffer:
                self._commands.put(decode_to_driver(line))
        self._over.set()
        threading.Event().wait(_END_S)
        os._exit(1)


def main() -> None:
    out = os.dup(1)
    os.dup2(2, 1)  # what Ray prints is no message
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    driver = Driver(out)
    try:
        driver.run()
    finally:
        driver.end()


if __name__ == "__main__":
    main()
