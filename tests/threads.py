"""Work on several threads at once, whose first failure is the test's."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable


def in_threads(
    work: Callable[[int], None],
    ranks: Iterable[int],
    give_up: Callable[[], None] = lambda: None,
    deadlock_s: float | None = None,
) -> None:
    """Call work(rank) on a thread for each rank.

    give_up: called at a failure, to wake those that wait for others. deadlock_s: a thread that takes longer is stuck.
    """
    failures: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            work(rank)
        except BaseException as error:
            failures.append(error)
            give_up()

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(deadlock_s)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "deadlock"
