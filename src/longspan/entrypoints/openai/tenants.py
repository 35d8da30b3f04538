"""Whose a request is: of its API key, or of a header. Policies that keep fair shares ask for the tenant, what is kept
for later requests belongs to its owner."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import ContextVar

from starlette.types import ASGIApp, Receive, Scope, Send

from longspan.entrypoints.openai.errors import refuse
from longspan.errors import RequestError
from longspan.metrics.prometheus import ServerMetrics
from longspan.service_level import check_tenant

HEADER = "Longspan-Tenant"
_NAME = HEADER.lower().encode()

_STORED = "/v1/responses/"  # where a client asks for what is its own

_tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
_key: ContextVar[Hashable] = ContextVar("key", default=None)
_key_name: ContextVar[str | None] = ContextVar("key_name", default=None)


def tenant_of_request() -> str | None:
    """Return the tenant of the request that is being answered; None if nobody has said."""
    return _tenant.get()


def set_tenant(tenant: str | None) -> None:
    """Say whose the request is that is being answered."""
    _tenant.set(tenant)


def set_key(key: Hashable) -> None:
    """Say which API key the request that is being answered has; whatever tells it from others."""
    _key.set(key)


def owner_of_request() -> Hashable:
    """Return to whom belongs what the request leaves here: its key, and the tenant that its header names."""
    return _key.get(), _tenant.get()


def set_key_name(name: str | None) -> None:
    """Say what the key of the request that is being answered is called, where that is not its tenant."""
    _key_name.set(name)


def salt_of_request(salt: str | None) -> str | None:
    """Return a salt for the request's prefixes that no request has whose key is called otherwise, nor one with another
    `cache_salt`; the given one where there is no key, or its name is the tenant."""
    name = _key_name.get()
    return salt if name is None else repr((name, salt))


class TenantHeaderMiddleware:
    """Reads the tenant from the header; status 400 where it is no name, or there are several."""

    def __init__(self, app: ASGIApp, *, metrics: ServerMetrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"] == "POST" or scope["path"].startswith(_STORED)):
            try:
                set_tenant(_read([value for name, value in scope["headers"] if name == _NAME]))
            except RequestError as error:
                await refuse(self.metrics, error).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _read(values: list[bytes]) -> str | None:
    """Raises RequestError."""
    if not values:
        return None
    if len(values) > 1:
        raise RequestError(f"the header {HEADER} is there {len(values)} times; send it once", param=HEADER)
    tenant = values[0].decode("latin-1").strip()
    try:
        check_tenant(tenant)
    except RequestError as error:
        raise RequestError(f"the header {HEADER}: {error}", param=HEADER, code="invalid_value") from None
    return tenant
