"""The default policy under examination: its quotes, faults, and itself without its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

from rendering.record import Record, origin, percent, signed_percent, table

CLASSES = {"all": "all", "S": "short", "M": "medium", "L": "long"}
_SIZES = "Short are prompts of up to 8,192 tokens, long of more than 65,536."


def calibration(record: Record) -> str:
    r = record["results"]
    within, aims = r["kept_within"], r["aims"]
    return "\n".join([
        "## The default policy: estimates beside what came\n",
        origin(record, ""),
        f"What `{r['policy']}` tells at an arrival of the first token's time (the *quote*: 95 of 100 alike have theirs "
        f"by then), over the time that it then took; 5th, 50th and 95th percentile of those that were served. Kept is "
        f"a quote if the token came within {within['factor']:g} times the quote, or {within['more_s']:g} s after it; "
        f"the aims are {percent(aims['all'])} over all, {percent(aims['L'])} of the long. {_SIZES} k = {r['k']:g}, "
        f"{r['requests']} requests a run. By load, all workloads and shapes together:\n",
        table(
            ["load", "prompts", "requests", "quote over truth: 5 %", "50 %", "95 %", "median over truth: 50 %",
             "quotes kept", "later than promised", "refused"],
            [row for load, classes in r["loads"].items() for row in _estimates(load, classes)]
            + list(_estimates("together", r["together"])),
            text=2,
        ),
        "By workload, shape and load:\n",
        table(
            ["", "load", "quotes kept", "of the long", "quote over truth: 50 %", "later than promised", "refused"],
            [_cell(cell, classes) for cell, classes in r["cells"].items()], text=1,
        ),
    ])  # fmt: skip


def _estimates(load: str, classes: dict[str, Any]) -> Iterable[list[str]]:
    for name, v in classes.items():
        row = [load, CLASSES[name], f"{v['requests']:,}"]
        if "kept" in v:
            row += [f"{v['quote_over_truth'][which]:.2f}" for which in ("p5", "p50", "p95")]
            row += [f"{v['median_over_truth']['p50']:.2f}", percent(v["kept"]), percent(v["later_than_promised"])]
        else:
            row += 6 * ["-"]
        yield [*row, percent(v["refused"] / v["requests"])]


def _cell(cell: str, classes: dict[str, Any]) -> list[str]:
    workload, shape, load = cell.split("/")
    every, longs = classes["all"], classes.get("L", {})
    return [
        f"{workload}, {shape}", load, percent(every["kept"]), percent(longs["kept"]) if "kept" in longs else "-",
        f"{every['quote_over_truth']['p50']:.2f}", percent(every["later_than_promised"]),
        percent(every["refused"] / every["requests"]),
    ]  # fmt: skip


def robustness(record: Record) -> str:
    r = record["results"]
    runs, flood = r["runs"], r["tenants"]
    cells = dict.fromkeys((run["workload"], run["shape"], run["load"]) for run in runs)
    parts = [
        "## The default policy: where the world is not as it thinks\n",
        origin(record, "benchmarks/policy/robustness.py says what the faults are."),
        f"Shares in time as in the grid, k = {r['k']:g}, {r['requests']} requests, in brackets what the fault costs, "
        f"the same of short, medium and long prompts, per cent; and the share that kept its TPOT. {_SIZES}\n",
    ]
    for cell in cells:
        here = [run for run in runs if (run["workload"], run["shape"], run["load"]) == cell]
        policies = list(dict.fromkeys(run["policy"] for run in here))
        faults = list(dict.fromkeys(run["fault"] for run in here))
        parts += [
            f"{cell[0]}, {cell[1]}, load {cell[2]:g}:\n",
            table(
                ["", *(f"`{policy}`" for policy in policies), *(f"S, M, L of `{policy}`" for policy in policies),
                 *(f"TPOT met, `{policy}`" for policy in policies)],
                [
                    [fault, *(_attained(here, policy, fault) for policy in policies),
                     *(_classes(_of(here, policy, fault)) for policy in policies),
                     *(_mean(_of(here, policy, fault), "tpot_met") for policy in policies)]
                    for fault in faults
                ],
                text=1,
            ),
        ]  # fmt: skip
    bursts = [run for run in runs if "burst" in run]
    parts += [
        f"The {r['burst']} long prompts of the burst themselves, in time: " + "; ".join(
            f"{run['workload']}, {run['shape']}, `{run['policy']}`: {percent(run['burst']['attainment'])}"
            for run in bursts if run["seed"] == 0
        ) + ".\n",
        f"Five tenants may use {flood['workload']} ({flood['shape']}) alike. Four send a load of {flood['load']:g} "
        f"together, the fifth {flood['times']:g} times what one of them sends; the share in time of the four "
        "(benchmarks/policy/tenants.py):\n",
        table(
            ["", "without the fifth", "with him", "of the four refused", "of the fifth in time"],
            [_flood(flood["runs"], policy) for policy in dict.fromkeys(run["policy"] for run in flood["runs"])],
            text=1,
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def _of(runs: Sequence[dict[str, Any]], policy: str, fault: str) -> list[dict[str, Any]]:
    return [run for run in runs if run["policy"] == policy and run["fault"] == fault and "skipped" not in run]


def _attained(runs: Sequence[dict[str, Any]], policy: str, fault: str) -> str:
    some, others = _of(runs, policy, fault), _of(runs, policy, "none")
    if not some:
        return "-"
    share = mean(run["attainment"] for run in some)
    if fault == "none":
        return percent(share)
    return f"{percent(share)} ({signed_percent(share - mean(run['attainment'] for run in others))})"


def _classes(runs: Sequence[dict[str, Any]]) -> str:
    found = ([run["by_class"][name] for run in runs if name in run["by_class"]] for name in "SML")
    return ", ".join(f"{100 * mean(those):.0f}" if those else "-" for those in found)


def _mean(runs: Sequence[dict[str, Any]], name: str) -> str:
    return percent(mean(run[name] for run in runs)) if runs else "-"


def _flood(runs: Sequence[dict[str, Any]], policy: str) -> list[str]:
    without, there = [run for run in runs if run["policy"] == policy]
    shares = without["attainment"], there["attainment"], there["refused"], there["fifth"]["attainment"]
    return [f"`{policy}`", *map(percent, shares)]


def ablation(record: Record) -> str:
    return "\n".join([
        "## The default policy without its parts\n",
        origin(record, "The shares in time are in [policy.md](policy.md#what-each-part-is-worth)."),
        "Means over classes of length of the shares in time, and behind them the share of requests whose TPOT was "
        "met; per cent:\n",
        _ablated(record["results"], lambda runs: f"{_points(runs, 'balanced')}, {_points(runs, 'tpot_met')}"),
    ])  # fmt: skip


def parts_worth(record: Record) -> str:
    """Return what docs/policy.md tells of it, between the lines that mark it."""
    r = record["results"]
    return "\n".join([
        f"Per cent of the requests in time, in simulation ({r['requests']} requests, k = {r['k']:g}); "
        f"`{record['command']}`, {record['date']}. A difference below a point or two is chance.\n",
        _ablated(r, lambda runs: _points(runs, "attainment")),
    ])


def _ablated(r: dict[str, Any], shown: Callable[[Sequence[dict[str, Any]]], str]) -> str:
    cells = {run["cell"]: f"{run['workload']}, {run['shape']}, {run['load']:g}" for run in r["runs"]}

    def row(variant: str, told: str) -> list[str]:
        mine = [run for run in r["runs"] if run["variant"] == variant]
        name = f"{variant} (`{told}`)" if told else variant
        return [name, *(shown([run for run in mine if run["cell"] == cell]) for cell in cells)]

    return table(["", *cells.values()], [row(*variant) for variant in r["variants"].items()], text=1)


def _points(runs: Sequence[dict[str, Any]], name: str) -> str:
    return f"{100 * mean(run[name] for run in runs):.1f}"
