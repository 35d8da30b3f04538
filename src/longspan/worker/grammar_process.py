"""The process that tries grammars out, before anything that serves has to do with them; see engine/grammars.py.

A grammar comes from a client. It may take a compiler any time, and any depth of stack: here that hurts nobody.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np

from longspan.worker.matcher import GrammarError, Vocabulary, translate
from longspan.worker.parent import end_with_parent

T = TypeVar("T")

COMPILE_S = 0.15
STEP_S = 0.05
"""CPU seconds. So long a worker may be held up by one grammar, once and at every token."""

_WALKS, _STEPS, _WALKING_S = 4, 64, 0.4
_STACK = 1 << 20  # bytes, less than any worker has: what ends well here ends well there
_MEMORY = 4 << 30  # bytes of address space


@dataclass(frozen=True, slots=True)
class Tried:
    """What came of a grammar: the one that matchers read, or why it cannot be used."""

    grammar: str = ""
    error: str = ""


def main(pipe: Connection, tokenizer_json: str, eos_token_ids: tuple[int, ...], num_rows: int) -> None:
    """Send an error, or an empty text, when it is ready; then `Tried` for each kind, text, and text that is before."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the engine's to handle
    os.nice(5)
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        vocabulary = Vocabulary(tokenizer_json, eos_token_ids, num_rows)
    except GrammarError as error:
        pipe.send(str(error))
        return
    pipe.send("")
    threading.stack_size(_STACK)
    while True:
        try:
            kind, text, after = pipe.recv()
        except EOFError:
            return
        _limit_cpu_time()
        thread = threading.Thread(target=_answer, args=(pipe, vocabulary, kind, text, after))
        thread.start()
        thread.join()


def _limit_cpu_time() -> None:
    """The kernel ends the process after one to two more seconds: longer than anything takes that may be used."""
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(time.process_time()) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(pipe: Connection, vocabulary: Vocabulary, kind: str, text: str, after: str) -> None:
    try:
        pipe.send(Tried(try_out(vocabulary, kind, text, after)))
    except (GrammarError, MemoryError, RecursionError) as error:
        message = str(error) or type(error).__name__
        where = place_of(text, message) if kind == "json" else None
        pipe.send(Tried(error=f"at {where}: {message}" if where else message))


def try_out(vocabulary: Vocabulary, kind: str, text: str, after: str = "") -> str:
    """Return the grammar for matchers, after some walks through it.

    after: see `translate`. It is tried out without that, too: a walk through what comes first may not come to its end.

    Raises:
        GrammarError: it cannot be compiled, nothing matches it, or it takes too long.
    """
    if after:
        try_out(vocabulary, kind, text)
    grammar = translate(kind, text, after, is_special=vocabulary.is_special(after))
    matcher = _in_time(lambda: vocabulary.matcher(grammar), COMPILE_S, "to compile it takes")
    _in_time(matcher.allowed, STEP_S, "its first token takes")
    rng = random.Random(0)
    end = time.thread_time() + _WALKING_S
    for _ in range(_WALKS):
        matcher = vocabulary.matcher(grammar)
        for step in range(_STEPS):
            tokens = np.flatnonzero(_in_time(matcher.allowed, STEP_S, f"token {step + 1} of an output takes"))
            going_on = tokens[~np.isin(tokens, vocabulary.eos_token_ids)]
            if time.thread_time() > end or not len(going_on):
                break
            matcher.append(int(rng.choice(going_on)))
    return grammar


def _in_time(work: Callable[[], T], seconds: float, what: str) -> T:
    begin = time.thread_time()
    result = work()
    if (took := time.thread_time() - begin) > seconds:
        raise GrammarError(f"it costs too much: {what} {took:.2f} s, but {seconds:g} s is the most; make it smaller")
    return result


def place_of(schema: str, message: str) -> str | None:
    """Return where in a JSON schema what the message names stands, as a JSON pointer; None where that is not found."""
    named = re.findall(r'"([^"]+)"', message) or re.findall(r": (\S+)$", message)
    try:
        for path, name, value in _members(json.loads(schema)):
            if name in named or (isinstance(value, str) and value in named):
                return path
    except (ValueError, RecursionError):
        return None
    return None


def _members(value: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """Every member of every object: where it stands, its name, its value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            here = f"{path}/{name.replace('~', '~0').replace('/', '~1')}"
            yield here, name, inner
            yield from _members(inner, here)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _members(inner, f"{path}/{number}")
