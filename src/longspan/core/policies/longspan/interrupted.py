"""The requests of which a lost instance has taken KV between two tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from longspan.core.books.request import Request


class Interrupted:
    """Who they are. They go before all others of their priority, for somebody is reading them; so what is to be
    computed of them again puts off everybody's first token."""

    def __init__(self, left: Callable[[Request], tuple[float, float]]) -> None:
        """left: see `Crowd`."""
        self._left = left
        self._requests: list[Request] = []

    def __len__(self) -> int:
        return len(self._requests)

    def note(self, requests: Iterable[Request]) -> None:
        """Look through requests of which an instance may have been lost."""
        self._requests = list(dict.fromkeys([*self._requests, *filter(_is_interrupted, requests)]))

    def seconds_before(self, request: Request) -> float:
        """Return the seconds of their work that goes before a request's."""
        self._requests = [other for other in self._requests if _is_interrupted(other)]
        before = [other for other in self._requests if other.service.priority >= request.service.priority]
        return sum([self._left(other)[1] for other in before if other is not request])


def _is_interrupted(request: Request) -> bool:
    """Tell whether it has generated tokens, and more is to be computed than the last of them."""
    is_read = request.num_output_tokens > 0 and request.end_reason is None
    return is_read and request.num_tokens - request.num_known > 1
