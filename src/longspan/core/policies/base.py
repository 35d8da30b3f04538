"""The replaceable part that decides. docs/add_a_policy.md has one to begin with."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from longspan.core.books.request import Request
from longspan.core.estimate import Estimate
from longspan.core.news import News
from longspan.core.policies.options import make_options
from longspan.core.state import SchedulerState
from longspan.errors import ConfigError


class Policy(ABC):
    """A policy is asked once after every event. It acts through `state`, as often as it likes, or not at all.

    It must decide from `state`, `news`, `now` and what it remembers alone, and leave no request waiting for ever:
    whenever no batch runs and a request is alive, it starts something.
    """

    @dataclass(frozen=True)
    class Options:
        """What this policy alone can be told, as in `medha:max_space_share=0.3`: here nothing.

        A subclass's own has a field for each option (bool, int, float, str, Literal; None too), with a default. Its
        `__post_init__` raises ConfigError for values that cannot be; types are checked before.
        """

    name: ClassVar[str]
    """What it is called in logs and messages; of our own, also its key in `POLICIES`."""
    needs_cost_model: ClassVar[bool] = False
    """Whether it reads `state.cost_model`: without a measured one, the engine then makes one at its start."""
    keeps_on_one_instance: ClassVar[bool] = False
    """Whether a request's KV always stays on one instance, so that it can be no longer than that instance holds."""
    is_tuned_at_start: ClassVar[bool] = False
    """Whether the engine's start chooses what nobody says: how the cores are cut up, and the service levels of requests
    that name none."""
    options: Options

    def __init__(self, **options: object) -> None:
        """Take options, the fields of `Options`; also as texts. Raises ConfigError."""
        self.options = make_options(self.Options, self.name, options)

    @abstractmethod
    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        """Decide what runs next, if anything.

        news: what the present event has changed. now: seconds, of a clock that never goes backwards.
        """

    def estimate(self, state: SchedulerState, request: Request, now: float) -> Estimate | None:
        """Return when a request without its first token will probably get it; None from a policy that does not predict.

        It is asked at any time between events, and must change nothing.
        """
        return None

    def may_wait(self, state: SchedulerState, request: Request, now: float) -> bool:
        """Tell of a request without a token, which is being repaired, whether other prompts go before it.

        It is asked before `schedule`, so it may know of requests that `schedule` does not yet; and must change nothing.
        """
        return False

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        """Tell whether the decode iterations that begin to run now shall have their next one queued behind them.

        It is asked after `schedule`, where that can be. A device never waits then, but its instances come back an
        iteration later.
        """
        return not state.instances_are_needed()


def is_tuned_at_start(policy: object) -> bool:
    """Return the attribute of that name, which a policy that extends nothing need not have."""
    return bool(getattr(policy, "is_tuned_at_start", False))


def may_wait(policy: object, state: SchedulerState, request: Request, now: float) -> bool:
    """Return what the method of that name says, which a policy that extends nothing need not have."""
    method = getattr(policy, "may_wait", None)
    return method is not None and bool(method(state, request, now))


def check_policy(policy: object) -> None:
    """Check a policy that a user gives. One that extends nothing will do, if it has all that the engine asks for.

    Raises ConfigError.
    """
    lacking = [name for name in ("name", "needs_cost_model", "keeps_on_one_instance", "schedule", "looks_ahead")
               if not hasattr(policy, name)]
    if isinstance(policy, type) or lacking:
        what = "is a class; give an object of it" if isinstance(policy, type) else f"lacks {', '.join(lacking)}"
        raise ConfigError(
            f"policy is {policy!r}, but must be a name, or an object of a class that extends "
            f"longspan.core.policies.base.Policy; this one {what}"
        )
    _check_call(policy)


def _check_call(policy: Any) -> None:
    """Raises ConfigError unless its methods can be called as they will be, and it has a name."""
    if not (isinstance(policy.name, str) and policy.name.isprintable() and policy.name):
        raise ConfigError(f"a policy's name is {policy.name!r}, but must be a text that can be printed")
    for method, arguments in (("schedule", "state, news, now"), ("looks_ahead", "state, now")):
        function = getattr(policy, method)
        if inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function):
            raise ConfigError(f"the policy {policy.name} decides at once: its {method} must be a plain function")
        try:
            inspect.signature(function).bind(*arguments.split(", "))
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"the policy {policy.name} is called as {method}({arguments}), which it does not take: {error}"
            ) from error
