"""What is counted is given as a whole number: the command line's parser by itself would round 1.5."""

from __future__ import annotations

from typing import get_args

from cyclopts import App, ArgumentCollection

from longspan.errors import ConfigError


def check_whole_numbers(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Check that numbers are whole: a cyclopts config source that adds nothing, and comes after those that do.

    Raises:
        ConfigError: an option of whole numbers has a fraction, wherever it was given.
    """
    for argument in arguments:
        if not _is_counted(argument.hint):
            continue
        for token in argument.tokens:
            if "." in token.value:
                name = argument.name.removeprefix("--").replace("-", "_")
                raise ConfigError(f"{name} is {token.value}, but must be a whole number")


def _is_counted(hint: object) -> bool:
    """Whether an option of this type takes whole numbers, one or several, and nothing else but None."""
    return _kinds(hint) <= {int, type(None), ...} and int in _kinds(hint)


def _kinds(hint: object) -> set[object]:
    parts = get_args(hint)
    return set().union(*map(_kinds, parts)) if parts else {hint}
