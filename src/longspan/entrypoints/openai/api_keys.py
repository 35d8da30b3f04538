"""API keys: which may ask, and how much of it at once."""

from __future__ import annotations

import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from longspan.engine.departures import Departures
from longspan.entrypoints.dashboard.files import PREFIX
from longspan.entrypoints.openai.errors import ErrorAnswer, Refusal, refuse, retry_after
from longspan.entrypoints.openai.tenants import set_key, set_key_name, set_tenant
from longspan.entrypoints.server_config import ServerConfig
from longspan.errors import ConfigError, RequestError
from longspan.metrics.prometheus import ServerMetrics
from longspan.service_level import check_tenant

# As with other servers: what probes and scrapers ask needs no key. Nor does the page itself, which asks for one.
FREE = frozenset(("/health", "/ready", "/version", "/metrics", "/"))
VARIABLE = "LONGSPAN_SERVE_API_KEY"  # what the command line reads keys from, too


class ApiKey(NamedTuple):
    """A key, and what its tenant is called: a name that, other than the key, may be told."""

    key: str
    tenant: str


class KeyUse:
    """The requests and tokens that one key has in flight. No limit where None. tenant: whose key it is."""

    def __init__(
        self, max_requests: int | None, max_tokens: int | None, tenant: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.tenant = tenant
        self.max_requests = max_requests
        self.max_tokens = max_tokens
        self.requests = 0
        self.tokens = 0
        self.ended_requests, self.ended_tokens = Departures(clock), Departures(clock)

    @contextmanager
    def request(self) -> Iterator[Ticket]:
        """Hold one request, until it has been answered. Raises Refusal (429) if there are too many."""
        if self.max_requests is not None and self.requests >= self.max_requests:
            raise _too_much(
                f"this API key has {self.requests} requests in flight, as many as it may", self.ended_requests.after_s()
            )
        ticket = Ticket(self)
        try:
            yield ticket
        except (Refusal, RequestError):
            ticket.was_refused = True
            raise
        finally:
            ticket.release()


class Ticket:
    """One request's share in what its key has in flight. was_refused: it has no work whose end tells of the pace."""

    def __init__(self, use: KeyUse) -> None:
        self.use = use
        self.requests = 1
        self.tokens = 0
        self.kept = self.was_refused = False
        if not use.requests:
            use.ended_requests.begin()
        use.requests += 1

    def release(self) -> None:
        """Count it no more, unless it is kept."""
        if not self.kept:
            self.end()

    def end(self) -> None:
        """Count it no more."""
        use = self.use
        if self.requests:
            use.requests -= self.requests
            if not self.was_refused:
                use.ended_requests.note()
        if self.tokens:
            use.tokens -= self.tokens
            if not self.was_refused:
                use.ended_tokens.note(self.tokens)
        self.requests = self.tokens = 0

    def charge(self, tokens: int) -> None:
        use = self.use
        if use.max_tokens is None:
            return
        if tokens > use.max_tokens:
            message = (
                f"the request's prompts and max_tokens are {tokens} tokens together, "
                f"but this API key may have {use.max_tokens} in flight"
            )
            raise RequestError(message, param="max_tokens", code="rate_limit_exceeded")
        if use.tokens + tokens > use.max_tokens:
            raise _too_much(
                f"the request's prompts and max_tokens are {tokens} tokens together, but this API key may have "
                f"{use.max_tokens} in flight, and has {use.tokens}",
                use.ended_tokens.after_s(use.tokens + tokens - use.max_tokens),
            )
        if not use.tokens:
            use.ended_tokens.begin()
        use.tokens += tokens
        self.tokens += tokens


_ticket: ContextVar[Ticket | None] = ContextVar("ticket", default=None)


def charge_tokens(tokens: int) -> None:
    """Counts the prompts' and the longest outputs' tokens of the request that is being answered against its key.

    They count until it has been answered.

    Raises:
        Refusal: the key has too many in flight (429).
        RequestError: it could never have as many.
    """
    ticket = _ticket.get()
    if ticket is not None:
        ticket.charge(tokens)


def keep_counted() -> Callable[[], None]:
    """Count the request that is being answered against its key until what is returned is called, though it has been
    answered before."""
    ticket = _ticket.get()
    if ticket is None:
        return lambda: None
    ticket.kept = True
    return ticket.end


class ApiKeys:
    """The keys of one server. Only their digests are kept."""

    def __init__(
        self, keys: Sequence[ApiKey], max_requests: int | None, max_tokens: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._uses = [
            (_digest(each.key.encode()), KeyUse(max_requests, max_tokens, each.tenant, clock)) for each in keys
        ]

    def find(self, presented: bytes) -> KeyUse | None:
        """Return the use of this key. It looks at all keys always, so that the time tells nothing."""
        digest = _digest(presented)
        found = None
        for known, use in self._uses:
            if hmac.compare_digest(known, digest):
                found = use
        return found


class ApiKeyMiddleware:
    """Status 401 without a key, 429 where a key has too much in flight.

    tells_tenant: whether a request is that of its key's tenant.
    """

    def __init__(self, app: ASGIApp, *, keys: ApiKeys, metrics: ServerMetrics, tells_tenant: bool) -> None:
        self.app = app
        self.keys = keys
        self.metrics = metrics
        self.tells_tenant = tells_tenant

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_free(scope["path"]) or scope["method"] == "OPTIONS":
            await self.app(scope, receive, send)
            return
        given = _presented(scope)
        use = None if given is None else self.keys.find(given)
        if use is None:
            await refuse(self.metrics, _unauthorized(given is not None)).response()(scope, receive, send)
            return
        set_key(use)
        if self.tells_tenant:
            set_tenant(use.tenant)
        else:
            set_key_name(use.tenant)
        if scope["method"] == "POST":
            await self._counted(use, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _counted(self, use: KeyUse, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            with use.request() as ticket:
                _ticket.set(ticket)

                async def send_and_release(message: Message) -> None:
                    if message["type"] == "http.response.start" and message["status"] >= 400:
                        ticket.was_refused = True
                    if message["type"] == "http.response.body" and not message.get("more_body", False):
                        ticket.release()  # a client that has the whole answer may ask again
                    await send(message)

                await self.app(scope, receive, send_and_release)
        except Refusal as refusal:  # its own; those of what it leads to have been answered there
            await refuse(self.metrics, refusal).response()(scope, receive, send)


def _is_free(path: str) -> bool:
    return path in FREE or path.startswith(PREFIX)


def read_keys(config: ServerConfig) -> list[ApiKey]:
    """Return the keys that were given, and those in the file. Raises ConfigError, which never holds a key."""
    if os.environ.get(VARIABLE) is not None and not config.has_keys:
        raise ConfigError(f"{VARIABLE} is set, but holds no key; unset it to serve without one")
    given: list[tuple[str, int, str, str | None]] = [
        ("api_key", number, key, None) for number, key in enumerate(config.api_key, 1)
    ]
    if config.api_key_file is not None:
        given += [(str(config.api_key_file), number, *_split(line)) for number, line in _lines(config.api_key_file)]
    keys: list[ApiKey] = []
    for place, number, key, tenant in given:
        if not (0 < len(key) <= 1024 and key.isascii() and key.isprintable() and " " not in key):
            raise ConfigError(
                f"{place}: number {number} is not a key that a client can send; use 1 to 1024 letters, digits and signs"
            )
        try:
            check_tenant(tenant := f"key-{len(keys) + 1}" if tenant is None else tenant)
        except RequestError as error:
            raise ConfigError(f"{place}: number {number}: {error}") from None
        keys.append(ApiKey(key, tenant))
    return keys


def _split(line: str) -> tuple[str, str | None]:
    """The key, and the tenant's name behind it, if there is one."""
    key, named, tenant = line.partition(" tenant=")
    return (key.rstrip(), tenant) if named else (line, None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"api_key_file {path} cannot be read: {reason}") from None
    found = [
        (number, line.strip())
        for number, line in enumerate(text.splitlines(), 1)
        if line.strip() and not line.strip().startswith("#")
    ]
    if not found:
        raise ConfigError(f"api_key_file {path} holds no key; give one a line")
    yield from found


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _presented(scope: Scope) -> bytes | None:
    """Return the key that a request carries, empty where it carries several; None: it carries none. Clients of
    Anthropic's send it as x-api-key, all others as Authorization, which counts where both are there."""
    for name, read in ((b"authorization", _bearer), (b"x-api-key", bytes.strip)):
        if given := [value for known, value in scope["headers"] if known == name]:
            return read(given[0]) if len(given) == 1 else b""
    return None


def _bearer(header: bytes) -> bytes:
    scheme, _, key = header.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _unauthorized(given: bool) -> ErrorAnswer:
    message = (
        "the API key is not one of this server's"
        if given
        else "this server needs an API key; send it as the header 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
    )
    headers = {"www-authenticate": "Bearer"}
    return ErrorAnswer(401, message, "invalid_request_error", None, "invalid_api_key", headers)


def _too_much(message: str, retry_after_s: float) -> Refusal:
    headers = retry_after(retry_after_s)
    return Refusal(ErrorAnswer(429, message, "rate_limit_error", None, "rate_limit_exceeded", headers))
