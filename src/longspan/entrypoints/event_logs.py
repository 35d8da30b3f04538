"""`longspan replay`, `longspan explain` and `longspan export-trace`."""

from __future__ import annotations

import heapq
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from longspan.config import instances_in_words
from longspan.core.policies import create_policy, split_policy
from longspan.errors import ConfigError, ReplayError
from longspan.files import check_writable
from longspan.metrics.event_log import EventLog
from longspan.metrics.event_log.replaying import replay_log
from longspan.metrics.explain import explain_all
from longspan.metrics.perfetto import export_trace
from longspan.metrics.request_list import RequestSummary, find_requests, list_requests, suggest

DIFFERS = 1
_LONG_BYTES = 4 << 20  # a log that has more takes seconds to read
_MOST_LISTED = 20
_MOST_STORIES = 8


def replay(file: Path, policy: str | None = None) -> int:
    """Replay a log; returns the exit code: 0 if all decisions are the same. Raises ReplayError, ConfigError.

    policy: the one that decided, with the log's options, where the log does not say how to make it.
    """
    if policy is not None and split_policy(policy)[1]:
        raise ConfigError(f"policy is {policy!r}, but a replay takes the options that the log has; leave them out")
    with opened(file, passes=1) as log:
        tell_notes(log)
        difference = replay_log(log, None if policy is None else create_policy(policy, log.options))
    if difference is not None:
        print("\n".join([f"{file}: decisions differ", *difference.lines()]))
        return DIFFERS
    print(f"{file}: every decision is the same{_pieces(log)}")
    if log.truncated_line is not None:
        print(f"{log.pieces[-1].path}, line {log.truncated_line}: left out, as it was not written to its end")
    return 0


def explain(file: Path, request: str | None, everything: bool) -> int:
    """Print one request's story, or a list of requests. Raises ReplayError."""
    if request is None:
        try:
            with opened(file, passes=1) as log:
                tell_notes(log)
                for line in _listed(log, everything):
                    print(line)
        except ReplayError as error:
            hint = "" if file.exists() else "; if that is a request, give --url of the server that runs it, too"
            raise ReplayError(f"{error}{hint}") from error
        return 0
    with opened(file, passes=2) as log:
        tell_notes(log)
        found = find_requests(log, request)
        if not found:
            close = suggest(log, request)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ReplayError(
                f"{log.path}: no request {request!r} arrives in it{hint}; `longspan explain {file}` lists requests"
            )
        stories = explain_all(log, found) if everything or len(found) <= _MOST_STORIES else []
    if not stories:
        print(f"{len(found)} requests begin with {request!r}; name one of them, or tell all with --all:")
        print("\n".join(found))
    for number, story in enumerate(stories):
        print("\n".join(["", *story.lines()] if number else story.lines()))
    return 0


def export(file: Path, out: Path) -> int:
    """Write a log as a trace that Perfetto shows. Raises ReplayError, ConfigError."""
    check_writable(out)
    with opened(file, passes=1) as log:
        tell_notes(log)
        with out.open("w", encoding="utf-8") as text:
            count = export_trace(log, text)
    on = instances_in_words(log.config.num_instances)
    print(f"{out}: {count} requests on {on}; open it at https://ui.perfetto.dev")
    return 0


def _listed(log: EventLog, everything: bool) -> Iterator[str]:
    """A table; what is not printed is not kept."""
    begin: float | None = None
    count = 0

    def counted() -> Iterator[RequestSummary]:
        nonlocal count
        for count, summary in enumerate(list_requests(log), start=1):  # noqa: B007  (told below)
            yield summary

    begin = next((record.now for record in log), 0.0)
    head = f"{'arrived':>12} {'prompt':>8} {'output':>8} {'longest wait':>14}  end       request"
    rows: Iterable[RequestSummary] = counted()
    if not everything:
        rows = heapq.nlargest(_MOST_LISTED, rows, key=attrgetter("longest_wait_s"))
        yield f"{count} requests{_pieces(log)}" + (
            f"; the {_MOST_LISTED} that waited longest (--all: every one)" if count > _MOST_LISTED else ""
        )
    yield head
    for row in rows:
        yield (
            f"{row.arrived_s - begin:>10.3f} s {row.num_prompt_tokens:>8} {row.num_output_tokens:>8} "
            f"{row.longest_wait_s:>12.3f} s  {row.end:<9} {row.request_id}"
        )


def _pieces(log: EventLog) -> str:
    missing = log.missing()
    several = f" ({len(log.pieces)} pieces)" if len(log.pieces) > 1 else ""
    return several if missing is None else f" ({len(log.pieces)} pieces; {missing})"


def tell_notes(log: EventLog) -> None:
    """Print what there is to say of a log beside what is in it."""
    missing = log.missing()
    for note in [*log.notes, *([missing] if missing is not None else [])]:
        print(f"{log.path}: {note}", file=sys.stderr)


@contextmanager
def opened(file: Path, passes: int) -> Iterator[EventLog]:
    """Open a log; with a bar on a terminal, where reading it takes long.

    passes: how often all of it is read, at most.
    """
    if not sys.stderr.isatty():
        yield EventLog(file)
        return
    report: Callable[[int], object] = lambda count: None  # noqa: E731
    log = EventLog(file, lambda count: report(count))
    if log.total_bytes < _LONG_BYTES:
        yield log
        return
    columns = (TextColumn("reading"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=passes * log.total_bytes)
        report = lambda count: bar.advance(task, count)  # noqa: E731
        yield log
