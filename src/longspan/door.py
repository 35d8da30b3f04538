"""A socket at which strangers are heard one beside the other, so that one that says nothing keeps nobody waiting."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress


class Door:
    """Listens until it is closed. greet: takes each caller, on a thread of its own."""

    def __init__(self, host: str, port: int, greet: Callable[[socket.socket], None]) -> None:
        """port: 0 is any that is free. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.create_server((host, port), family=family, backlog=1024)
        self._greet = greet
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        threading.Thread(target=self._listen, name="door", daemon=True).start()

    def close(self) -> None:
        """Listen no more. May be called twice."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _listen(self) -> None:
        with suppress(OSError):  # it is closed
            while True:
                caller, _ = self._socket.accept()
                threading.Thread(target=self._greet, args=(caller,), name="greet", daemon=True).start()
