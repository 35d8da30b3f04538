"""Stop strings in a text that comes in pieces."""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache


class StopStrings:
    """The stop strings of a request. They cost nothing until parts of a stop string come: how far one may be matched
    anew when its next character is not there is worked out as far as it has ever been matched (Knuth, Morris,
    Pratt).
    """

    def __init__(self, stops: Collection[str]) -> None:
        self.stops = tuple(dict.fromkeys(stops))
        self.beginning_with: dict[str, list[int]] = {}
        for number, stop in enumerate(self.stops):
            self.beginning_with.setdefault(stop[0], []).append(number)
        self._shorter: list[list[int]] = [[0] for _ in self.stops]

    def step(self, number: int, matched: int, char: str) -> int:
        """Return how much of a stop string the text ends with, if it ended with `matched` of it before `char`."""
        stop, shorter = self.stops[number], self._shorter[number]
        if matched == len(stop):
            matched = self._shorter_than(number, matched)
        while matched and stop[matched] != char:
            matched = shorter[matched - 1] if matched <= len(shorter) else self._shorter_than(number, matched)
        return matched + 1 if stop[matched] == char else 0

    def _shorter_than(self, number: int, matched: int) -> int:
        """The next shorter beginning that the first `matched` characters of a stop string end with."""
        stop, shorter = self.stops[number], self._shorter[number]
        while len(shorter) < matched:
            length = shorter[-1]
            char = stop[len(shorter)]
            while length and stop[length] != char:
                length = shorter[length - 1]
            shorter.append(length + 1 if stop[length] == char else 0)
        return shorter[matched - 1]


@lru_cache(maxsize=256)
def stop_strings(stops: tuple[str, ...]) -> StopStrings:
    """Return the stop strings that all choices of a request share."""
    return StopStrings(stops)


class StopScanner:
    """Passes text on, up to the stop string that is complete first (of several with one end, the longest).

    It reads character by character, so how the text is cut into pieces makes no difference. What is kept back is the
    longest end of the text so far that begins a stop string.

    rest: what came behind the stop string in the text that completed it.
    """

    def __init__(self, stops: Collection[str], *, include: bool = False) -> None:
        self._stops = stop_strings(tuple(stops))
        self._include = include
        self.rest = ""
        self._held = ""
        self._matched: dict[int, int] = {}  # of each stop string that the text ends with a beginning of, how much

    def push(self, text: str) -> tuple[str, str | None]:
        """Return the text that can be shown now, and the stop string if it is complete; push no more after that."""
        stops = self._stops
        if not stops.stops:
            return text, None
        seen = self._held + text
        matched = self._matched
        for position, char in enumerate(text, start=len(self._held) + 1):
            going = dict.fromkeys(stops.beginning_with.get(char, ()), 1)
            complete: str | None = None
            for number, length in matched.items():
                if length := stops.step(number, length, char):
                    going[number] = length
            for number, length in going.items():
                stop = stops.stops[number]
                if length == len(stop) and (complete is None or length > len(complete)):
                    complete = stop
            if complete is not None:
                self._held, self._matched, self.rest = "", {}, seen[position:]
                return seen[: position if self._include else position - len(complete)], complete
            matched = going
        self._matched = matched
        shown = len(seen) - max(matched.values(), default=0)
        self._held = seen[shown:]
        return seen[:shown], None

    def flush(self) -> str:
        """Return what was kept back, when no more text comes."""
        held, self._held, self._matched = self._held, "", {}
        return held
