"""The grid of policies, in simulation: a heat map, and a table of means."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from rendering.plots import plot
from rendering.record import Record, origin, percent, table

SHOWN_K = 5.0
OURS = "longspan"


def grid(record: Record) -> str:
    r = record["results"]
    parts = [
        "## Policies on a grid of workloads and loads, in simulation\n",
        origin(record, "Means over seeds."),
        "The share of requests whose first token came within max(k times what the prompt takes alone on all devices, a "
        f"floor) and whose further ones took {1000 * r['tpot_s']:.0f} ms each; who is refused is not among them. "
        "Replicas: the devices are instances; spp: the stages of one. A load of 1 is all that the devices could do at "
        "best efficiency, which no real batch has. The bound is what nobody could exceed: "
        "benchmarks/policy/grid_bound.py.\n",
        _heat_map([cell for cell in r["cells"] if cell["k"] == SHOWN_K]),
    ]
    for k in sorted({row["k"] for row in r["by_load"]}):
        parts += [f"Means over workloads, k = {k:g}; in brackets the mean over classes of length:\n", _means(r, k)]
    standing = r[OURS]
    if standing is not None:
        parts.append(_standing(standing))
    return "\n".join(parts)


def _heat_map(cells: list[dict[str, Any]]) -> str:
    """One panel a shape, a row for each policy, a column for each workload and load."""
    shapes = sorted({cell["shape"] for cell in cells})
    policies = sorted({policy for cell in cells for policy in cell["policies"]})
    columns = sorted({(cell["workload"], cell["load"]) for cell in cells})
    loads = ", ".join(f"{load:g}" for load in sorted({load for _, load in columns}))
    at = {(cell["shape"], cell["workload"], cell["load"]): cell["policies"] for cell in cells}

    def draw(axes: list[Axes]) -> None:
        for axis, shape in zip(axes, shapes, strict=True):
            rows = [
                [at.get((shape, *column), {}).get(policy, {}).get("attainment", float("nan")) for column in columns]
                for policy in policies
            ]
            axis.imshow(rows, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto", interpolation="nearest")
            axis.set_yticks(range(len(policies)), policies)
            ends = [place for place in range(1, len(columns)) if columns[place][0] != columns[place - 1][0]]
            for end in ends:
                axis.axvline(end - 0.5, color="white", linewidth=1.5)
            middles = [(low + high - 1) / 2 for low, high in pairwise([0, *ends, len(columns)])]
            axis.set_xticks(middles, dict.fromkeys(workload for workload, _ in columns), rotation=90, fontsize=6)
            axis.set_title(f"{shape}: in time, dark none, light all;\nfrom left to right, load {loads}", fontsize=7)

    what = f"The share in time of every policy in every cell of k = {SHOWN_K:g}, by shape"
    return plot("grid", what, draw, columns=len(shapes) or 1)


def _means(r: dict[str, Any], k: float) -> str:
    rows = [row for row in r["by_load"] if row["k"] == k]
    policies = sorted({(row["shape"], policy) for row in rows for policy in row["policies"]})
    loads = sorted({row["load"] for row in rows})
    by_place = {(row["shape"], row["load"]): row for row in rows}

    def share(shape: str, policy: str, load: float) -> str:
        found = by_place.get((shape, load), {}).get("policies", {}).get(policy)
        return "-" if found is None else f"{found['attainment']:.3f} ({found['balanced']:.3f})"

    def bound(load: float) -> str:
        found = [row["bound"] for row in rows if row["load"] == load and row["bound"] is not None]
        return f"{max(found):.3f}" if found else "-"

    return table(
        ["shape", "policy", *(f"load {load:g}" for load in loads)],
        [["any", "bound", *map(bound, loads)],
         *([shape, f"`{policy}`", *(share(shape, policy, load) for load in loads)] for shape, policy in policies)],
        text=2,
    )  # fmt: skip


def _standing(standing: dict[str, Any]) -> str:
    def some(share: float | None) -> str:
        return "-" if share is None else percent(share)

    below = standing["below_best"]
    return (
        f"`{OURS}` closes {some(standing['gap_closed'])} of the gap between the best of the papers' policies and the "
        f"bound on average; in {len(below)} of {standing['cells']} cells it is below that best by more than a point"
        f"{': ' + ', '.join(below) if below else ''}. In {some(standing['at_least_orders'])} of the cells it is at "
        "least `srpt` and `edf`.\n"
    )
