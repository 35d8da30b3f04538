"""`longspan explain --url`: the story of a request, told by the server that runs it."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from longspan.entrypoints.client import ask


def explain_from(url: str, request: str, api_key: str | None) -> int:
    """Print what the server at `url` tells of the request.

    Raises ConfigError for a bad URL or key; LongspanError: the server does not answer, or refuses.
    """
    print(ask(url, api_key, f"/requests/{quote(request, safe='')}/story", _text, "tells no stories"))
    return 0


def _text(content: Any) -> str:
    return "\n\n".join(["\n".join(story["lines"]) for story in content["stories"]])
