"""What to evict: hit rate and time to first token over the size of the pool, with three orders of eviction.

    python -m benchmarks.policy.eviction --traces DIR
    python -m benchmarks.policy.eviction --traces DIR --workloads leval --pools 0.25,0.5 --name tried

In simulation: eight instances of two A100 (Llama-3-8B), the default policy, whole traces at their own rates; L-Eval,
which has no arrivals, shuffled and Poisson. The pool of all instances together is a part of what the different blocks
of the trace take, but holds one and a half of the longest requests. Orders of eviction:

    own          the server's (core/prefixes/eviction.py)
    lru          least recently used first
    clairvoyant  first who is asked for again last, as the trace tells (Belady)

All of them evict residences from their ends, children before parents. TTFT counts all requests.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.common import arguments, save, say
from benchmarks.paper.simulated import Deployed, System, in_parallel
from longspan.core.actions import RunBatch
from longspan.core.prefixes.eviction import EvictionOrder
from longspan.core.prefixes.node import Node
from longspan.core.scheduler import Scheduler
from longspan.prefix_keys import KEY_BYTES
from longspan.simulator.cost import Seconds
from longspan.simulator.driver import Work
from longspan.simulator.prefixes import Prefixes
from longspan.simulator.simulator import Simulator
from longspan.workload.arrivals import poisson
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest, read_trace
from longspan.workload.transforms import with_arrivals

ORDERS = ("own", "lru", "clairvoyant")
INSTANCES, TP = 8, 2
HARDWARE, MODEL = "a100-80g", "llama-3-8b"
JITTER_S = 3.0  # Mooncake's times are those of batches of 3 s
_REFRESHED = 64  # evictions
_NEVER = 1 << 40
_LEAST_GAP = 0.002


class LeastRecent(EvictionOrder):
    """A node's priority is when it was used last, in uses."""

    _uses = 0.0

    def touch(self, node: Node) -> None:
        self._uses += 1.0
        for above in node.path():
            above.uses = above.priority = self._uses

    def recall(self, node: Node) -> None:
        """Know nothing of what is gone."""

    def _own(self, node: Node) -> float:
        return node.uses


class Clairvoyant(EvictionOrder):
    """A node's priority is the higher, the sooner a request comes that has its last block.

    uses: by key, the numbers of the requests that have it, in order of arrival. begun: requests that have run.
    """

    def __init__(self, nodes: Mapping[int, Node], uses: Mapping[bytes, list[int]], begun: set[int]) -> None:
        super().__init__(nodes, lambda position: 0.0)
        self._known, self._uses, self._begun = nodes, uses, begun
        self._count = 0

    def touch(self, node: Node) -> None:
        for above in node.path():
            self._look(above)

    def first(self, instance: int) -> Node | None:
        self._count += 1
        if self._count % _REFRESHED == 0:  # who took something over from elsewhere has used these, too
            for node in self._known.values():
                self._look(node)
        return super().first(instance)

    def _look(self, node: Node) -> None:
        before, node.priority = node.priority, self._own(node)
        if node.priority < before:
            self.enlist(node)

    def _own(self, node: Node) -> float:
        uses = self._uses.get(node.keys[-1], ())
        return float(_NEVER - next((number for number in uses if number not in self._begun), _NEVER))


class Watched(Simulator):
    """A simulation with an order of eviction of its own. begun: numbers of the requests that have run."""

    def evict_by(self, order: str, requests: Sequence[TraceRequest]) -> None:
        assert isinstance(self.scheduler, Scheduler)
        self.begun: set[int] = set()
        prefixes = self.scheduler._ledger.prefixes
        if order == "lru":
            prefixes.order = LeastRecent(prefixes.nodes, lambda position: 0.0)
        elif order == "clairvoyant":
            prefixes.order = Clairvoyant(prefixes.nodes, _uses(requests, self.config.prefix_block), self.begun)

    def _submitted(self, work: Work, begin_s: float, end_s: float, seconds: Seconds) -> None:
        super()._submitted(work, begin_s, end_s, seconds)
        if isinstance(work, RunBatch):
            self.begun.update([int(segment.request_id[1:]) for segment in work.segments])


def _uses(requests: Sequence[TraceRequest], block: int) -> dict[bytes, list[int]]:
    prefixes, uses = Prefixes(block), dict[bytes, list[int]]()
    for number, request in enumerate(requests):
        keys = prefixes.keys(request)
        for place in range(0, len(keys), KEY_BYTES):
            uses.setdefault(keys[place : place + KEY_BYTES], []).append(number)
    return uses


@dataclass(frozen=True, slots=True)
class Cell:
    """pool: part of what the trace's different blocks take. requests: the first so many; 0: all. kept: the folder that
    keeps what is found; empty: none does."""

    workload: str
    pool: float
    order: str
    traces: str
    requests: int
    block: int
    rate: float
    seed: int
    kept: str = ""

    def __str__(self) -> str:
        return f"{self.workload}, pool {self.pool:g}, {self.order}"


def workload(cell: Cell) -> list[TraceRequest]:
    draw = random.Random(cell.seed)
    rows = read_trace(Path(cell.traces) / f"{cell.workload}.csv.gz")
    if rows[0].arrived_at_s is None:
        rows = list(with_arrivals(draw.sample(rows, len(rows)), poisson(cell.rate, cell.seed)))
    elif cell.workload.startswith("mooncake"):
        moved = [replace(row, arrived_at_s=(row.arrived_at_s or 0.0) + draw.uniform(0.0, JITTER_S)) for row in rows]
        rows = sorted(moved, key=lambda row: row.arrived_at_s or 0.0)
    return list(islice(rows, cell.requests or None))


