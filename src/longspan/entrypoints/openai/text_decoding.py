"""Texts of clients, measured before they are built: strings, and lists of parts that make one text."""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

from longspan.entrypoints.openai.bounds import MAX_NODES, MAX_SCALAR_BYTES, Bounds
from longspan.entrypoints.openai.json_counts import Counting, count_one
from longspan.entrypoints.openai.json_values import no_text, num_nodes, scalar, too_large, typed
from longspan.entrypoints.openai.quoting import quoted
from longspan.errors import RequestError


def text(bounds: Bounds, raw: bytes, place: str) -> str:
    """Return a text. Raises RequestError."""
    # No character takes more than 4 bytes, but those of escapes, each of which begins with a backslash.
    if (len(raw) - 2 - 6 * raw.count(b"\\")) / 4 > bounds.prompt_chars:
        raise too_long(place, f"{len(raw)} bytes", bounds)
    found: str = typed(raw, str, place)
    check_chars(bounds, len(found), place)
    return found


class TextReader:
    """Reads texts of one field, of which all rows together are bounded, too. rows: what they are called."""

    def __init__(self, bounds: Bounds, place: str, rows: str) -> None:
        self.bounds = bounds
        self.place = place
        self._rows = rows
        self._chars = 0
        self._nodes = 0

    def text(self, raw: bytes, place: str) -> str:
        """Return a text, and count it. Raises RequestError."""
        if not raw.startswith(b'"'):
            raise no_text(place)
        found = text(self.bounds, raw, place)
        self.count(len(found))
        return found

    def count(self, chars: int) -> None:
        """Raises RequestError where so many characters more are too many."""
        self._chars += chars
        if self._chars > self.bounds.prompt_chars:
            raise too_long(self.place, f"more than {self.bounds.prompt_chars} characters", self.bounds)

    def count_call(self, raw: bytes, place: str) -> None:
        """Count the values in a tool call. Raises RequestError."""
        self._nodes += num_nodes(raw)
        if self._nodes > MAX_NODES:
            raise too_large(place, f"the tool calls of all {self._rows} hold more than can be read")


def check_chars(bounds: Bounds, chars: int, place: str) -> None:
    """Raises RequestError where so many characters cannot fit."""
    if chars > bounds.prompt_chars:
        raise too_long(place, f"{chars} characters", bounds)


def content(bounds: Bounds, raw: bytes, place: str, kinds: tuple[str, ...] = ("text",)) -> object:
    """Return content as one text: parts are joined by newlines as in vLLM; parts other than `kinds` are refused."""
    if raw.startswith(b'"'):
        return text(bounds, raw, place)
    if not raw.startswith(b"["):
        return scalar(raw, place) if len(raw) < MAX_SCALAR_BYTES else {}
    with Counting(bounds.prompt_tokens, too_many(bounds, place)):
        parts = typed(raw, list[_Part], place)
    texts, chars = [], 0
    for number, part in enumerate(parts):
        kind = None if part.type is UNSET else scalar(bytes(part.type), f"{place}[{number}].type")
        if kind not in kinds:
            told = " and ".join(map(repr, kinds))
            raise RequestError(
                f"{place}: part {number} is of type {quoted(kind)}, but only parts of type {told} are supported",
                param=place, code="unsupported_value",
            )  # fmt: skip
        given = part.refusal if kind == "refusal" else part.text
        if given is UNSET or not bytes(given).startswith(b'"'):
            raise RequestError(f"{place}: part {number} has no text", param=place, code="invalid_type")
        texts.append(text(bounds, bytes(given), place))
        chars += len(texts[-1])
        check_chars(bounds, chars, place)
    return "\n".join(texts)


def too_long(place: str, size: str, bounds: Bounds) -> RequestError:
    """Return what is said of a text that cannot fit: as OpenAI does, of the whole prompt or messages."""
    what = "the prompt has" if place == "prompt" else "the messages have" if place == "messages" else f"{place} has"
    chars = "" if size.endswith("tokens") else f"; a prompt of more than {bounds.prompt_chars} characters has more"
    return RequestError(
        f"{what} {size}, but a request has at most {bounds.request_tokens} tokens here, "
        f"one of them at least for the output{chars}; shorten it",
        param=place.partition("[")[0], code="context_length_exceeded",
    )  # fmt: skip


def too_many(bounds: Bounds, place: str) -> RequestError:
    """Return what is said of more messages, items or parts than there could be tokens."""
    field = place.partition("[")[0]
    kinds = "items" if field == "input" else "messages"
    return RequestError(
        f"{field} has more than {bounds.prompt_tokens} {kinds} or parts, but a request has at most "
        f"{bounds.request_tokens} tokens here, one of them at least for the output; leave some out",
        param=field, code="context_length_exceeded",
    )  # fmt: skip


class _Part(Struct, gc=False):
    type: Raw | UnsetType = UNSET
    text: Raw | UnsetType = UNSET
    refusal: Raw | UnsetType = UNSET

    def __post_init__(self) -> None:
        count_one()
