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

from longspan.cache import cache_dir, is_own, private_folder, remove_leftovers
from longspan.native.isa import Isa

logger = logging.getLogger(__name__)

SOURCES = Path(__file__).parent / "csrc"
_COMPILERS = ("c++", "g++", "clang++")
_COMMON = ("-std=c++17", "-pthread")
_LIBRARY = ("-O3", "-shared", "-fPIC", "-fvisibility=hidden")
_TIMEOUT_S = 300
_TEMPORARY = ".build-"


class BuildError(Exception):
    """The kernels cannot be had here; the message says why. Never leaves this package: the twin serves."""


def built_library(isa: Isa, source: Path = SOURCES / "library.cpp", extra_flags: tuple[str, ...] = ()) -> Path:
    """Return the compiled kernels, or another source beside them; from the cache or fresh. Raises BuildError.

    Of several processes one compiles. What another user may have put into the cache is never loaded.
    """
    from filelock import FileLock

    flags, library = _flags(isa, extra_flags), _library(isa, source, extra_flags)
    try:
        folder = private_folder(library.parent.name)
        if is_own(library):
            return library
        with FileLock(library.with_suffix(".lock")):
            if not is_own(library):
                remove_leftovers(folder, _TEMPORARY)
                logger.info("building %s for %s (once, some seconds)", source.name, isa.label)
                begin = time.monotonic()
                compile_source(source, library, flags)
                logger.info("built it in %.0f s: %s", time.monotonic() - begin, library)
    except OSError as error:
        raise BuildError(f"{library.parent} cannot be used ({error}); LONGSPAN_CACHE names another") from error
    return library


def is_built(isa: Isa) -> bool:
    """Tell whether the kernels are in the cache. Raises BuildError: they cannot be had here."""
    return is_own(_library(isa, SOURCES / "library.cpp", ()))


def _flags(isa: Isa, extra_flags: tuple[str, ...]) -> tuple[str, ...]:
    return (*_LIBRARY, *isa.flags, f"-DLONGSPAN_ISA={isa.number}", *extra_flags)


def _library(isa: Isa, source: Path, extra_flags: tuple[str, ...]) -> Path:
    """Where it is, or will be."""
    return cache_dir() / "native" / f"{isa.label}-{_key(source, _flags(isa, extra_flags))}.so"


def compile_source(source: Path, to: Path, flags: tuple[str, ...]) -> None:
    """Compile, and rename only when whole, so that no process ever loads half a library. Raises BuildError."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=to.parent) as folder:
        built = Path(folder) / to.name
        done = _run([compiler, *_COMMON, *flags, f"-I{SOURCES}", str(source), "-o", str(built)])
        if done.returncode:
            raise BuildError(f"{compiler} failed: {' '.join(done.stderr.split())[:300]}")
        built.chmod(0o755)  # whatever the umask: what others may write is not loaded
        built.replace(to)


def _compiler() -> str:
    own = os.environ.get("CXX", "").split()
    for name in (*own[:1], *_COMPILERS):
        if path := shutil.which(name):
            return path
    raise BuildError("no C++ compiler (c++, g++ or clang++) was found")


def _key(source: Path, flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    digest.update(_run([_compiler(), "--version"]).stdout.encode())
    digest.update(repr((_COMMON, flags)).encode())
    for file in (source, *sorted(SOURCES.iterdir())):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{command[0]} does not run: {error}") from error
