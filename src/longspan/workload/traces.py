"""Workload traces: what requests asked for, and when. Lengths only, no text.

Three formats, told apart by what the file begins with; each plain or gzipped:

    arrived_at_s,num_prefill_tokens,num_decode_tokens          CSV; no arrivals in a file that has lengths only
    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, ...]}      Mooncake JSONL
    TIMESTAMP,ContextTokens,GeneratedTokens                    Azure CSV, e.g. 2023-11-16 18:17:03.9799600,4808,10

Beside the first format, NAME.csv, may lie NAME.prefix_hash_ids.jsonl: line k is the list of block ids of row k.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from longspan.errors import TraceError
from longspan.service_level import DEFAULT_SERVICE, ServiceLevel

BLOCK_TOKENS = 512  # of a prefix block, in Mooncake and in ours
MILLISECONDS = 1000.0

_GZIP_MAGIC = b"\x1f\x8b"
_PREFIX_SUFFIX = ".prefix_hash_ids.jsonl"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One request: how long, and when.

    arrived_at_s: seconds since the first row; None where the trace has lengths only.
    num_prompt_tokens, num_output_tokens: at least 1.
    prefix_block_ids: one for each block of `BLOCK_TOKENS` prompt tokens, the last one may be partial; two requests
        whose first n ids are equal share the first n blocks of their prompts. Empty if nothing is known.
    service: what it asks of the server's timeliness. No file says it; a simulator tells it to the scheduler.
    """

    arrived_at_s: float | None
    num_prompt_tokens: int
    num_output_tokens: int
    prefix_block_ids: tuple[int, ...] = ()
    service: ServiceLevel = DEFAULT_SERVICE

    @property
    def num_tokens(self) -> int:
        return self.num_prompt_tokens + self.num_output_tokens


def read_trace(path: Path | str) -> list[TraceRequest]:
    """Return all requests of a trace, in file order.

    Raises:
        TraceError: the file cannot be read, has none of the known formats, or holds a malformed row.
    """
    path = Path(path)
    lines = _lines(path)
    first = lines[0] if lines else ""
    if first.lstrip().startswith("{"):
        requests = list(_read_mooncake(path, lines))
    else:
        columns = [name.strip() for name in first.split(",")]
        for names, parse in _CSV_FORMATS.items():
            if set(names) <= set(columns):
                requests = list(_read_csv(path, lines, names, parse))
                break
        else:
            known = "; ".join(",".join(names) for names in _CSV_FORMATS)
            raise TraceError(
                f"{path}, line 1: neither a CSV header ({known}) nor a JSON object with timestamp, input_length and "
                f"output_length"
            )
    if not requests:
        raise TraceError(f"{path}: there is no request in it")
    return _with_prefixes(path, requests)


