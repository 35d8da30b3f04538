"""Compiles the kernels with the system's compiler, once for each version of sources, flags and compiler."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from longspan.attention.native.isa import Isa
from longspan.cache import cache_dir

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
_COMPILERS = ("c++", "g++", "clang++")
_FLAGS = ("-O3", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", "-pthread")
_TIMEOUT_S = 300


class BuildError(Exception):
    """The kernels cannot be had here; the message says why. Never leaves this package: the twin serves."""


def built_library(isa: Isa, extra_flags: tuple[str, ...] = ()) -> Path:
    """The compiled kernels, from the cache or fresh. Of several processes one compiles. Raises BuildError."""
    compiler = _compiler()
    flags = (*_FLAGS, *isa.flags, f"-DLONGSPAN_ISA={isa.number}", *extra_flags)
    library = cache_dir() / "native" / f"{isa.label}-{_key(compiler, flags)}.so"
    if library.is_file():
        return library
    from filelock import FileLock

    try:
        library.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if not library.is_file():
                _compile(compiler, flags, library, isa)
    except OSError as error:
        raise BuildError(f"{library.parent} cannot be written ({error}); LONGSPAN_CACHE names another") from error
    return library


def _compiler() -> str:
    own = os.environ.get("CXX", "").split()
    for name in (*own[:1], *_COMPILERS):
        if path := shutil.which(name):
            return path
    raise BuildError("no C++ compiler (c++, g++ or clang++) was found")


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    digest.update(_run([compiler, "--version"]).stdout.encode())
    digest.update(repr(flags).encode())
    for source in sorted(SOURCES.iterdir()):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    return digest.hexdigest()[:16]


def _compile(compiler: str, flags: tuple[str, ...], library: Path, isa: Isa) -> None:
    """Renamed only when whole, so that nobody ever loads half a library."""
    logger.info("building the CPU kernels for %s with %s (once, some seconds)", isa.label, compiler)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".build-", dir=library.parent) as folder:
        built = Path(folder) / library.name
        done = _run([compiler, *flags, str(SOURCES / "library.cpp"), "-o", str(built)])
        if done.returncode:
            raise BuildError(f"{compiler} failed: {' '.join(done.stderr.split())[:300]}")
        built.replace(library)
    logger.info("built them in %.0f s: %s", time.monotonic() - begin, library)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
