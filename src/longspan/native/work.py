"""What a rank is at, and whether that is void: what its exchanges go by. No torch.

The engine numbers batches and migrations, as one kind of work, in the order in which every worker takes its own. Work
becomes void when an instance that takes part in it is lost. Its other ranks may then wait for that instance, or for
each other, without end: so the word comes from another thread, and whatever waits looks at it.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterable


class WorkVoidError(Exception):
    """The present work is void: its rank is to leave it as it is."""


class CurrentWork:
    """The work of one rank. One thread begins and ends it, any thread may say that it is void.

    address: of two int64, the number and whether it is void: `Work` of csrc/mail.h.
    """

    def __init__(self) -> None:
        self._words = (ctypes.c_int64 * 2)()
        self._at: int | None = None
        self._void: set[int] = set()
        self._changing = threading.Lock()

    @property
    def address(self) -> int:
        return ctypes.addressof(self._words)

    @property
    def number(self) -> int:
        """The number of the present work, or of the last."""
        return self._words[0]

    @property
    def is_void(self) -> bool:
        return bool(self._words[1])

    def begin(self, number: int) -> bool:
        """Go on to other work; tell whether it is to be done at all, for it may be void already."""
        with self._changing:
            if number in self._void:
                return False
            self._at, self._words[0], self._words[1] = number, number, 0
            return True

    def end(self) -> None:
        """The present work is done, or has been left: what is said of it from now on is nothing to its exchanges."""
        with self._changing:
            self._at, self._words[1] = None, 0

    def check(self) -> None:
        """Raises WorkVoidError."""
        if self._words[1]:
            raise WorkVoidError

    def cancel(self, numbers: Iterable[int]) -> None:
        """Declare work void, whether it has yet to begin, is being done, or has ended."""
        with self._changing:
            self._void.update(numbers)
            if self._at in self._void:
                self._words[1] = 1

    def forget(self, numbers: Iterable[int]) -> None:
        """No work of these numbers will come any more."""
        with self._changing:
            self._void.difference_update(numbers)
