"""A result with a row for each request, as a JSON file that people can read too."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from longspan.errors import ConfigError

DECIMALS = 6  # of times: microseconds


def write_with_requests(path: Path, head: dict[str, Any], requests: Iterable[Any]) -> None:
    """Write everything but the requests indented, and one line for each request."""
    text = msgspec.json.format(msgspec.json.encode(head), indent=1).removesuffix(b"\n}")
    lines = b",\n".join(msgspec.json.encode(rounded(request)) for request in requests)
    try:
        path.write_bytes(text + b',\n "requests": [\n' + lines + b"\n ]\n}\n")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def rounded(value: Any) -> Any:
    """Round all numbers in it, however deep."""
    match value:
        case float():
            return round(value, DECIMALS)
        case dict():
            return {name: rounded(item) for name, item in value.items()}
        case list() | tuple():
            return [rounded(item) for item in value]
    return value
