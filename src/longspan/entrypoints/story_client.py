"""`longspan explain --url`: the story of a request, told by the server that runs it."""

from __future__ import annotations

from urllib.parse import quote

from longspan.entrypoints.client import ask
from longspan.errors import LongspanError


def explain_from(url: str, request: str, api_key: str | None) -> int:
    """Print what the server at `url` tells of the request.

    Raises ConfigError for a bad URL or key; LongspanError: the server does not answer, or refuses.
    """
    status, content = ask(url, api_key, f"/requests/{quote(request, safe='')}/story")
    try:
        if status != 200:
            raise LongspanError(f"{url}: {content['error']['message']}")
        stories = ["\n".join(story["lines"]) for story in content["stories"]]
    except (KeyError, TypeError) as error:
        raise LongspanError(f"what answers at {url} (status {status}) tells no stories") from error
    print("\n\n".join(stories))
    return 0