def simulate(cell: Cell) -> dict[str, Any]:
    requests = workload(cell)
    different = BLOCK_TOKENS * len({block for request in requests for block in request.prefix_block_ids})
    pool = max(cell.pool * different, 1.5 * max(request.num_tokens for request in requests))
    settings = {"prefix_cache": True, "prefix_block": cell.block, "overload": "off"}
    system = System(
        policy="longspan", instances=INSTANCES, tp=TP, kv_tokens=round(pool / INSTANCES), settings=settings
    )
    there = Deployed(system, HARDWARE, MODEL)
    simulator = Watched(
        there.config, there.cost, cost_model=there.cost_model, max_model_len=there.cost.fleet.model.max_model_len
    )
    simulator.evict_by(cell.order, requests)
    simulation = simulator.run(requests)
    ttft_s = [record.ttft_s for record in simulation.records() if record.ttft_s is not None]
    prefixes = simulation.prefixes
    return {
        "requests": len(requests), "finished": len(ttft_s), "pool_tokens": there.config.total_kv_tokens,
        "different_tokens": different, "hit_rate": prefixes.hit_rate, "best_hit_rate": prefixes.best_hit_rate,
        "ttft_s": {"mean": mean(ttft_s)} | {f"p{part}": float(np.percentile(ttft_s, part)) for part in (50, 90, 99)},
    }  # fmt: skip


def simulated(cell: Cell) -> dict[str, Any]:
    """Return what `simulate` finds of the cell, or has found before."""
    path = Path(cell.kept, f"{cell.workload}-{cell.pool:g}-{cell.order}.json")
    if cell.kept and path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    found = simulate(cell)
    if cell.kept:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found))
    return found


def compared(cells: dict[str, dict[str, Any]]) -> dict[str, float]:
    """One workload and pool. gap: between clairvoyant and LRU, of the hit rate. closed: the part of it that is closed;
    left out where there is hardly any. over_lru: of the hit rates."""
    rates = {order: found["hit_rate"] for order, found in cells.items()}
    gap = rates["clairvoyant"] - rates["lru"]
    told = {"gap": gap, "over_lru": rates["own"] / max(rates["lru"], 1e-9),
            "ttft_mean_over_lru": cells["own"]["ttft_s"]["mean"] / cells["lru"]["ttft_s"]["mean"]}  # fmt: skip
    return told | ({"closed": (rates["own"] - rates["lru"]) / gap} if gap > _LEAST_GAP else {})


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("traces", "", "folder of traces"), ("workloads", "mooncake_conversation,leval,agent_miniswe", "with commas"),
         ("pools", "0.0625,0.125,0.25,0.5,1", "parts of what the different blocks take, with commas"),
         ("orders", ",".join(ORDERS), "with commas"), ("requests", 0, "the first so many of each; 0: all"),
         ("block", BLOCK_TOKENS, "prefix_block"), ("rate", 2.0, "requests a second, where the trace has no arrivals"),
         ("seed", 0, "of all that is drawn"), ("jobs", 0, "at a time; 0: one for each core"),
         ("name", "eviction", "of the result; empty: none"),
         ("kept", "", "folder of what was simulated before, with the same options; empty: none")],
    )  # fmt: skip
    orders = options.orders.split(",")
    tasks = [
        Cell(
            name, float(pool), order, options.traces, options.requests, options.block, options.rate, options.seed,
            options.kept,
        )
        for name in options.workloads.split(",")
        for pool in options.pools.split(",")
        for order in orders
    ]
    found: dict[tuple[str, float], dict[str, dict[str, Any]]] = {}
    for cell, figures in zip(tasks, in_parallel(simulated, tasks, options.jobs), strict=True):
        found.setdefault((cell.workload, cell.pool), {})[cell.order] = figures
    results: dict[str, Any] = {}
    for (name, pool), cells in found.items():
        results[f"{name}, pool {pool:g}"] = each = {"orders": cells}
        if set(cells) >= set(ORDERS):
            each["compared"] = compared(cells)
        tokens, best = next((c["pool_tokens"], c["best_hit_rate"]) for c in cells.values())
        told = "; ".join(
            f"{order} {c['hit_rate']:.4f}, TTFT {c['ttft_s']['p50']:.3f} s, mean {c['ttft_s']['mean']:.3f} s"
            for order, c in cells.items()
        )
        say(f"{name}, {tokens:,} slots: {told}; at best {best:.4f}")
    both = [each["compared"] for each in results.values() if "compared" in each]
    summary = {}
    if both:
        closed = [each["closed"] for each in both if "closed" in each]
        summary = {"closed_on_average": mean(closed) if closed else None,
                   "worst_over_lru": min([each["over_lru"] for each in both])}  # fmt: skip
        say(f"of the gap between LRU and clairvoyant {summary['closed_on_average']} is closed on average; the worst "
            f"cell has {summary['worst_over_lru']:.4f} times LRU's hit rate")  # fmt: skip
    if options.name:
        save(options.name, {"cells": results, "summary": summary})


if __name__ == "__main__":
    main()
