"""`longspan policies`."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields

from longspan.core.policies import ALIASES, POLICIES, create_policy, policy_class
from longspan.core.policies.base import Policy
from longspan.core.policies.options import format_policy, options_of


def print_policies() -> None:
    """Print each as it is written with all of its options, at their defaults, what it does, and what these mean."""
    for name in sorted(POLICIES):
        policy = create_policy(name)
        print(format_policy(name, options_of(policy)))
        if told := inspect.cleandoc(vars(policy_class(name)).get("__doc__") or "").partition("\n\n")[0]:
            print(textwrap.indent(told, "    "))
        for line in _explained(policy_class(name)):
            print(f"    {line}".rstrip())
    print("\nNames of former times:")
    for name, written in ALIASES.items():
        print(f"    {name}: {written}")


def _explained(kind: type[Policy]) -> Iterator[str]:
    """What it has from others first, as its options are in this order."""
    for each in reversed(kind.mro()):
        options = vars(each).get("Options")
        if options is not None and fields(options):
            yield from inspect.cleandoc(options.__doc__ or "").splitlines()
