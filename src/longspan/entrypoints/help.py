"""The help of commands, with the policy and the knobs that they have in common behind what is their own."""

from __future__ import annotations

from dataclasses import fields

from cyclopts.help import DefaultFormatter, HelpPanel
from rich.console import Console, ConsoleOptions

from longspan.config import SchedulingKnobs

_LAST = ["policy", *(field.name for field in fields(SchedulingKnobs))]
_PLACES = {f"--{name.replace('_', '-')}": place for place, name in enumerate(_LAST, start=1)}


class KnobsLast(DefaultFormatter):
    """Inherited fields come first in a dataclass, and would in its help."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        entries = sorted(panel.entries, key=lambda entry: max([0, *(_PLACES.get(name, 0) for name in entry.names)]))
        super().__call__(console, options, panel.copy(entries=entries))
