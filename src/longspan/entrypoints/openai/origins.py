"""From where a browser may reach the server: its own names, other pages' origins, and what it asks beforehand."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from longspan.entrypoints.openai.errors import ErrorAnswer, refuse
from longspan.entrypoints.openai.progress import ESTIMATE_HEADER
from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.openai.request_id import HEADER as REQUEST_ID_HEADER
from longspan.entrypoints.server_config import ServerConfig
from longspan.metrics.prometheus import ServerMetrics

PROBES = frozenset(("/health", "/ready"))  # asked by address, and they tell nothing
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^:\[\]/@\s]*)(?::\d*)?")

IsAllowed = Callable[[str], bool]


def host_check(config: ServerConfig) -> IsAllowed | None:
    """Return a test of names in the Host header; None if all are answered.

    A server without keys that only this machine reaches is still reached by every page that its user's browser
    shows, if that page's name can be made to point here (DNS rebinding). Such a name has a dot and is not ours.
    """
    if config.allowed_hosts:
        return None if "*" in config.allowed_hosts else _listed(config.allowed_hosts)
    if config.has_keys or not config.is_local:
        return None
    return lambda host: "." not in host or _is_address(host) or host.endswith(".localhost") or host == config.host


def _listed(allowed: Sequence[str]) -> IsAllowed:
    exact = {host.lower() for host in allowed if not host.startswith("*.")}
    endings = tuple(host[1:].lower() for host in allowed if host.startswith("*."))
    return lambda host: host in exact or (bool(endings) and host.endswith(endings))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


class HostMiddleware:
    """Status 421 for names that are not this server's."""

    def __init__(self, app: ASGIApp, *, is_allowed: IsAllowed, metrics: ServerMetrics) -> None:
        self.app = app
        self.is_allowed = is_allowed
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in PROBES:
            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1").lower()
            found = _HOST.fullmatch(host)
            if found is None or not self.is_allowed(found[1].removesuffix(".")):
                message = f"this server does not answer for the host {quoted(host)}; see its --allowed-hosts"
                answer = ErrorAnswer(421, message, "invalid_request_error", None, "host_not_allowed")
                await refuse(self.metrics, answer).response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


class CrossOriginMiddleware(CORSMiddleware):
    """Starlette's, which answers what it refuses as plain text."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str], metrics: ServerMetrics) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "HEAD", "POST", "DELETE"),
            allow_headers=("*",),
            expose_headers=(REQUEST_ID_HEADER, "retry-after", ESTIMATE_HEADER),
        )
        self.metrics = metrics

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return response
        message = f"{bytes(response.body).decode()}; --cors-origins says which origins may call"
        kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
        answer = ErrorAnswer(403, message, "invalid_request_error", None, "origin_not_allowed", kept)
        return refuse(self.metrics, answer).response()


class MethodMiddleware:
    """Answers OPTIONS with the methods that a path has, and those that it has not.

    A router names only those of the first route that knows the path, and refuses OPTIONS.
    """

    def __init__(self, app: ASGIApp, *, routes: Sequence[BaseRoute], metrics: ServerMetrics) -> None:
        self.app = app
        self.routes = routes
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        methods = self._methods(scope) if scope["type"] == "http" and scope["method"] not in ("GET", "POST") else set()
        if not methods or scope["method"] in methods:
            await self.app(scope, receive, send)
            return
        allow = {"allow": ", ".join(sorted(methods | {"OPTIONS"}))}
        if scope["method"] == "OPTIONS":
            await Response(status_code=204, headers=allow)(scope, receive, send)
            return
        message = f"method not allowed: {scope['method']} {quoted(scope['path'])[1:-1]}"
        answer = ErrorAnswer(405, message, "invalid_request_error", None, "method_not_allowed", allow)
        await refuse(self.metrics, answer).response()(scope, receive, send)

    def _methods(self, scope: Scope) -> set[str]:
        methods: set[str] = set()
        for route in self.routes:
            match, _ = route.matches(scope)
            if match is not Match.NONE:
                methods |= getattr(route, "methods", None) or set()
        return methods
