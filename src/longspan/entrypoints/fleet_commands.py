"""The subcommands of `longspan fleet`: what a running server is asked about its instances."""

from __future__ import annotations

import time
from typing import Any

from cyclopts import App

from longspan.entrypoints.toml_config import ConfigFile
from longspan.errors import LongspanError

fleet = App(name="fleet", help="Look at a running server's instances, empty them, end them, start them again.")

URL = "http://127.0.0.1:8000"
_POLL_S = 0.5


@fleet.command(name="list")
def list_instances(*, url: str = URL, api_key: str | None = None, config: ConfigFile = None) -> int:
    """Show how each instance is.

    Args:
        url: Where the server is.
        api_key: Sent as a bearer token; better given as LONGSPAN_FLEET_LIST_API_KEY or OPENAI_API_KEY.
    """
    _show(_ask(url, api_key))
    return 0


@fleet.command
def add(*, url: str = URL, api_key: str | None = None, wait: bool = True, config: ConfigFile = None) -> int:
    """Start one instance more.

    Args:
        url: Where the server is.
        api_key: Sent as a bearer token.
        wait: Return when it serves.
    """
    found = _ask(url, api_key, "POST")
    first = found[-1]
    while wait and found[first["instance"]]["state"] != "serving":
        time.sleep(_POLL_S)
        found = _ask(url, api_key)
        _check_it_comes(first, found[first["instance"]])
    _show([found[first["instance"]]])
    return 0


@fleet.command
def drain(
    instance: int, /, *, url: str = URL, api_key: str | None = None, wait: bool = True, config: ConfigFile = None
) -> int:
    """Empty an instance: no new work begins there, its KV moves away, its requests go on.

    Args:
        instance: Its number.
        url: Where the server is.
        api_key: Sent as a bearer token.
        wait: Return when it is empty.
    """
    return _change(url, api_key, instance, "drain", "drained" if wait else None)


@fleet.command
def remove(
    instance: int, /, *, url: str = URL, api_key: str | None = None, wait: bool = True, config: ConfigFile = None
) -> int:
    """Empty an instance, and end its workers.

    Args:
        instance: Its number.
        url: Where the server is.
        api_key: Sent as a bearer token.
        wait: Return when it has ended.
    """
    return _change(url, api_key, instance, "remove", "removed" if wait else None)


@fleet.command
def restart(
    *instances: int, url: str = URL, api_key: str | None = None, config: ConfigFile = None
) -> int:
    """Empty instances one by one, and start their workers again; also those that are missing.

    Args:
        instances: Their numbers; none: all but those that were removed.
        url: Where the server is.
        api_key: Sent as a bearer token.
    """
    for instance in instances or [one["instance"] for one in _ask(url, api_key) if one["state"] != "removed"]:
        _change(url, api_key, instance, "restart", "serving")
    return 0


def _change(url: str, api_key: str | None, instance: int, action: str, until: str | None) -> int:
    """Ask for it, and wait until the instance is so. None: at once.

    Raises LongspanError, besides what `_ask` does: it will not be so.
    """
    restarts = {one["instance"]: one["restarts"] for one in _ask(url, api_key)}
    found = _ask(url, api_key, "POST", f"/{instance}/{action}")
    first = found[instance]
    while until is not None:
        one = found[instance]
        if one["state"] == until and (until != "serving" or one["restarts"] > restarts[instance]):
            break
        if one["state"] == "serving" and until != "serving":
            raise LongspanError(f"instance {instance} serves again: somebody else has asked for that meanwhile")
        _check_it_comes(first, one)
        time.sleep(_POLL_S)
        found = _ask(url, api_key)
    _show([found[instance]])
    return 0


def _check_it_comes(first: dict[str, Any], now: dict[str, Any]) -> None:
    """Raise LongspanError if an instance is missing that was otherwise at first: then nobody starts it any more."""
    told = ("restarts", "why", "pids")
    if now["state"] == "missing" and [now[name] for name in told] != [first[name] for name in told]:
        raise LongspanError(f"instance {now['instance']} is missing: {now['why']}")


def _ask(url: str, api_key: str | None, method: str = "GET", path: str = "") -> list[dict[str, Any]]:
    """Raises ConfigError for a bad URL or key; LongspanError: the server does not answer, or refuses."""
    from longspan.entrypoints.client import ask

    def instances(content: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = content["instances"]
        return found

    return ask(url, api_key, f"/fleet{path}", instances, "has no fleet", method)


def _show(instances: list[dict[str, Any]]) -> None:
    for one in instances:
        why = f"  {one['why']}" if one["why"] else ""
        where = f" on node {one['node']}" if any(other.get("node") for other in instances) else ""
        print(
            f"instance {one['instance']}{where}: {one['state']}, {one['kv_tokens_used']} KV slots used, "
            f"{one['kv_tokens_cached']} cached, {one['restarts']} restarts, "
            f"processes {' '.join(map(str, one['pids'])) or 'none'}{why}"
        )
