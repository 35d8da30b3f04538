"""Lists of items, a page at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from longspan.entrypoints.openai.quoting import quoted
from longspan.entrypoints.responses.answers import ItemList
from longspan.entrypoints.responses.items import Item
from longspan.errors import RequestError

DEFAULT_LIMIT, MAX_LIMIT = 20, 100
PARAMETERS: list[dict[str, Any]] = [
    {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}},
    {"name": "order", "in": "query", "schema": {"enum": ["asc", "desc"]}},
    {"name": "after", "in": "query", "schema": {"type": "string"}},
]


def page(items: Sequence[Item], query: Mapping[str, str]) -> ItemList:
    """Return a page. query: `limit` of them; `order`, desc by default: the last one first; `after` which id it begins.

    Raises RequestError.
    """
    limit = query.get("limit", str(DEFAULT_LIMIT))
    if not (limit.isascii() and limit.isdigit() and len(limit) < 4 and 1 <= int(limit) <= MAX_LIMIT):
        raise RequestError(f"limit is {quoted(limit)}, but must lie in [1, {MAX_LIMIT}]", param="limit",
                           code="invalid_value")  # fmt: skip
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise RequestError(f"order is {quoted(order)}, but must be asc or desc", param="order", code="invalid_value")
    found = list(items) if order == "asc" else list(items)[::-1]
    after = query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(found) if item.id == after]
        if not places:
            raise RequestError(f"there is no item {quoted(after)} in this input", param="after", code="invalid_value")
        found = found[places[-1] + 1 :]
    shown = found[: int(limit)]
    ids = [item.id for item in shown]
    return ItemList(shown, ids[0] if ids else None, ids[-1] if ids else None, len(found) > len(shown))
