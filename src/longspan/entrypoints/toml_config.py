"""Settings of `longspan serve` from a TOML file: its [serve] table has the options' names."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from longspan.errors import ConfigError

DEFAULT_FILE = Path("longspan.toml")
TABLE = "serve"
OPTION = "--config"


def read_toml_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """A cyclopts config source: fills in what neither command line nor environment gave."""
    if commands != (TABLE,):
        return
    given = [token.value for argument in arguments if argument.name == OPTION for token in argument.tokens]
    path = Path(given[0]) if given else DEFAULT_FILE
    if not given and not path.is_file():
        return
    known = {
        argument.name.removeprefix("--")
        for argument in arguments
        if argument.name.startswith("--") and argument.name != OPTION
    }
    settings = {key.replace("_", "-"): value for key, value in _table(path).items()}
    unknown = sorted(settings.keys() - known)
    if unknown:
        raise ConfigError(
            f"{path}: unknown setting {', '.join(unknown)}; these are known: {', '.join(sorted(known))}"
        )
    for key, value in settings.items():
        if isinstance(value, dict | list):
            raise ConfigError(f"{path}: {key} must be one value")
    Dict({TABLE: settings}, source=str(path))(app, commands, arguments)


def _table(path: Path) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    unknown = sorted(document.keys() - {TABLE})
    if unknown or not isinstance(document.get(TABLE, {}), dict):
        raise ConfigError(
            f"{path}: unknown {', '.join(unknown) or TABLE}; everything goes into the table [{TABLE}]"
        )
    table: dict[str, Any] = document.get(TABLE, {})
    return table
