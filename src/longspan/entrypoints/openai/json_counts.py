"""Members of a JSON array, counted without building them.

A text that has N members and a comma behind each of them has more than N.
"""

from __future__ import annotations

import re
import threading
from functools import cache

from longspan.errors import RequestError


@cache
def _repeated(member: bytes, times: int) -> re.Pattern[bytes]:
    return re.compile(rb"\[(?:\s*+" + member + rb"\s*+,){%d}+" % times, re.DOTALL)


def at_least_strings(raw: bytes, count: int) -> bool:
    return _repeated(rb'"(?:[^"\\]++|\\.)*+"', count - 1).match(raw) is not None


def at_least_lists(raw: bytes, count: int) -> bool:
    return _repeated(rb"\[[^\]]*+\]", count - 1).match(raw) is not None


class _Counted(threading.local):
    left = 0
    too_many: RequestError | None = None


_counted = _Counted()


class Counting:
    """While it is entered, structs that call `count_one` as they are made are refused beyond `limit`."""

    def __init__(self, limit: int, too_many: RequestError) -> None:
        self.limit = limit
        self.too_many = too_many

    def __enter__(self) -> None:
        _counted.left, _counted.too_many = self.limit, self.too_many

    def __exit__(self, *_: object) -> None:
        _counted.too_many = None


def count_one() -> None:
    """Raises the refusal that `Counting` was given, if this is one too many."""
    _counted.left -= 1
    if _counted.left < 0 and _counted.too_many is not None:
        raise _counted.too_many
