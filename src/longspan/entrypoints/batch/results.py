"""The output of a batch: written line by line, so that another run goes on where one was stopped."""

from __future__ import annotations

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType

import msgspec

from longspan.entrypoints.batch.lines import BatchResult, parse_result
from longspan.errors import ConfigError, LongspanError
from longspan.files import write_whole


class Results:
    """What the file at `path` holds and will hold. done: ids of requests that need not run again."""

    def __init__(self, path: Path, wanted: Collection[str]) -> None:
        """Read what is there. Raises ConfigError: it is not of these requests, or no output at all.

        What may be otherwise another time is thrown away: lines that were not run, that the server refused for want of
        room or failed on, and a last one that was cut short.
        """
        self.path = path
        self.done: set[str] = set()
        kept: list[bytes] = []
        has_more = False
        lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        for number, line in enumerate(lines, start=1):
            result = parse_result(line) if line.endswith(b"\n") else None
            if result is None and number < len(lines):
                raise ConfigError(f"line {number} of {path} is no batch result; give another --output-file")
            if result is not None and result.custom_id is not None and result.custom_id not in wanted:
                raise ConfigError(
                    f"{path} has a result of {result.custom_id[:80]!r}, which is not in the input; give another "
                    "--output-file"
                )
            if result is None or not result.is_final or result.custom_id in self.done:
                has_more = True
                continue
            assert result.custom_id is not None
            self.done.add(result.custom_id)
            kept.append(line)
        if has_more:
            try:
                write_whole(path, b"".join(kept))
            except OSError as error:
                raise ConfigError(f"{path} cannot be written: {error.strerror}") from error

    def __enter__(self) -> Results:
        self._file = self.path.open("ab", buffering=0)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # where it is no file, but a pipe
            os.fsync(self._file.fileno())
        self._file.close()

    def add(self, result: BatchResult) -> None:
        """Append a line. Raises LongspanError: the disk is full, or gone."""
        try:
            line = memoryview(msgspec.json.encode(result) + b"\n")
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise LongspanError(
                f"{self.path} cannot be written any more: {error.strerror}; what is there is whole but for the last "
                "line, and the same command goes on from it"
            ) from error
