"""One value's JSON, measured before it is decoded: bytes, values in it, and levels."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from longspan.entrypoints.openai.bounds import MAX_DEPTH, MAX_NODES, MAX_SCALAR_BYTES
from longspan.errors import RequestError


def scalar(raw: bytes, place: str) -> Any:
    return bounded(raw, place, max_bytes=MAX_SCALAR_BYTES)


def bounded(raw: bytes, place: str, *, max_bytes: int, max_depth: int = MAX_DEPTH) -> Any:
    """Decode any JSON within `max_bytes`, not too many values in it, and none nested too deeply."""
    if len(raw) > max_bytes:
        raise too_large(place, f"it has {len(raw)} bytes, but at most {max_bytes} are read")
    if num_nodes(raw) > MAX_NODES:
        raise too_large(place, f"it holds more than {MAX_NODES} values")
    value = typed(raw, Any, place)
    if _deeper_than(value, max_depth):
        raise too_large(place, f"it is nested deeper than {max_depth} levels")
    return value


def typed(raw: bytes, kind: Any, place: str, otherwise: str | None = None) -> Any:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        what, _, inner = str(error).partition(" - at `$")
        where = place + inner.rstrip("`").replace("[...]", "")
        if what == "Number out of range":
            raise RequestError(f"{where}: the number is not finite", param=where, code="invalid_value") from None
        raise RequestError(f"{where}: {otherwise or what}", param=where, code="invalid_type") from None
    except (msgspec.DecodeError, ValueError) as error:
        raise RequestError(f"{place}: {lower(str(error))[:200]}", param=place, code="invalid_value") from None
    except RecursionError:
        raise too_large(place, "it is nested too deeply") from None


def given(raw: Raw | UnsetType, place: str) -> bytes:
    """Return a field that has to be there. Raises RequestError."""
    if raw is UNSET:
        raise missing(place)
    return bytes(raw)


def given_name(raw: Raw | UnsetType, place: str) -> str:
    """Return a short text that has to be there. Raises RequestError."""
    name = scalar(given(raw, place), place)
    if not isinstance(name, str):
        raise no_text(place)
    return name


def missing(place: str) -> RequestError:
    return RequestError(f"{place}: Field required", param=place, code="missing_required_parameter")


def no_text(place: str) -> RequestError:
    return RequestError(f"{place} must be a text", param=place, code="invalid_type")


def too_large(place: str, why: str) -> RequestError:
    return RequestError(f"{place} is too large: {why}", param=place, code="value_too_large")


def num_nodes(raw: bytes) -> int:
    """Return at least as many as there are values in it."""
    return raw.count(b",") + raw.count(b"[") + raw.count(b"{") + 1


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        layer = [
            inner
            for outer in layer
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not layer:
            return False
    return True


def lower(message: str) -> str:
    return message[:1].lower() + message[1:]
