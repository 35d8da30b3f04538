"""How the HTTP server listens and behaves; what it serves is `EngineConfig`."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from longspan.config import check_choice, check_seconds
from longspan.errors import ConfigError

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
TenantsBy = Literal["auto", "key", "header", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """One HTTP server. The text behind a field is also its help on the command line."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    max_body_mb: float = 64.0
    """Largest request body, MiB; more gets status 413."""
    body_budget_mb: float | None = None
    """All bodies being received or decoded, MiB; what would exceed it gets status 503 before it is read. By default
    four times the largest."""
    max_header_kb: int = 64
    """Largest request line and headers of a request, KiB; more gets status 431."""
    header_timeout_s: float = 30.0
    """How long the headers of a request may take to come; then status 408."""
    body_timeout_s: float = 30.0
    """How long a body may make no progress; then status 408."""
    max_connections: int = 2048
    """Connections at once; a new one takes the place of the longest idle, or gets status 503 where none is."""
    api_key: tuple[str, ...] = field(default=(), repr=False)
    """A key that requests must carry; may be given several times. Better in the environment, as
    LONGSPAN_SERVE_API_KEY, or in a file, since others may see a command line."""
    api_key_file: Path | None = None
    """A file of such keys, one a line, each with tenant=NAME behind it if it shall have a name; lines that start with #
    are comments."""
    key_max_requests: int | None = None
    """Requests in flight for each key; more get status 429."""
    key_max_tokens: int | None = None
    """Tokens in flight for each key, prompts and max_tokens; more get status 429."""
    tenants: TenantsBy = "auto"
    """By what a request's tenant is told, for policies that keep fair shares (longspan:fair_shares=true): key, by its
    API key, called key-1, key-2 ... or as the file of keys says; header, by what the header Longspan-Tenant says, for
    servers behind a proxy that sets it; auto, by key where there are keys, else by header; none."""
    allowed_hosts: tuple[str, ...] = ()
    """Names of the Host header that are answered, * and *.example.com being patterns. By default all; this
    machine's only where no other reaches the server, and no key is asked for."""
    cors_origins: tuple[str, ...] = ()
    """Origins, such as https://example.com, whose pages may call from a browser; * is all."""
    ssl_certfile: Path | None = None
    """Serve HTTPS with this PEM certificate (chain),"""
    ssl_keyfile: Path | None = None
    """this key,"""
    ssl_keyfile_password: str | None = field(default=None, repr=False)
    """and this password of the key."""
    ssl_ca_certs: Path | None = None
    """Clients must show a certificate of these authorities."""
    stored_responses: int = 1024
    """Responses of /v1/responses that are kept in memory, for clients that ask for them again or go on from them;
    beyond, the oldest of whoever has most is given up. 0 keeps none."""
    stored_responses_mb: float = 64.0
    """All that is kept of them, MiB; the same."""
    access_log: bool = False
    """Log one line for each request."""
    drain_timeout_s: float = 60.0
    """How long running requests may go on after SIGTERM or Ctrl-C."""
    keep_alive_s: float = 15.0
    """A stream that is silent for so long (a long prefill, a pause) gets an SSE comment, so that proxies keep it
    open; 0 is never."""
    dead_linger_s: float = 5.0
    """How long a server whose engine has died answers 503 before it exits with status 1."""
    log_level: LogLevel = "info"
    """What to log, to standard error."""
    log_format: LogFormat = "text"
    """Text, or one JSON object a line."""
    otlp_traces_endpoint: str | None = None
    """Send a trace of each request to this URL, by OTLP over HTTP, such as http://localhost:4318/v1/traces."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}, but must lie in [0, 65535]")
        if not 0 < self.max_body_mb <= 4096:
            raise ConfigError(f"max_body_mb is {self.max_body_mb}, but must lie in (0, 4096]")
        if self.body_budget_mb is not None and not self.max_body_mb <= self.body_budget_mb * 3 / 4 < float("inf"):
            raise ConfigError(
                f"body_budget_mb is {self.body_budget_mb}, but must be at least 4/3 of max_body_mb "
                f"({self.max_body_mb}): large bodies get three quarters of it"
            )
        for name, value in (("drain_timeout_s", self.drain_timeout_s), ("keep_alive_s", self.keep_alive_s),
                            ("dead_linger_s", self.dead_linger_s)):
            check_seconds(name, value, may_be_0=True)
        for name, value in (("header_timeout_s", self.header_timeout_s), ("body_timeout_s", self.body_timeout_s)):
            check_seconds(name, value)
        if not 1 <= self.max_header_kb <= 1024:
            raise ConfigError(f"max_header_kb is {self.max_header_kb}, but must lie in [1, 1024]")
        if self.max_connections < 1:
            raise ConfigError(f"max_connections is {self.max_connections}, but must be at least 1")
        for name, choices in (("log_level", LogLevel), ("log_format", LogFormat), ("tenants", TenantsBy)):
            check_choice(name, getattr(self, name), choices)
        if self.tenants == "key" and not self.has_keys:
            raise ConfigError("tenants is key, so it needs api_key or api_key_file")
        self._check_access()
        self._check_stored()

    def _check_stored(self) -> None:
        if self.stored_responses < 0:
            raise ConfigError(f"stored_responses is {self.stored_responses}, but must be at least 0")
        if not 0 <= self.stored_responses_mb <= 1048576:
            raise ConfigError(f"stored_responses_mb is {self.stored_responses_mb}, but must lie in [0, 1048576]")

    def _check_access(self) -> None:
        for name, limit in (("key_max_requests", self.key_max_requests), ("key_max_tokens", self.key_max_tokens)):
            if limit is not None and not self.has_keys:
                raise ConfigError(f"{name} limits each key, so it needs api_key or api_key_file")
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} is {limit}, but must be at least 1")
        for host in self.allowed_hosts:
            if host != "*" and ("*" in host.removeprefix("*.") or "/" in host or not host):
                raise ConfigError(f"allowed_hosts has {host!r}, but a host is a name, *.example.com, or *")
        for origin in self.cors_origins:
            if origin != "*" and ("://" not in origin or origin.count("/") != 2):
                raise ConfigError(f"cors_origins has {origin!r}, but an origin is like https://example.com, or *")
        for name in ("ssl_keyfile", "ssl_keyfile_password", "ssl_ca_certs"):
            if getattr(self, name) is not None and self.ssl_certfile is None:
                raise ConfigError(f"{name} needs ssl_certfile")

    @property
    def has_keys(self) -> bool:
        return bool(self.api_key) or self.api_key_file is not None

    @property
    def tenants_by_key(self) -> bool:
        return self.tenants == "key" or (self.tenants == "auto" and self.has_keys)

    @property
    def tenants_by_header(self) -> bool:
        return self.tenants == "header" or (self.tenants == "auto" and not self.has_keys)

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def max_body_bytes(self) -> int:
        return int(self.max_body_mb * 1024 * 1024)

    @property
    def body_budget_bytes(self) -> int:
        return 4 * self.max_body_bytes if self.body_budget_mb is None else int(self.body_budget_mb * 1024 * 1024)
