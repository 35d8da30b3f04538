"""Whose API a path is of: OpenAI's, or Anthropic's."""

from __future__ import annotations


def speaks_anthropic(path: str) -> bool:
    """Tell whether errors and ids are to be told as Anthropic does."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")