@dataclass(frozen=True, slots=True)
class _Field:
    """One value of a row, with its place for messages."""

    path: Path
    line: int
    column: str
    value: Any

    def wrong(self, wanted: str) -> TraceError:
        return TraceError(f"{self.path}, line {self.line}, column {self.column}: {self.value!r} is not {wanted}")

    def count(self, at_least: int) -> int:
        """A number of tokens."""
        wanted = f"a whole number, {at_least} or more"
        if isinstance(self.value, bool | float):
            raise self.wrong(wanted)
        try:
            number = int(self.value)
        except (TypeError, ValueError):
            raise self.wrong(wanted) from None
        if number < at_least:
            raise self.wrong(wanted)
        return number

    def number(self) -> float:
        try:
            number = math.nan if isinstance(self.value, bool) else float(self.value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise self.wrong("a number")
        return number

    def timestamp(self) -> float:
        """Seconds since 1970 of a date and time; without an offset, it is UTC."""
        try:
            time = datetime.fromisoformat(self.value.strip())
        except ValueError:
            raise self.wrong("a time such as 2023-11-16 18:17:03.97") from None
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()

    def ids(self) -> tuple[int, ...]:
        if not isinstance(self.value, list) or any(type(item) is not int for item in self.value):
            raise self.wrong("a list of whole numbers")
        return tuple(self.value)


class _Arrivals:
    """Checks that arrivals do not go back, and that all rows have one or none has. Counts from the first."""

    def __init__(self) -> None:
        self._origin: float | None = None
        self._latest = -math.inf
        self._rows = 0

    def add(self, field: _Field, absolute_s: float | None) -> float | None:
        self._rows += 1
        if self._rows == 1:
            self._origin = absolute_s
        if (absolute_s is None) != (self._origin is None):
            raise field.wrong("like the rows before: either all rows have an arrival, or none has")
        if absolute_s is None or self._origin is None:
            return None
        if absolute_s < self._latest:
            raise field.wrong("at or after the arrival before it; sort the file by time")
        self._latest = absolute_s
        return absolute_s - self._origin


def _parse_longspan(fields: list[_Field], arrivals: _Arrivals) -> TraceRequest:
    arrived, prompt, output = fields
    at = arrivals.add(arrived, arrived.number() if arrived.value.strip() else None)
    return TraceRequest(at, prompt.count(1), output.count(1))


def _parse_azure(fields: list[_Field], arrivals: _Arrivals) -> TraceRequest:
    arrived, prompt, output = fields
    return TraceRequest(arrivals.add(arrived, arrived.timestamp()), prompt.count(1), max(1, output.count(0)))


_CSV_FORMATS: dict[tuple[str, str, str], Callable[[list[_Field], _Arrivals], TraceRequest]] = {
    ("arrived_at_s", "num_prefill_tokens", "num_decode_tokens"): _parse_longspan,
    ("TIMESTAMP", "ContextTokens", "GeneratedTokens"): _parse_azure,
}


def _read_csv(
    path: Path, lines: list[str], names: tuple[str, ...], parse: Callable[[list[_Field], _Arrivals], TraceRequest]
) -> Iterator[TraceRequest]:
    rows = csv.reader(lines, strict=True)
    columns = [name.strip() for name in next(rows)]
    places = [columns.index(name) for name in names]
    arrivals = _Arrivals()
    try:
        for row in rows:
            if not row:
                continue
            if len(row) < len(columns):
                raise TraceError(
                    f"{path}, line {rows.line_num}, column {columns[len(row)]}: missing; the header has "
                    f"{len(columns)} columns, this row {len(row)}"
                )
            yield parse([_Field(path, rows.line_num, columns[place], row[place]) for place in places], arrivals)
    except csv.Error as error:
        raise TraceError(f"{path}, line {rows.line_num}: {error}") from error


def _read_mooncake(path: Path, lines: list[str]) -> Iterator[TraceRequest]:
    """As in Mooncake (FAST'25), github.com/kvcache-ai/Mooncake, FAST25-release/traces. Times are milliseconds."""
    arrivals = _Arrivals()
    for line, row in _json_lines(path, lines):
        if not isinstance(row, dict):
            raise TraceError(f"{path}, line {line}: not a JSON object")
        fields = {}
        for name in ("timestamp", "input_length", "output_length"):
            if name not in row:
                raise TraceError(f"{path}, line {line}, column {name}: missing")
            fields[name] = _Field(path, line, name, row[name])
        arrived = fields["timestamp"]
        yield TraceRequest(
            arrivals.add(arrived, arrived.number() / MILLISECONDS),
            fields["input_length"].count(1),
            max(1, fields["output_length"].count(0)),
            _Field(path, line, "hash_ids", row.get("hash_ids", [])).ids(),
        )


def _with_prefixes(path: Path, requests: list[TraceRequest]) -> list[TraceRequest]:
    """The same requests with the block ids of the file beside the trace, if there is one."""
    name = path.name.removesuffix(".gz").removesuffix(".csv")
    beside = [path.with_name(name + _PREFIX_SUFFIX + end) for end in ("", ".gz")]
    found = next((file for file in beside if file.is_file() and file != path), None)
    if found is None:
        return requests
    ids = [_Field(found, line, "block ids", row).ids() for line, row in _json_lines(found, _lines(found))]
    if len(ids) != len(requests):
        raise TraceError(f"{found}: {len(ids)} lists of block ids for {len(requests)} requests of {path.name}")
    return [replace(request, prefix_block_ids=row) for request, row in zip(requests, ids, strict=True)]


def _json_lines(path: Path, lines: list[str]) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(lines, start=1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except ValueError as error:
                raise TraceError(f"{path}, line {line}: not valid JSON: {error}") from error


def _lines(path: Path) -> list[str]:
    try:
        content = path.read_bytes()
        if content.startswith(_GZIP_MAGIC):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TraceError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except (gzip.BadGzipFile, EOFError) as error:
        raise TraceError(f"{path}: the gzip file is damaged: {error}") from error
    except OSError as error:
        raise TraceError(f"{path}: {error.strerror}") from error
