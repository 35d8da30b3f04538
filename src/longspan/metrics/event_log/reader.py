"""Reads event logs: the pieces of a run in order, record by record, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import msgspec

from longspan.core.actions import Action
from longspan.core.costs.cost_model import FittedCostModel
from longspan.core.decision import Decision
from longspan.core.events import Event, RequestArrived
from longspan.core.policies.options import parse_policy
from longspan.errors import LongspanError, ReplayError
from longspan.metrics.event_log.conversion import Header, make_decoder, read_config, read_header
from longspan.metrics.event_log.files import existing_pieces, first_piece_path
from longspan.metrics.event_log.history import ResidenceNumbers
from longspan.metrics.event_log.lines import read_lines


@dataclass(frozen=True, slots=True)
class LogRecord:
    """One call of `Scheduler.handle`. `line` counts from 1 in the file `path`; the header is line 1."""

    line: int
    now: float
    event: Event
    actions: tuple[Action, ...]
    why: tuple[Decision, ...] = ()
    path: Path = Path()


class Piece:
    """One file of a run, and an iterable of its records.

    number: of the piece, from 1. requests: those that had arrived before it, with the times, and were alive.
    running: work that was under way. truncated_line: once it is read, the number of a last line that a killed process
    left unfinished (it is not part of the log), else None. before: the piece before it in the run, which is read first.
    """

    def __init__(self, path: Path, header: Header, on_read: Callable[[int], object] = lambda count: None) -> None:
        """Raises ReplayError: the header is nonsense."""
        self.path, self.header, self.number = path, header, header.piece
        self.truncated_line: int | None = None
        self.before: Piece | None = None
        self._behind: ResidenceNumbers | None = None
        self._on_read = on_read
        with _named(path, lambda: 1):
            decoder = make_decoder(header)
        self.requests: tuple[tuple[float, RequestArrived], ...] = tuple(decoder.requests)
        self.running: tuple[Action, ...] = tuple(decoder.running)

    def __iter__(self) -> Iterator[LogRecord]:
        """Raises ReplayError: a line is broken; the message names it."""
        line = 1
        with _named(self.path, lambda: line):
            decoder = make_decoder(self.header, self.before._behind if self.before is not None else None)
            self._behind = decoder.residences
            for line, text in enumerate(read_lines(self.path, self._on_read), start=1):
                if not text.endswith(b"\n"):
                    self.truncated_line = line
                elif line > 1:
                    yield LogRecord(line, *decoder.decode(text), self.path)


class EventLog:
    """A run on disk: its configuration at once, its records one by one. Any of its pieces names it.

    config: its policy is the one that decided, with its options, as `create_policy` takes it.
    policy: its name alone. own_policy: its class, if that is not the one known by this name; options: what that one was
    told, as far as the log says.
    notes: what there is to say about options that this version knows otherwise.
    """

    def __init__(self, path: Path | str, on_read: Callable[[int], object] = lambda count: None) -> None:
        """on_read: told how many bytes of `total_bytes` were read, now and then. Raises ReplayError."""
        self.path = Path(path)
        self.pieces: tuple[Piece, ...] = tuple(Piece(*found, on_read) for found in _pieces_of(self.path))
        for piece, following in pairwise(self.pieces):
            following.before = piece
        first = self.pieces[0]
        with _named(first.path, lambda: 1):
            self.config, self.notes = read_config(first.header)
            model = first.header.cost_model
            self.cost_model = None if model is None else msgspec.convert(model, FittedCostModel)
        self.policy, self.options, self.own_policy = first.header.policy, first.header.options, first.header.own_policy
        if self.own_policy is None:
            self.policy, _ = parse_policy(self.config.policy)

    def __iter__(self) -> Iterator[LogRecord]:
        for piece in self.pieces:
            yield from piece

    @property
    def total_bytes(self) -> int:
        return sum(piece.path.stat().st_size for piece in self.pieces)

    @property
    def truncated_line(self) -> int | None:
        return self.pieces[-1].truncated_line

    def missing(self) -> str | None:
        """Tell, for people, which pieces before the last one lack; None if all are there. It replays only then."""
        numbers = [0, *sorted({piece.number for piece in self.pieces})]
        gaps = [(one + 1, other - 1) for one, other in pairwise(numbers) if other > one + 1]
        if not gaps:
            return None
        names = ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in gaps)
        is_one = len(gaps) == 1 and gaps[0][0] == gaps[0][1]
        return f"its piece {names} is missing" if is_one else f"its pieces {names} are missing"


def read_event_log(path: Path | str) -> EventLog:
    """Open a log. Raises ReplayError: it is no event log."""
    return EventLog(path)


def _pieces_of(path: Path) -> list[tuple[Path, Header]]:
    """All that are there of the run that `path` is a piece of, in order. The first one's name is enough."""
    own = _header_of(path)
    first, number = first_piece_path(path)
    if own is not None and own.piece != number:
        if own.piece > 1 or own.version == 1:  # it has been renamed
            return [(path, own)]
        first = path  # which happens to end like a piece's
    found: list[tuple[Path, Header]] = [] if own is None else [(path, own)]
    for other in existing_pieces(first).values() if first.absolute().parent.is_dir() else ():
        if other != path:
            with suppress(ReplayError):
                header = _header_of(other)
                found += [] if header is None else [(other, header)]
    if not found:
        raise ReplayError(f"{path}, line 1: there is no header" if path.exists() else f"{path}: No such file")
    run = (found[0] if own is not None else found[-1])[1].run
    return sorted([(place, header) for place, header in found if header.run == run], key=lambda each: each[1].piece)


def _header_of(path: Path) -> Header | None:
    """None: there is no such file, or not even a whole line in it. Raises ReplayError: it is no log."""
    if path.exists() and not path.is_file():
        raise ReplayError(f"{path}: it is no file")
    if not path.exists():
        return None
    with _named(path, lambda: 1):
        text = next(read_lines(path), b"")
        return read_header(text) if text.endswith(b"\n") else None


@contextmanager
def _named(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Errors about a line's content name it."""
    try:
        yield
    except OSError as error:
        raise ReplayError(f"{path}: {error.strerror}") from error
    except ReplayError:
        raise
    except (ValueError, TypeError, IndexError, OverflowError, RecursionError, LongspanError) as error:
        raise ReplayError(f"{path}, line {line()}: {error}") from error
