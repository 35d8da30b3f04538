"""Exchange between processes of several machines: through memory within one, over TCP between two.

Both carry the same streams of letters (shared_memory.py), so a pair of ranks does not know how it is connected. A rank
listens for as long as it lives; who is told to exchange with it connects. The stream is not encrypted: the network
between machines has to be one that can be trusted. The token keeps strangers from being taken for a rank.
"""

from __future__ import annotations

import hmac
import socket
import struct
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from longspan.distributed.shared_memory import CAPACITY, Mail, SharedMemoryTransport
from longspan.distributed.transport import Transport
from longspan.door import Door
from longspan.native.work import CurrentWork

Address = tuple[str, int]

_MAGIC, _WELCOME = b"longspan", b"!"
_HELLO_S, _CALL_S = 10.0, 10.0


class AcrossHostsTransport(SharedMemoryTransport):
    """`Transport` over channels in memory, or over TCP to ranks that have called or were called.

    place, rank, world_size, capacity, work, make_mail: see `SharedMemoryTransport`. host: the address to listen at, by
    which other machines reach this one. token: of the engine, TOKEN_BYTES long.
    """

    def __init__(
        self, place: Path | str, rank: int, world_size: int, host: str, token: bytes, capacity: int = CAPACITY,
        work: CurrentWork | None = None, make_mail: Callable[[CurrentWork], Mail] | None = None,
    ) -> None:  # fmt: skip
        self._connections: dict[int, socket.socket] = {}
        super().__init__(place, rank, world_size, capacity, work, make_mail)
        self._token = token
        self._hello = struct.Struct(f"<8s{len(token)}sq")  # what this is, the token, and who calls
        self._callers: deque[tuple[int, socket.socket]] = deque()
        self._door = Door(host, 0, self._greet)
        self.address: Address = self._door.address

    def link(self, place: Path | str, other: int) -> None:
        super().link(place, other)
        self._hang_up(other)

    def shares_memory(self, other: int) -> bool:
        return other not in self._connections

    def call(self, address: Address, other: int) -> None:
        """Exchange with another rank over TCP from now on, as `link` does through memory. Raises OSError."""
        connection = socket.create_connection(address, timeout=_CALL_S)
        try:
            connection.sendall(self._hello.pack(_MAGIC, self._token, self.rank))
            if connection.recv(1) != _WELCOME:
                raise ConnectionError(f"who listens at {address[0]}, port {address[1]}, is no worker of this engine")
        except OSError:
            connection.close()
            raise
        self._take(other, connection)

    def take_callers(self) -> None:
        """Exchange with those that have called. To be called before work that they may take part in."""
        while self._callers:
            self._take(*self._callers.popleft())

    def close(self) -> None:
        """Listen no more."""
        self._door.close()

    def _take(self, other: int, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setblocking(False)
        for outgoing in (True, False):
            self.mail.connect_socket(other, connection, outgoing=outgoing)
        self._hang_up(other)
        self._connections[other] = connection

    def _hang_up(self, other: int) -> None:
        if (before := self._connections.pop(other, None)) is not None:
            before.close()

    def _greet(self, caller: socket.socket) -> None:
        """Another thread exchanges; what calls is kept for it."""
        try:
            caller.settimeout(_HELLO_S)
            magic, token, rank = self._hello.unpack(caller.recv(self._hello.size, socket.MSG_WAITALL))
            if magic != _MAGIC or not hmac.compare_digest(token, self._token):
                raise ConnectionError
        except (OSError, struct.error):
            caller.close()
            return
        self._callers.append((rank, caller))
        with suppress(OSError):  # it has gone, as whoever waits for it will be told
            caller.sendall(_WELCOME)


def address_of(transport: Transport) -> Address | None:
    """Return where other machines' ranks call; None where all ranks are on one machine."""
    return transport.address if isinstance(transport, AcrossHostsTransport) else None
