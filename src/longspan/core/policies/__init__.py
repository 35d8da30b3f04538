"""Policies by name. A policy's module is loaded when it is first asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from longspan.errors import ConfigError

if TYPE_CHECKING:
    from longspan.core.policies.base import Policy

POLICIES: dict[str, str] = {
    "elastic_fcfs": "longspan.core.policies.elastic_fcfs:ElasticFcfs",
}
"""name -> module:class"""


def create_policy(name: str) -> Policy:
    if name not in POLICIES:
        raise ConfigError(f"there is no policy {name!r}; there are: {', '.join(sorted(POLICIES))}")
    module, _, class_name = POLICIES[name].partition(":")
    return cast("Policy", getattr(import_module(module), class_name)())
