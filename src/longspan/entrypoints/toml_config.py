"""Settings from a TOML file: a table for each command, [serve] or [bench.serve], with the names of its options.

The policy may be a text, as on the command line, or a table of its own, [serve.policy], with its name and its options;
so may be the RoPE scaling, [serve.rope_scaling].
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Toml

from longspan.core.policies import told_of_moved
from longspan.core.policies.options import format_policy
from longspan.errors import ConfigError
from longspan.files import check_readable

DEFAULT_FILE = Path("longspan.toml")
OPTION = "--config"
POLICY = "policy"  # may be a table of its own, with name and options
ROPE_SCALING = "rope_scaling"  # likewise
TABLES = (
    "serve", "run-batch", "chat", "profile", "simulate", "plan", "bench.serve", "bench.latency", "bench.throughput",
    "fleet.list", "fleet.add", "fleet.drain", "fleet.remove", "fleet.restart",
)  # fmt: skip

ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=OPTION,
        help="TOML file with settings, in a table named as the command; by default longspan.toml in this folder, if "
        "there is one.",
    ),
]
"""The option of every command that has a table."""


def read_toml_config(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what neither command line nor environment gave: a cyclopts config source."""
    table = ".".join(commands)
    if table not in TABLES:
        return
    given = [token.value for argument in arguments if argument.name == OPTION for token in argument.tokens]
    path = Path(given[-1]) if given else DEFAULT_FILE
    if not given and not path.exists():
        return
    check_readable(path)
    reader = Toml(path, source=str(path))
    try:
        document = reader.config
    except CycloptsError as error:
        raise ConfigError(f"{path} is not valid TOML: {error.__cause__ or error}") from error
    _check_tables(path, document)
    settings = _table(document, commands)
    _check_keys(path, settings, arguments)
    if isinstance(settings.get(POLICY), dict):
        settings[POLICY] = _policy(path, table, settings[POLICY])
    if isinstance(settings.get(ROPE_SCALING), dict):
        settings[ROPE_SCALING] = json.dumps(settings[ROPE_SCALING])
    reader(app, commands, arguments)


def _check_tables(path: Path, document: dict[str, Any], above: str = "") -> None:
    """Every table is a command's, also those of other commands than the one that runs."""
    for name, value in document.items():
        full = above + name
        if full in TABLES and isinstance(value, dict):
            continue
        if isinstance(value, dict) and any(table.startswith(f"{full}.") for table in TABLES):
            _check_tables(path, value, f"{full}.")
            continue
        known = ", ".join(f"[{table}]" for table in TABLES)
        raise ConfigError(f"{path}: unknown {full}; each command's settings go into its table: {known}")


def _check_keys(path: Path, settings: dict[str, Any], arguments: ArgumentCollection) -> None:
    """Names are those of options, with - or _; negations (no-lookahead) are not, for false says the same."""
    known = {
        argument.name.removeprefix("--")
        for argument in arguments
        if argument.name.startswith("--") and argument.name != OPTION
    }
    unknown = sorted(key for key in settings if key.replace("_", "-") not in known)
    for key in unknown:
        if told := told_of_moved(key.replace("-", "_")):
            raise ConfigError(f"{path}: {told}")
    if unknown:
        raise ConfigError(
            f"{path}: unknown setting {', '.join(unknown)}; these are known: {', '.join(sorted(known))}"
        )


def _policy(path: Path, table: str, settings: dict[str, Any]) -> str:
    """A table of a policy's name and options, as the command line has them."""
    if not isinstance(settings.get("name"), str):
        raise ConfigError(f"{path}: [{table}.{POLICY}] needs a name, such as \"medha\", beside the options")
    options = {option: value for option, value in settings.items() if option != "name"}
    try:
        return format_policy(settings["name"], options)
    except ConfigError as error:
        raise ConfigError(f"{path}: [{table}.{POLICY}]: {error}") from error


def _table(document: dict[str, Any], commands: tuple[str, ...]) -> dict[str, Any]:
    for name in commands:
        document = document.get(name, {})
    return document
