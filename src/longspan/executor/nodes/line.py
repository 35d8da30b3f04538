"""Messages between the machines of one engine: over TCP, each one authenticated.

Both ends show first that they know the same key (HMAC-SHA256 over a number that each of them chooses anew), and derive
a key for each direction from it; then every message carries a tag over its number and its bytes, so that none can be
forged, replayed or left out. They are not encrypted. Nothing is decoded before its tag has been checked.
"""

from __future__ import annotations

import hmac
import os
import socket
import struct
import threading
from contextlib import suppress

from longspan.errors import LongspanError

_MAGIC = b"longspan-fleet-1"
"""Its number grows when what is said changes before versions have been compared."""
_NONCE, _TAG = 32, 32
_FRAME = struct.Struct(f"<I{_TAG}s")
_MOST_BYTES = 1 << 30
_SEND_BUFFER = 1 << 20
HANDSHAKE_S = 10.0
_REFUSED = bytes(_TAG)


class LineRefusedError(LongspanError):
    """The other end knows another key, or is no end of such a line."""


class Line:
    """One end, once both have shown the key. One thread receives; `send_bytes` is for one thread at a time.

    Until `wait_without_end` both raise TimeoutError after HANDSHAKE_S.
    """

    def __init__(self, connection: socket.socket, send_key: bytes, receive_key: bytes) -> None:
        self._connection = connection
        self._keys = send_key, receive_key
        self._sent = self._received = 0
        self._closing = threading.Lock()
        self._is_closed = False
        self.address: str = connection.getsockname()[0]
        self.peer: str = connection.getpeername()[0]

    def fileno(self) -> int:
        return self._connection.fileno()

    def wait_without_end(self) -> None:
        """Whoever uses it from now on notices by other signs that the other end is silent."""
        self._connection.settimeout(None)

    def send_bytes(self, data: bytes) -> None:
        """Raises OSError."""
        tag = _tag(self._keys[0], struct.pack("<Q", self._sent) + data)
        self._sent += 1
        self._connection.sendall(_FRAME.pack(len(data), tag) + data)

    def receive(self) -> bytes:
        """Return the next message. Raises OSError, EOFError; or LineRefusedError: it is not the other end's."""
        size, tag = _FRAME.unpack(_receive_exactly(self._connection, _FRAME.size))
        if size > _MOST_BYTES:
            raise LineRefusedError(f"a message of {size} bytes came from {self.peer}")
        data = _receive_exactly(self._connection, size)
        if not hmac.compare_digest(tag, _tag(self._keys[1], struct.pack("<Q", self._received) + data)):
            raise LineRefusedError(f"a message came from {self.peer} that was not written there")
        self._received += 1
        return data

    def close(self) -> None:
        """End it for both, from any thread; what waits on it raises. May be called twice."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def answer(connection: socket.socket, key: bytes) -> Line:
    """Return the end of a line that another machine has called.

    Raises OSError, EOFError; or LineRefusedError.
    """
    return _shake_hands(connection, key, calls=False)


def call(host: str, port: int, key: bytes) -> Line:
    """Return a line to the machine that listens there. Raises as `answer`."""
    return _shake_hands(socket.create_connection((host, port), timeout=HANDSHAKE_S), key, calls=True)


def _shake_hands(connection: socket.socket, key: bytes, *, calls: bool) -> Line:
    """The one that has been called shows its key last: to strangers it says nothing about it."""
    try:
        connection.settimeout(HANDSHAKE_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        peer = connection.getpeername()[0]
        mine = os.urandom(_NONCE)
        connection.sendall(_MAGIC + mine)
        if _receive_exactly(connection, len(_MAGIC)) != _MAGIC:
            raise LineRefusedError(f"{peer} speaks another protocol: another program, or another version of longspan")
        theirs = _receive_exactly(connection, _NONCE)
        nonces = mine + theirs if calls else theirs + mine
        proofs = {who: _tag(key, b"proof of " + who + nonces) for who in (b"caller", b"called")}
        if calls:
            connection.sendall(proofs[b"caller"])
            if not hmac.compare_digest(_receive_exactly(connection, _TAG), proofs[b"called"]):
                raise LineRefusedError(f"{peer} has another key: give all nodes the same --fleet-key-file")
        elif not hmac.compare_digest(_receive_exactly(connection, _TAG), proofs[b"caller"]):
            connection.sendall(_REFUSED)
            raise LineRefusedError(f"{peer} has another key: give all nodes the same --fleet-key-file")
        else:
            connection.sendall(proofs[b"called"])
        there, back = (_tag(key, b"messages of the " + who + nonces) for who in (b"caller", b"called"))
        return Line(connection, *((there, back) if calls else (back, there)))
    except BaseException:
        connection.close()
        raise


def _tag(key: bytes, data: bytes) -> bytes:
    return hmac.digest(key, data, "sha256")


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        count = connection.recv_into(view[done:])
        if not count:
            raise EOFError("the other end has closed the connection")
        done += count
    return bytes(data)
