"""Prompts of /v1/completions, and token ids: measured before they are built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from msgspec import Raw

from longspan.entrypoints.openai.bounds import Bounds
from longspan.entrypoints.openai.json_counts import at_least_lists, at_least_strings
from longspan.entrypoints.openai.json_values import typed
from longspan.entrypoints.openai.protocol import INT32_MAX, whole
from longspan.entrypoints.openai.text_decoding import check_chars, text, too_long
from longspan.errors import RequestError

_NO_PROMPT = "must be a text, texts, token ids, or lists of token ids; and not empty"


def prompts(bounds: Bounds, raw: bytes, place: str) -> list[str] | list[np.ndarray]:
    """Return a text, some texts, token ids, or some lists of token ids; always a list of prompts afterwards."""
    first = raw[:1]
    inner = raw[1:].lstrip()[:1] if first == b"[" else b""
    if first == b'"':
        return [text(bounds, raw, place)]
    if inner == b'"':
        _check_count(bounds, at_least_strings, raw, place)
        texts: list[str] = typed(raw, list[str], place, _NO_PROMPT)
        for number, one in enumerate(texts):
            check_chars(bounds, len(one), f"{place}[{number}]")
        return texts
    if inner == b"[":
        _check_count(bounds, at_least_lists, raw, place)
        lists = typed(raw, list[Raw], place, _NO_PROMPT)
        return [token_ids(bounds, bytes(ids), f"{place}[{number}]") for number, ids in enumerate(lists)]
    if inner and inner in b"-0123456789":
        return [token_ids(bounds, raw, place)]
    raise RequestError(f"{place}: {_NO_PROMPT}", param=place, code="invalid_type")


def output_ids(bounds: Bounds, raw: bytes, place: str) -> np.ndarray:
    """Return int32 token ids, of an answer: it may have none."""
    is_empty = raw.startswith(b"[") and not raw[1:-1].strip()
    return np.empty(0, dtype=np.int32) if is_empty else token_ids(bounds, raw, place)


def token_ids(bounds: Bounds, raw: bytes, place: str) -> np.ndarray:
    """Return int32; the engine knows which ids the model has."""
    count = raw.count(b",") + 1
    if count > bounds.prompt_tokens:
        raise too_long(place, f"{count} tokens", bounds)
    numbers: list[Any] = typed(raw, list[int | float], place, _NO_PROMPT)
    if b"." in raw or b"e" in raw or b"E" in raw:
        numbers = list(map(whole, numbers))  # 16.0 is a whole number in JSON
    ids = token_array(numbers, place)
    if len(ids) == 0:
        raise RequestError(f"{place} is empty; give it at least one token", param=place, code="empty_array")
    if ids.min() < 0 or ids.max() > INT32_MAX:
        raise _no_token_id(place)
    return ids.astype(np.int32)


def token_array(ids: Sequence[int], place: str) -> np.ndarray:
    """Make an array in pieces, so that other threads get their turn between them."""
    pieces = [np.array(ids[start : start + 65536]) for start in range(0, len(ids), 65536)]
    if any(piece.dtype.kind != "i" for piece in pieces):  # beyond 64 bits, or with a fraction
        raise _no_token_id(place)
    return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def _check_count(bounds: Bounds, at_least: Callable[[bytes, int], bool], raw: bytes, place: str) -> None:
    if at_least(raw, bounds.choices + 1):
        raise RequestError(
            f"{place} has more than {bounds.choices} prompts, which is as many as can wait here; send several requests",
            param=place, code="array_above_max_length",
        )  # fmt: skip


def _no_token_id(place: str) -> RequestError:
    return RequestError(f"{place} holds a number that is no token id", param=place, code="invalid_value")
