"""Where a running server is, for our own clients of it, and with what they ask: its URL, key and certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx2

from longspan.entrypoints.bearer import authorization
from longspan.entrypoints.trust import VARIABLES, no_connection, own_authorities
from longspan.errors import ConfigError, LongspanError

_TIMEOUT_S = 60.0
T = TypeVar("T")


def base_of(url: str) -> str:
    """Return a server's URL without what may stand behind it: /, /v1. Raises ConfigError for one that is none."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        parts = urlsplit(base)
        _ = parts.port  # refuses what is none
    except ValueError as error:
        raise ConfigError(f"url is {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url is {url!r}, but must be like http://127.0.0.1:8000")
    return base


def make_client(base: str, api_key: str | None, timeout: httpx2.Timeout) -> httpx2.Client:
    """Make a client for the server there. Raises ConfigError: its key, or certificates, are none."""
    authorized = authorization(api_key)
    try:
        authorities = own_authorities()
    except OSError as error:
        raise ConfigError(f"{' or '.join(VARIABLES)} names certificates that cannot be read: {error}") from error
    return httpx2.Client(
        verify=True if authorities is None else authorities,
        timeout=timeout,
        trust_env=urlsplit(base).hostname not in ("127.0.0.1", "localhost", "::1"),  # no proxy leads to this machine
        headers={} if authorized is None else {"authorization": authorized},
        follow_redirects=True,
    )


def ask(
    url: str, api_key: str | None, path: str, read: Callable[[Any], T], lacking: str, method: str = "GET"
) -> T:
    """Return what `read` finds in the JSON of an answer. lacking: what a server does in whose answers it finds nothing.

    Raises ConfigError for a bad URL or key, or certificates; LongspanError: the server does not answer, or refuses.
    """
    base = base_of(url)
    try:
        with make_client(base, api_key, httpx2.Timeout(_TIMEOUT_S)) as client:
            # A POST that is sent elsewhere would become a GET, and nothing be done.
            answer = client.request(method, f"{base}{path}", follow_redirects=False)
    except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.InvalidURL) as error:
        raise LongspanError(no_connection(url, error)) from error
    except httpx2.HTTPError as error:
        raise LongspanError(f"no answer from {url}: {error or type(error).__name__}") from error
    try:
        content = answer.json()
        refused = None if answer.status_code == 200 else content["error"]["message"]
        if refused is None:
            return read(content)
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise LongspanError(f"what answers at {url} (status {answer.status_code}) {lacking}") from error
    raise LongspanError(f"{url}: {refused}")
