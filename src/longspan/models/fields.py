"""A model's own description, read field by field: each of the right type and in range, or a ModelError names it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longspan.errors import LongspanError, ModelError

_MOST = 1 << 31  # no size of any model is as large

_LARGEST = 1e300


class Fields:
    """Values by name, from the file at `path`. What is None or missing has its default; without one it is an error."""

    def __init__(self, values: Mapping[str, Any], path: Path) -> None:
        self.values = values
        self.path = path

    def get(self, key: str) -> Any:
        """Return the value as it stands there, unchecked."""
        return self.values.get(key)

    def size(self, key: str, default: int | None = None) -> int:
        """Return a whole number of at least 1."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < _MOST:
            raise self.wrong(key, f"a whole number from 1 to {_MOST - 1}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number above 0."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _LARGEST:
            raise self.wrong(key, "a finite number above 0")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        """Return a list of finite numbers above 0."""
        values = self._value(key, None)
        if not isinstance(values, list) or not all(
            isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST for value in values
        ):
            raise self.wrong(key, "a list of finite numbers above 0")
        return tuple(map(float, values))

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.wrong(key, "text")
        return value

    def texts(self, key: str) -> list[str]:
        """Return a list of texts; empty where there is none."""
        value = self._value(key, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.wrong(key, "a list of texts")
        return value

    def token_ids(self, key: str) -> tuple[int, ...]:
        """Return one token id or a list of them; empty where there is none."""
        value = self._value(key, [])
        ids = value if isinstance(value, list) else [value]
        if not all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _MOST for item in ids):
            raise self.wrong(key, "a token id, or a list of token ids")
        return tuple(ids)

    def table(self, key: str) -> Fields:
        """Return the fields inside; empty where there are none."""
        value = self._value(key, {})
        if not isinstance(value, dict):
            raise self.wrong(key, "a JSON object")
        return Fields(value, self.path)

    def wrong(self, key: str, expected: str) -> LongspanError:
        """Return what to raise where the value of `key` is not as expected."""
        value = f"{self.values.get(key)!r:.80}"
        return ModelError(
            f"{self.path}: {key!r} is {value}, but must be {expected}; if the file was changed or cut short, fetch it "
            "again"
        )

    def missing(self, key: str) -> LongspanError:
        """Return what to raise where there is no value of `key`."""
        return ModelError(f"{self.path} does not say {key!r}; is the model complete?")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise self.missing(key)
        return value


def read_json(path: Path) -> Fields:
    """Return the fields of a JSON file. Raises ModelError where it cannot be read, or holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} cannot be read as JSON ({error}); if a download was cut short, fetch it again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds no JSON object")
    return Fields(value, path)
