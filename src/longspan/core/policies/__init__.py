"""Policies by name. A policy's module is loaded when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, cast

from longspan.core.policies.options import changed_options, format_policy, parse_policy
from longspan.errors import ConfigError

if TYPE_CHECKING:
    from longspan.core.policies.base import Policy

POLICIES: dict[str, str] = {
    "alise": "longspan.core.policies.speculative.alise:Alise",
    "distserve": "longspan.core.policies.distserve:DistServe",
    "edf": "longspan.core.policies.medha.baselines:Edf",
    "elastic_fcfs": "longspan.core.policies.elastic_fcfs:ElasticFcfs",
    "fastserve": "longspan.core.policies.fastserve:FastServe",
    "fcfs": "longspan.core.policies.medha.baselines:Fcfs",
    "fsp": "longspan.core.policies.rivals.fsp:Fsp",
    "least_slack": "longspan.core.policies.medha.baselines:LeastSlack",
    "longspan": "longspan.core.policies.longspan.policy:Longspan",
    "loongserve": "longspan.core.policies.loongserve.policy:LoongServe",
    "medha": "longspan.core.policies.medha.policy:Medha",
    "preflow": "longspan.core.policies.rivals.preflow:Preflow",
    "qoserve": "longspan.core.policies.rivals.qoserve:QoServe",
    "replicated": "longspan.core.policies.one_instance:Replicated",
    "sarathi": "longspan.core.policies.medha.baselines:Sarathi",
    "splitfuse": "longspan.core.policies.splitfuse:SplitFuse",
    "srpt": "longspan.core.policies.medha.baselines:Srpt",
    "ssjf": "longspan.core.policies.speculative.ssjf:Ssjf",
    "static_sp": "longspan.core.policies.static_sp:StaticSP",
    "static_tp": "longspan.core.policies.one_instance:StaticTP",
    "vllm": "longspan.core.policies.vllm:Vllm",
}
"""name -> module:class"""

ALIASES: dict[str, str] = {
    "loongserve_never_splits": "loongserve:splits_batches=false",
    "loongserve_no_scale_up": "loongserve:scale_up=false",
    "loongserve_reactive": "loongserve:scale_down=reactive",
    "loongserve_single_master": "loongserve:max_masters=1",
}
"""Names of former times -> what they stand for."""

MOVED_SETTINGS: dict[str, str] = {
    "chunk_size": "sarathi:chunk_size=512 or splitfuse:chunk_size=512",
    "kvp_tokens_per_shard": "medha:kvp_tokens_per_shard=4096",
    "max_fixed_share": "medha:max_fixed_share=0.8",
    "max_space_share": "medha:max_space_share=0.4",
}
"""Once of the scheduler, whatever its policy; options of some policies now -> how they are written, for example."""


def create_policy(text: str, options: Mapping[str, object] | None = None) -> Policy:
    """Return a fresh one. Raises ConfigError.

    text: a name of `POLICIES` or `ALIASES`, or MODULE:CLASS, of one's own; then options, as in
    medha:max_space_share=0.3. options: more of them.
    """
    name, given = split_policy(text)
    kind, values = policy_class(name), given | dict(options or {})
    return kind(**values) if name in POLICIES else _own_policy(name, kind, values)


def split_policy(text: str) -> tuple[str, dict[str, object]]:
    """Return the name of today, or MODULE:CLASS, and the options as they stand there. Raises ConfigError."""
    name, options = parse_policy(text)
    if name not in ALIASES:
        return name, {**options}
    name, of_alias = parse_policy(ALIASES[name])
    return name, {**of_alias, **options}


def told_of_alias(text: str) -> str | None:
    """Tell how a name of former times is written now; None if it is none. Raises ConfigError."""
    name, _ = parse_policy(text)
    return f"the policy {name} is written {ALIASES[name]} now" if name in ALIASES else None


def told_of_moved(setting: str) -> str | None:
    """Tell where a setting of former times is now; None if it is none."""
    written = MOVED_SETTINGS.get(setting)
    return None if written is None else f"{setting} is an option of the policy now, as in policy {written}"


def policy_text(policy: Policy) -> str:
    """Return the text with which `create_policy` makes a policy that decides alike, if it is known by its name."""
    return format_policy(policy.name, changed_options(policy))


def policy_class(name: str) -> type[Policy]:
    """Return the class of that name: one of `POLICIES`, or MODULE:CLASS. Raises ConfigError."""
    module, _, class_name = POLICIES.get(name, name).partition(":")
    if name in POLICIES:
        return cast("type[Policy]", getattr(import_module(module), class_name))
    if module in POLICIES or module in ALIASES:
        raise ConfigError(f"policy {module}: its option {class_name} has no value, as in medha:max_space_share=0.3")
    if not class_name:
        near = get_close_matches(name, POLICIES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        known = ", ".join(sorted(POLICIES))
        raise ConfigError(f"there is no policy {name!r}; {meant}there are: {known}, and MODULE:CLASS")
    return _own_class(module, class_name)


def _own_policy(name: str, kind: type[Policy], options: Mapping[str, object]) -> Policy:
    """Make and check one that a user wrote. Raises ConfigError, whatever its code raises."""
    from longspan.core.policies.base import check_policy

    try:
        policy = kind(**options)
        _ = policy.options  # which an __init__ of its own may have left out
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(
            f"policy {name} cannot be made ({type(error).__name__}: {error}); an __init__ of its own takes **options "
            "and hands them to super().__init__(**options), Options is a frozen dataclass of fields with defaults "
            "(docs/add_a_policy.md)"
        ) from error
    check_policy(policy)
    return policy


def _own_class(module: str, class_name: str) -> type[Policy]:
    from longspan.core.policies.base import Policy

    try:
        kind = getattr(import_module(module), class_name, None)
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(
            f"policy {module}:{class_name}: its module cannot be imported ({reason}); is its folder on PYTHONPATH?"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, Policy)):
        raise ConfigError(
            f"policy {module}:{class_name}: the module has no such class that extends longspan.core.policies.base."
            "Policy (docs/add_a_policy.md)"
        )
    if not isinstance(getattr(kind, "name", None), str):
        raise ConfigError(f'policy {module}:{class_name} has no name; its class needs one, as in name = "mine"')
    return kind
