"""Where the first machine of an engine is found, and who may come to it."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

from longspan.config import EngineConfig
from longspan.errors import ConfigError

DEFAULT_PORT = 29600
_LEAST_KEY = 16  # characters


def master_address(config: EngineConfig) -> tuple[str, int]:
    """Return the name or address, and the port, that `master` says. Raises ConfigError."""
    master = config.master or ""
    host, colon, port = master.rpartition(":")
    if not colon or master.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = master, str(DEFAULT_PORT)
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"master is {master!r}, but must be like 10.0.0.1, node-0:{DEFAULT_PORT} or [fd00::1]:29600")
    return host.strip("[]"), int(port)


def resolve(host: str) -> str:
    """Return the first address of a name. Raises OSError."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def fleet_key(config: EngineConfig) -> bytes:
    """Return the key that all machines share; empty where none is given. Raises ConfigError."""
    key = config.fleet_key
    if config.fleet_key_file is not None:
        try:
            key = Path(config.fleet_key_file).read_text().strip()
        except (OSError, ValueError) as error:
            raise ConfigError(f"fleet_key_file {config.fleet_key_file} cannot be read: {error}") from error
    if key is None:
        return b""
    if len(key) < _LEAST_KEY:
        raise ConfigError(
            f"the fleet's key has {len(key)} characters, but must have at least {_LEAST_KEY}: make one with "
            "`openssl rand -hex 32`"
        )
    return key.encode()


def check_access(key: bytes, address: str) -> None:
    """Raises ConfigError unless there is a key, or only this machine reaches the address."""
    if not key and not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        raise ConfigError(
            f"master is {address}, which other machines reach, so the fleet needs a key: write one into a file "
            "(`openssl rand -hex 32`), and give it to all nodes with --fleet-key-file"
        )
