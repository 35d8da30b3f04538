"""A result's file, and how its figures are written."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
RESULTS = ROOT / "benchmarks" / "results"

Record = dict[str, Any]
"""As benchmarks/common.py saves it: benchmark, date, command, machine, results."""


def load(name: str) -> Record | None:
    """None: there is no such result."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def table(head: Iterable[str], rows: Iterable[Iterable[object]], text: int = 0) -> str:
    """text: how many columns at the left hold words, not figures."""
    head = list(head)
    rule = [":---" if place < text else "---:" for place in range(len(head))]
    lines = [head, rule, *[[str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def origin(record: Record, note: str = "Medians; ratios are medians of the rounds' ratios.") -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    text = (
        f"benchmarks/results/{record['benchmark']}.json, {record['date']}: `{record['command']}` on "
        f"{machine['cores']} cores of {machine['cpu']} ({', '.join(machine['isa'])}), {versions}. {note}"
    )
    return f"*{text.strip()}*\n"


def seconds(summary: dict[str, Any]) -> str:
    return f"{summary['median']:.3f}"


def milliseconds(summary: dict[str, Any]) -> str:
    return f"{1000 * summary['median']:.1f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def signed_percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def ms(value: float | None, decimals: int = 1) -> str:
    return "-" if value is None else f"{1000 * value:.{decimals}f}"


def filled(text: str, name: str, block: str) -> str:
    """Return the text with another block between the two lines that mark it as drawn out of this result."""
    begin, end = f"<!-- drawn out of benchmarks/results/{name}.json -->\n", f"<!-- end of {name}.json -->\n"
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"the text has no lines {begin.strip()} and {end.strip()}")
    return f"{before}{begin}\n{block}\n{end}{after}"
