"""Covering arrays: few cells in which every pair of two axes' values meets.

A greedy generator in the manner of AETG: each cell starts from a pair that is still missing, and takes on every other
axis the value that makes most missing pairs. It is deterministic, for a given seed.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice, product

TRIES = 3
"""Cells that are made from a pair before the best is taken."""
MOST_TRIES = 50
"""Values drawn for some axes may exclude all of another's; then another cell is tried."""

Cell = dict[str, Hashable]
Place = tuple[str, Hashable]
Pair = tuple[Place, Place]


@dataclass(frozen=True)
class Axis:
    """One thing that varies.

    rare: values that cost much, each with the axes whose values it must meet; it appears for that alone, and where
        another rare value leaves no choice.
    """

    values: Sequence[Hashable]
    rare: Mapping[Hashable, Sequence[str]] = field(default_factory=dict)


def cover(axes: Mapping[str, Axis], possible: Callable[[Cell], bool], seed: int = 0) -> list[Cell]:
    """Cells, every one of them possible, in which all pairs meet that can.

    possible: called with some axes' values, too: whether there may be a cell that has them.
    """
    draw = random.Random(seed)
    missing = dict.fromkeys(pairs_to_meet(axes, possible))
    cells: list[Cell] = []
    while missing:
        pair = next(iter(missing))
        every = (_cell_of(axes, possible, pair, missing, draw) for _ in range(MOST_TRIES))
        tried = [*islice((cell for cell in every if cell), TRIES)]
        if not tried:
            raise ValueError(f"no cell has both {pair[0]} and {pair[1]}: `possible` should tell so of the two alone")
        cells.append(max(tried, key=lambda cell: sum(pair in missing for pair in pairs_of(axes, cell))))
        for covered in pairs_of(axes, cells[-1]):
            missing.pop(covered, None)
    return cells


def pairs_of(axes: Iterable[str], cell: Cell) -> Iterable[Pair]:
    return combinations([(name, cell[name]) for name in axes], 2)


def pairs_to_meet(axes: Mapping[str, Axis], possible: Callable[[Cell], bool]) -> Iterable[Pair]:
    for (one, left), (other, right) in combinations(axes.items(), 2):
        for a, b in product(left.values, right.values):
            if other in left.rare.get(a, [other]) and one in right.rare.get(b, [one]) and possible({one: a, other: b}):
                yield (one, a), (other, b)


def _cell_of(
    axes: Mapping[str, Axis], possible: Callable[[Cell], bool], pair: Pair, missing: Mapping[Pair, None],
    draw: random.Random,
) -> Cell | None:  # fmt: skip
    """A cell with that pair; None if the axes' values came to exclude each other."""
    order = {name: number for number, name in enumerate(axes)}
    cell: Cell = dict(pair)
    for name in draw.sample([name for name in axes if name not in cell], len(axes) - 2):
        best: list[Hashable] = []
        most = -1
        able = [value for value in axes[name].values if possible({**cell, name: value})]
        for value in [value for value in able if value not in axes[name].rare] or able:
            place = (name, value)
            new = sum(
                ((place, other) if order[name] < order[other[0]] else (other, place)) in missing
                for other in cell.items()
            )
            if new > most:
                best, most = [], new
            if new == most:
                best.append(value)
        if not best:
            return None
        cell[name] = draw.choice(best)
    return cell
