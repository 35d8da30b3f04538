"""Settings of the scheduler and of its policy together, as tests that try several policies have them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from longspan.config import SchedulerConfig
from longspan.core.policies import ALIASES, POLICIES, create_policy
from longspan.core.policies.options import format_policy, options_of

EVERY_POLICY = sorted([*POLICIES, *ALIASES])
"""LoongServe with what the aliases take away counts as a policy of its own."""


def with_options(policy: str, **options: Any) -> str:
    """The policy with those of the options that it has."""
    known = options_of(create_policy(policy))
    return format_policy(policy, {name: value for name, value in options.items() if name in known})


def configured(policy: str, **settings: Any) -> SchedulerConfig:
    """settings: of the scheduler; and of policies, who go by those that they have."""
    names = {field.name for field in fields(SchedulerConfig)}
    options = {name: value for name, value in settings.items() if name not in names}
    of_scheduler = {name: value for name, value in settings.items() if name in names}
    return SchedulerConfig(policy=with_options(policy, **options), **of_scheduler)
