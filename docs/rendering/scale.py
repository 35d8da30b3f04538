"""Large fleets: what deciding costs, and what nodes cost."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, origin, table

_SHARE, _P99_MS = 0.5, 10.0  # aims


def scale(record: Record) -> str:
    r = record["results"]
    parts = [
        "## Large fleets\n",
        origin(record, "CPU time of one thread, in simulation at the grid's load of .8; policy `longspan`."),
        f"*Share* is the time of one core that deciding takes: events a second of a loaded fleet, times the mean of "
        f"`Scheduler.handle`. The aims are {_SHARE} of a core and {_P99_MS:.0f} ms for 99 of 100 calls.\n",
    ]
    if "flat" in r:
        parts += ["One scheduler for all instances:\n", table(
            ["", "events/s", "mean, ms", "p99, ms", "share"],
            [[key, *_cost(found["deciding"])] for key, found in r["flat"].items()], text=1,
        )]  # fmt: skip
    for key, found in r.get("waiting", {}).items():
        parts.append(
            f"With 1,000 requests waiting all the time ({key}; prompts log-uniform from 100 to 100,000 tokens): mean "
            f"{found['mean_ms']:.2f} ms, p99 {found['p99_ms']:.2f} ms, {found['events']:,} events.\n"
        )
    if "nodes" in r:
        parts += ["A scheduler for each node, and the router that divides arrivals, which sees every event:\n", table(
            ["", "", "events/s", "mean, ms", "p99, ms", "share"],
            [row for key, found in r["nodes"].items() for row in _nodes(key, found)], text=2,
        )]  # fmt: skip
    return "\n".join(parts)


def scale_attained(record: Record) -> str:
    r = record["results"]
    parts = ["### What nodes cost, and how long queues get\n", origin(record, "In simulation.")]
    if "attainment" in r:
        parts += ["At the grid's load of .8, the same requests on 64 instances, as one node and as several. Attained, "
                  "of all and as the mean over classes of length:\n", table(
            ["", "attained", "balanced", "short", "medium", "long"],
            [_attained(key, found) for key, found in r["attainment"].items()], text=1,
        )]  # fmt: skip
    if "queue" in r:
        parts += ["How many wait under `loongserve`, on LoongServe's mix at the simulator's offered load of .8, at "
                  "twelve moments while requests arrive:\n", table(
            ["", "waiting", "seconds"],
            [[key, ", ".join(map(str, found["waiting"])), f"{found['span_s']:.0f}"]
             for key, found in r["queue"].items()], text=2,
        )]  # fmt: skip
    return "\n".join(parts)


def _cost(found: dict[str, float]) -> list[str]:
    mean, p99 = f"{found['mean_ms']:.3f}", f"{found['p99_ms']:.2f}"
    return [f"{found['events_per_s']:,.0f}", mean, p99, f"{found['share']:.2f}"]


def _nodes(key: str, found: dict[str, Any]) -> list[list[str]]:
    router = found["router"]
    return [
        [key, "busiest node", *_cost(found["busiest_node"])],
        ["", "router", f"{router['events_per_s']:,.0f}", f"{router['mean_ms']:.3f}", "-", f"{router['share']:.2f}"],
    ]


def _attained(key: str, found: dict[str, Any]) -> list[str]:
    classes = [f"{found['by_class'][name]:.3f}" if name in found["by_class"] else "-" for name in "SML"]
    return [key, f"{found['attainment']:.3f}", f"{found['balanced']:.3f}", *classes]
