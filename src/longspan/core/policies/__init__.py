"""Policies by name. A policy's module is loaded when it is first asked for."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from typing import TYPE_CHECKING, cast

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
    "least_slack": "longspan.core.policies.medha.baselines:LeastSlack",
    "loongserve": "longspan.core.policies.loongserve.policy:LoongServe",
    "loongserve_never_splits": "longspan.core.policies.loongserve.ablations:LoongServeNeverSplits",
    "loongserve_no_scale_up": "longspan.core.policies.loongserve.ablations:LoongServeNoScaleUp",
    "loongserve_reactive": "longspan.core.policies.loongserve.ablations:LoongServeReactive",
    "loongserve_single_master": "longspan.core.policies.loongserve.ablations:LoongServeSingleMaster",
    "medha": "longspan.core.policies.medha.policy:Medha",
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


def create_policy(name: str) -> Policy:
    if name not in POLICIES:
        near = get_close_matches(name, POLICIES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"there is no policy {name!r}; {meant}there are: {', '.join(sorted(POLICIES))}")
    module, _, class_name = POLICIES[name].partition(":")
    return cast("Policy", getattr(import_module(module), class_name)())
