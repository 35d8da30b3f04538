"""`longspan explain --url`: the story of a request, told by the server that runs it."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import httpx2
import msgspec

from longspan.entrypoints.bearer import authorization
from longspan.errors import ConfigError, ReplayError

_TIMEOUT_S = 60.0


class _Story(msgspec.Struct):
    lines: list[str]


class _Stories(msgspec.Struct):
    stories: list[_Story]


class _Error(msgspec.Struct):
    message: str


class _Refusal(msgspec.Struct):
    error: _Error


def explain_from(url: str, request: str, api_key: str | None) -> int:
    """Print what the server at `url` tells of the request.

    Raises ConfigError for a bad URL or key; ReplayError: the server does not answer, or refuses.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(f"url is {url!r}, but must be like http://127.0.0.1:8000")
    authorized = authorization(api_key)
    headers = {} if authorized is None else {"authorization": authorized}
    place = f"{url.rstrip('/').removesuffix('/v1')}/requests/{quote(request, safe='')}/story"
    try:
        answer = httpx2.get(place, headers=headers, timeout=_TIMEOUT_S, trust_env=not _is_near(url))
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise ReplayError(f"no answer from {url}: {error or type(error).__name__}") from error
    try:
        if answer.status_code != 200:
            raise ReplayError(f"{url}: {msgspec.json.decode(answer.content, type=_Refusal).error.message}")
        told = msgspec.json.decode(answer.content, type=_Stories)
    except msgspec.MsgspecError as error:
        raise ReplayError(f"what answers at {url} (status {answer.status_code}) tells no stories") from error
    for number, story in enumerate(told.stories):
        print("\n".join(["", *story.lines] if number else story.lines))
    return 0


def _is_near(url: str) -> bool:
    """Whether it is this machine, to which no proxy leads."""
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
