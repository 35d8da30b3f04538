"""What the grid's runs say together: means over seeds by cell, and how one policy stands beside the others.

Two policies are compared on the seeds that both have run. The best of RIVALS is the one that beats OURS by the most, or
is beaten by the least; the gap that is closed is the part of the way from it to the bound.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from benchmarks.policy.grid_run import BOUND, TPOT_S

OURS = "longspan"
RIVALS = ("loongserve", "medha", "sarathi", "static_sp", "vllm")
ORDERS = ("srpt", "edf")
POINT = 0.01

Run = dict[str, Any]
Seeds = dict[int, Run]


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """runs: one of each key, as `grid_run.run` returns them, with the digest of their source."""
    cells: dict[tuple[Any, ...], dict[str, Seeds]] = defaultdict(lambda: defaultdict(dict))
    bounds: dict[tuple[Any, ...], Seeds] = defaultdict(dict)
    for found in runs:
        where = _where(found)
        if "attainment" not in found:
            continue
        if found["policy"] == BOUND:
            bounds[where][found["seed"]] = found
        else:
            cells[(*where, found["shape"])][found["policy"]][found["seed"]] = found
    every = [_cell(where, by_policy, bounds[where[:-1]]) for where, by_policy in sorted(cells.items())]
    return {
        "tpot_s": TPOT_S,
        "cells": every,
        "by_load": [*_by_load(every)],
        OURS: _standing([cell for cell in every if OURS in cell["policies"]]),
        "without_figures": sorted(
            f"{found['key']}: {why}: {found[why]}" for found in runs for why in ("skipped", "failed") if why in found
        ),
        "above_bound": [run["key"] for run in runs if _is_above(run, bounds)],
        "sources": dict(Counter(f"{run['policy']}: {run['digest']}" for run in runs)),
        "wall_s": sum(found["wall_s"] for found in runs),
    }


def _where(run: Run) -> tuple[Any, ...]:
    return run["workload"], run["k"], run["load"], run["requests"]


def _is_above(run: Run, bounds: Mapping[tuple[Any, ...], Seeds]) -> bool:
    """Nobody is: it would be a mistake in the bound."""
    bound = bounds[_where(run)].get(run["seed"])
    return bound is not None and run.get("attainment", 0.0) > bound["attainment"] + 1e-9


def _cell(where: tuple[Any, ...], by_policy: dict[str, Seeds], bound: Seeds) -> dict[str, Any]:
    workload, k, load, requests, shape = where
    cell: dict[str, Any] = {"workload": workload, "shape": shape, "k": k, "load": load, "requests": requests}
    for name, figure in (("bound", "attainment"), ("bound_balanced", "balanced")):
        cell[name] = mean(found[figure] for found in bound.values()) if bound else None
    cell["policies"] = {policy: _means([*seeds.values()]) for policy, seeds in sorted(by_policy.items())}
    if OURS in by_policy:
        ours = by_policy[OURS]
        margins, cell["over"] = ({p: _margin(ours, by_policy[p]) for p in others if _has(by_policy, p, ours)}
                                 for others in (RIVALS, ORDERS))  # fmt: skip
        if margins:
            best = min(margins, key=lambda policy: margins[policy])
            cell["best"], cell["margin"] = best, margins[best]
            cell["gap_closed"] = _gap_closed(ours, by_policy[best], bound)
    return cell


def _means(seeds: Sequence[Run]) -> dict[str, Any]:
    found: dict[str, Any] = {
        name: mean(run[name] for run in seeds)
        for name in ("attainment", "balanced", "tpot_met", "worst_slowdown", "simulated_s", "events", "wall_s")
    }
    found["seeds"] = len(seeds)
    tpots = [run["tpot_s"]["p90"] for run in seeds if run["tpot_s"]]
    found["tpot_p90_s"] = mean(tpots) if tpots else None
    found["classes"] = {}
    for name in dict.fromkeys(name for run in seeds for name in run["by_class"]):
        those = [run for run in seeds if name in run["by_class"]]
        served = [run["ttft_s"][name] for run in those if name in run["ttft_s"]]
        found["classes"][name] = {
            "attainment": mean(run["by_class"][name] for run in those),
            "refused": sum(run["refused"][name] for run in those) / sum(run["counted"][name] for run in those),
            **{f"ttft_{p}_s": mean(ttft[p] for ttft in served) if served else None for p in ("p50", "p99")},
        }
    return found


def _has(by_policy: dict[str, Seeds], policy: str, ours: Seeds) -> bool:
    return policy in by_policy and bool(by_policy[policy].keys() & ours.keys())


def _margin(ours: Seeds, theirs: Seeds) -> float:
    both = ours.keys() & theirs.keys()
    return float(mean(ours[seed]["attainment"] - theirs[seed]["attainment"] for seed in both))


def _gap_closed(ours: Seeds, best: Seeds, bound: Seeds) -> float | None:
    """None: there is no gap worth closing."""
    seeds = ours.keys() & best.keys() & bound.keys()
    if not seeds:
        return None
    own, other, most = (mean(side[seed]["attainment"] for seed in seeds) for side in (ours, best, bound))
    return (own - other) / (most - other) if most - other > POINT else None


def _by_load(cells: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
    """Means over workloads, of each policy on each shape."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for cell in cells:
        groups[cell["shape"], cell["k"], cell["load"]].append(cell)
    for (shape, k, load), those in sorted(groups.items()):
        policies = dict.fromkeys(policy for cell in those for policy in cell["policies"])
        bounds = [cell["bound"] for cell in those if cell["bound"] is not None]
        yield {
            "shape": shape, "k": k, "load": load, "bound": mean(bounds) if bounds else None,
            "policies": {
                policy: {
                    figure: mean(c["policies"][policy][figure] for c in those if policy in c["policies"])
                    for figure in ("attainment", "balanced")
                } | {"cells": sum(policy in c["policies"] for c in those)}
                for policy in policies
            },
        }  # fmt: skip


def _standing(cells: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """How OURS fares; None if it has not been run."""
    if not cells:
        return None
    compared = [cell for cell in cells if "best" in cell]
    closed = [cell["gap_closed"] for cell in compared if cell["gap_closed"] is not None]
    moderate = [cell for cell in cells if cell["load"] <= 0.9]
    ordered = [cell for cell in cells if cell["over"]]
    return {
        "cells": len(cells),
        "gap_closed": mean(closed) if closed else None,
        "below_best": [_named(cell) for cell in compared if cell["margin"] < -POINT],
        "at_least_orders": mean(min(cell["over"].values()) >= 0.0 for cell in ordered) if ordered else None,
        "tpot_p90_late": [_named(c) for c in moderate if (c["policies"][OURS]["tpot_p90_s"] or 0.0) > TPOT_S],
        "longs_later_than_medha": [_named(cell) for cell in moderate if _longs_are_later(cell["policies"])],
        "longs_refused": {
            str(load): mean(c["policies"][OURS]["classes"]["L"]["refused"] for c in those)
            for load in sorted({cell["load"] for cell in cells})
            if (those := [c for c in cells if c["load"] == load and "L" in c["policies"][OURS]["classes"]])
        },
    }


def _longs_are_later(policies: dict[str, Any]) -> bool:
    p99 = [policies.get(policy, {}).get("classes", {}).get("L", {}).get("ttft_p99_s") for policy in (OURS, "medha")]
    return None not in p99 and p99[0] > p99[1]


def _named(cell: dict[str, Any]) -> str:
    return f"{cell['workload']}/{cell['shape']}/k{cell['k']:g}/{cell['load']:g}"
