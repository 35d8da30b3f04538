"""Runs that are kept: each is a line of a file as soon as it ends, so that a cut loses only those under way.

A run that is there already, of the same source, is not run again. Where there are several of one key the newest counts.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Protocol, TypeVar

from benchmarks.common import RESULTS, say
from benchmarks.policy.grid_run import Task, digest
from longspan.worker.parent import end_with_parent

FOLDER = RESULTS / "grid"
Run = dict[str, Any]


class Asked(Protocol):
    """What is run. Those of one workload and policy take about as long."""

    @property
    def key(self) -> str: ...

    @property
    def workload(self) -> str: ...

    @property
    def policy(self) -> str: ...


class OfTask:
    """What is asked is one of the grid's tasks, in another way; it makes its own key of that."""

    __slots__ = ()
    task: Task

    @property
    def workload(self) -> str:
        return self.task.workload

    @property
    def policy(self) -> str:
        return self.task.policy


T = TypeVar("T", bound=Asked)


def read(path: Path) -> dict[str, Run]:
    """Return the newest run of each key."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {found["key"]: found for found in map(json.loads, lines)}


def digests(policies: Iterable[str], *further: Path) -> dict[str, str]:
    """Return what each policy's figures follow from, beside a key: its source, the grid's, and those files."""
    beside = hashlib.sha256(b"".join(path.read_bytes() for path in further)).hexdigest()[:8] if further else ""
    return {policy: digest(policy) + beside for policy in policies}


def undone(wanted: Iterable[T], there: Mapping[str, Run], sources: Mapping[str, str]) -> list[T]:
    """sources: digests of policies."""
    return [asked for asked in wanted if there.get(asked.key, {}).get("digest") != sources[asked.policy]]


def carry_out(
    todo: Sequence[T], work: Callable[[T], Run], sources: Mapping[str, str], path: Path, jobs: int = 0
) -> None:
    """Append what `work` returns to the file, with key, digest and seconds. jobs: processes; 0: as many as cores."""
    begin, took = time.monotonic(), dict[tuple[str, str], list[float]]()
    jobs = jobs or len(os.sched_getaffinity(0))
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        path.open("a") as file,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=end_with_parent) as pool,
    ):
        waiting = {pool.submit(_timed, work, asked): asked for asked in todo}
        try:
            for number, future in enumerate(as_completed(list(waiting)), start=1):
                asked = waiting.pop(future)
                found = {"key": asked.key} | future.result() | {"digest": sources[asked.policy]}
                file.write(json.dumps(found) + "\n")
                file.flush()
                took.setdefault((asked.workload, asked.policy), []).append(found["wall_s"])
                left_s = _left_s(waiting.values(), took) / jobs
                say(f"{time.monotonic() - begin:6.0f} s  {number} of {len(todo)}, {left_s / 60:.0f} min left: "
                    f"{asked.key}: {_shown(found)}")  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)  # one that fails ends the others


def all_of(wanted: Sequence[T], work: Callable[[T], Run], name: str, jobs: int, *further: Path) -> list[Run]:
    """Return the runs in the order in which they are wanted, having run those that NAME.jsonl does not have yet."""
    path = FOLDER / f"{name}.jsonl"
    sources = digests({asked.policy for asked in wanted}, *further)
    todo = undone(wanted, read(path), sources)
    say(f"{len(wanted)} runs, of which {len(wanted) - len(todo)} are done")
    if todo:
        carry_out(todo, work, sources, path, jobs)
    there = read(path)
    return [there[asked.key] for asked in wanted]


def _timed(work: Callable[[T], Run], asked: T) -> Run:
    begin = time.monotonic()
    found = work(asked)
    return {"wall_s": round(time.monotonic() - begin, 2)} | found


def _left_s(waiting: Iterable[Asked], took: Mapping[tuple[str, str], list[float]]) -> float:
    """As long as others of the same workload and policy took, or of any."""
    means_s = {what: sum(those) / len(those) for what, those in took.items()}
    any_s = sum(means_s.values()) / len(means_s)
    return sum(means_s.get((asked.workload, asked.policy), any_s) for asked in waiting)


def _shown(found: Run) -> str:
    for reason in ("skipped", "failed"):
        if reason in found:
            return f"{reason}: {found[reason]}"
    classes = "".join(f" {name} {value:.2f}" for name, value in found.get("by_class", {}).items())
    return f"{found['attainment']:.3f}, balanced {found['balanced']:.3f}{classes} ({found['wall_s']:.0f} s)"
