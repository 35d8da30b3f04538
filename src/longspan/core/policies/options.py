"""A policy's options: a frozen dataclass, whose values may come as texts, and how a policy and its options are written.

    medha:max_space_share=0.3:kvp_tokens_per_shard=4096
    my_package.my_module:MyPolicy:patience=3
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from longspan.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

O = TypeVar("O", bound="DataclassInstance")  # noqa: E741

NONE = "none"

_WHOLE = re.compile(r"-?[0-9]{1,18}")


def make_options(kind: type[O], policy: str, given: Mapping[str, object]) -> O:
    """Raises ConfigError, which names the policy's options: one is unknown, or of a wrong type or value.

    kind: fields are bool, int, float, str or Literal, and may be None. policy: its name, for messages.
    given: values of these types, or texts that say them.
    """
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    try:
        for name, value in given.items():
            if name not in {field.name for field in fields(kind)}:
                raise ConfigError(f"there is no option {name}")
            values[name] = _read(name, hints[name], value)
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"policy {policy}: {error}; {_known(kind)}") from None
    except (ValueError, TypeError) as error:  # a __post_init__ of one's own
        raise ConfigError(f"policy {policy}: {error}; {_known(kind)}") from error


def options_of(policy: object) -> dict[str, Any]:
    """Return all options with their values; none of an object that has none."""
    options = getattr(policy, "options", None)
    if not is_dataclass(options):
        return {}
    return {field.name: getattr(options, field.name) for field in fields(options)}


def parse_policy(text: str) -> tuple[str, dict[str, str]]:
    """Return the name, or MODULE:CLASS, and the options as they stand there. Raises ConfigError."""
    name, *parts = (part.strip() for part in text.split(":"))
    if parts and parts[0].isidentifier():
        name = f"{name}:{parts.pop(0)}"
    options: dict[str, str] = {}
    for part in parts:
        option, equals, value = part.partition("=")
        option = option.strip().replace("-", "_")
        if not option or not equals:
            raise ConfigError(f"policy is {text!r}, but options are written as in medha:max_space_share=0.3")
        if option in options:
            raise ConfigError(f"policy is {text!r}, which says {option} twice")
        options[option] = value.strip()
    return name, options


def format_policy(name: str, options: Mapping[str, object]) -> str:
    """Write what `parse_policy` reads. Raises ConfigError: a value cannot be written so."""
    return ":".join([name, *(f"{option}={_written(option, value)}" for option, value in options.items())])


def changed_options(policy: object) -> dict[str, Any]:
    """Return the options that are not at their defaults."""
    options = getattr(policy, "options", None)
    defaults = {field.name: field.default for field in fields(options)} if is_dataclass(options) else {}
    return {name: value for name, value in options_of(policy).items() if value != defaults[name]}


def _known(kind: type[DataclassInstance]) -> str:
    named = [
        field.name if field.default is MISSING else f"{field.name} ({_written(field.name, field.default)})"
        for field in fields(kind)
    ]
    return f"its options, and their defaults, are {', '.join(named)}" if named else "it has no options"


def _written(name: str, value: object) -> str:
    if value is None:
        return NONE
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, int | str) and ":" not in str(value):
        return str(value)
    raise ConfigError(f"option {name} is {value!r}, but must be a number, true, false, or a text without a colon")


def _read(name: str, hint: Any, value: object) -> object:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    for kind in sorted(kinds, key=lambda kind: kind is not NoneType):  # any text is a str
        read, _ = _reader(kind)
        found = read(value)
        if found is not _NOT_ONE:
            return found
    wanted = " or ".join(_reader(kind)[1] for kind in kinds)
    raise ConfigError(f"{name} is {value!r}, but must be {wanted}")


_NOT_ONE = object()


def _reader(kind: Any) -> tuple[Callable[[object], object], str]:
    """Of values of a type: gives `_NOT_ONE` for others; and what they are called."""
    if get_origin(kind) is Literal:
        choices = get_args(kind)
        return lambda value: value if value in choices else _NOT_ONE, f"one of {', '.join(map(str, choices))}"
    if kind not in _READERS:
        raise TypeError(f"options are bool, int, float, str, Literal or None, not {kind}")
    return _READERS[kind]


def _read_none(value: object) -> object:
    return None if value is None or value == NONE else _NOT_ONE


def _read_bool(value: object) -> object:
    return {"true": True, "false": False}.get(str(value).lower(), _NOT_ONE)


def _read_int(value: object) -> object:
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else _NOT_ONE


def _read_float(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _NOT_ONE
    try:
        return float(value)
    except (ValueError, OverflowError):
        return _NOT_ONE


_READERS: dict[Any, tuple[Callable[[object], object], str]] = {
    NoneType: (_read_none, NONE),
    bool: (_read_bool, "true or false"),
    int: (_read_int, "a whole number"),
    float: (_read_float, "a number"),
    str: (lambda value: value if isinstance(value, str) else _NOT_ONE, "a text"),
}
