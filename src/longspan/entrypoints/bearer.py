"""The key that a client of ours shows to a server."""

from __future__ import annotations

import os

from longspan.errors import ConfigError

VARIABLE = "OPENAI_API_KEY"
"""Of the environment, as other clients of such servers read it."""


def authorization(api_key: str | None) -> str | None:
    """Return the header's value, with the key given, or else the environment's; None: there is neither.

    Raises ConfigError, which does not repeat the key, where no header can carry it.
    """
    api_key = api_key if api_key is not None else os.environ.get(VARIABLE) or None
    if api_key is None:
        return None
    if not api_key or not all("!" <= character <= "~" for character in api_key):
        raise ConfigError("api_key is empty, or holds characters that no HTTP header can carry")
    return f"Bearer {api_key}"
