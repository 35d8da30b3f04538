"""A body cut into its fields, none of which is built."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from longspan.entrypoints.openai.json_place import bad_utf8, lone_surrogate, place_of, repeated_name
from longspan.entrypoints.openai.json_values import lower
from longspan.entrypoints.openai.request_fields import RequestFields
from longspan.errors import RequestError

_LOOKED_THROUGH = 2**20  # bytes; beyond, of a field that is given twice the last counts


def cut_body(body: bytes | bytearray, content_type: str, kind: type[RequestFields]) -> dict[str, Raw]:
    """Return the JSON of each known field that is given."""
    _check_text(body, content_type)
    given = _built(body, _body_type(kind))
    fields = {name: raw for name in given.__struct_fields__ if (raw := getattr(given, name)) is not UNSET}
    if len(body) <= _LOOKED_THROUGH:
        _check_given_once(body, fields)
    return fields


def _check_text(body: bytes | bytearray, content_type: str) -> None:
    if not _is_json(content_type):
        raise _invalid("send the body as JSON, with the header 'Content-Type: application/json'")
    if not body:
        raise _invalid("the request has no body; send a JSON object")
    if body.startswith(b"\xef\xbb\xbf"):
        raise _invalid("the request body begins with a byte order mark; send UTF-8 without it")
    if (bad := bad_utf8(body)) is not None:
        raise _broken_text(body, bad, "bytes that are not UTF-8")


def _built(body: bytes | bytearray, kind: type[Struct]) -> Struct:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _invalid(f"the request body is no JSON object: {error}") from None
    except msgspec.DecodeError as error:
        if (lone := lone_surrogate(body)) is not None:
            raise _broken_text(body, lone, "half of a surrogate pair") from None
        raise _invalid(f"the request body is not valid JSON: {lower(str(error))}") from None
    except RecursionError:
        raise _invalid("the request body is nested too deeply") from None


def _check_given_once(body: bytes | bytearray, names: Iterable[str]) -> None:
    for name in names:
        if body.count(b'"%s"' % name.encode()) > 1 and repeated_name(body, name):
            raise RequestError(f"{name} is given twice", param=name, code="duplicate_field")


@cache
def _body_type(kind: type[RequestFields]) -> type[Struct]:
    """The known names, so that nothing is built of any other."""
    names = dict.fromkeys((*kind.model_fields, *kind.unsupported))
    return msgspec.defstruct("Body", [(name, Raw | UnsetType, UNSET) for name in names])


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (media.startswith("application/") and media.endswith("+json"))


def _invalid(message: str) -> RequestError:
    return RequestError(message, code="invalid_json")


def _broken_text(body: bytes | bytearray, position: int, what: str) -> RequestError:
    place = place_of(body, position)
    where = f"{quoted_place(place)} holds" if place else "the request body holds"
    return RequestError(
        f"{where} {what}, at byte {position}; a text must be valid Unicode",
        param=quoted_place(place), code="invalid_unicode",
    )  # fmt: skip


def quoted_place(place: str | None) -> str | None:
    """Quote a place; names in it come from clients."""
    return place if place is None or len(place) <= 200 else place[:200] + "…"
