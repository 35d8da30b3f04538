"""The listening socket, taken before the model is loaded: a wrong port should not cost a minute."""

from __future__ import annotations

import errno
import socket

from longspan.errors import ConfigError, LongspanError

ASKED_AFTER_S, ASKED_AGAIN_S, GONE_AFTER_S = 30, 10, 60


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket that does not listen yet, so that clients are refused while the model loads.

    Raises:
        ConfigError: the host is unknown or not ours.
        LongspanError: the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:  # what is no name cannot be written as one
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"host is {host[:200]!r}, which cannot be resolved: {reason}") from error
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _notice_the_gone(sock)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise bind_error(error, host, port) from error
    return sock


def _notice_the_gone(sock: socket.socket) -> None:
    """For all connections: end those whose other end has vanished without a word, as behind a cut cable.

    One that is silent is asked whether it is still there; one that takes nothing of what it is sent is given up.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if not hasattr(socket, "TCP_USER_TIMEOUT"):
        return  # other systems take two hours
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, ASKED_AFTER_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, ASKED_AGAIN_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, (GONE_AFTER_S - ASKED_AFTER_S) // ASKED_AGAIN_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * GONE_AFTER_S)


def bind_error(error: OSError, host: str, port: int) -> LongspanError:
    """Return an error with what went wrong, and what to do about it."""
    match error.errno:
        case errno.EADDRINUSE:
            return LongspanError(
                f"port {port} on {host} is in use already; stop that server or give another --port"
            )
        case errno.EACCES:
            return LongspanError(
                f"port {port} on {host} is not allowed for this user; give a --port above 1023"
            )
        case errno.EADDRNOTAVAIL:
            return ConfigError(f"host is {host!r}, which is not an address of this machine")
        case _:
            return LongspanError(f"cannot listen on {host}, port {port}: {error.strerror}")
