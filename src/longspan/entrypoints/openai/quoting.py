"""What clients sent, as it may stand in a message: short, and whole Unicode."""

from __future__ import annotations

MAX_QUOTED = 100


def quoted(value: object) -> str:
    """Return its `repr`, cut."""
    text = value if isinstance(value, str) else repr(value)
    cut = text[:MAX_QUOTED]
    shown = repr(cut) if isinstance(value, str) else cut
    return shown if len(text) <= MAX_QUOTED else f"{shown}… ({len(text)} characters)"
