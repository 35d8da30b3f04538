"""The lines of a file that may be compressed, and may end anywhere."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

_CHUNK = 1 << 18
_GZIP = b"\x1f\x8b"


def read_lines(path: Path, on_read: Callable[[int], object] = lambda count: None) -> Iterator[bytes]:
    """Yield lines with their ends; the last one may lack it, where a killed process left it unfinished.

    on_read: told how many bytes were read, now and then. Raises OSError; ValueError: what is compressed is broken.
    """
    rest = b""
    for chunk in _chunks(path, on_read):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest


def _chunks(path: Path, on_read: Callable[[int], object]) -> Iterator[bytes]:
    with path.open("rb") as file:
        chunk = file.read(_CHUNK)
        inflater = zlib.decompressobj(31) if chunk.startswith(_GZIP) else None
        while chunk:
            on_read(len(chunk))
            if inflater is None:
                yield chunk
            while chunk and inflater is not None:
                try:
                    yield inflater.decompress(chunk)
                except zlib.error as error:
                    raise ValueError(f"it is compressed, and broken: {error}") from error
                chunk = inflater.unused_data
                if inflater.eof:  # another member may follow, as where files were put together
                    inflater = zlib.decompressobj(31)
            chunk = file.read(_CHUNK)
