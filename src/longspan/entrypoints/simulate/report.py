"""What a simulation showed: printed, and as JSON with every request.

Nothing of it depends on when or how fast it ran: the same arguments give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.table import Table

from longspan import __version__
from longspan.config import SchedulerConfig
from longspan.core.costs.cost_model import FittedCostModel
from longspan.entrypoints.bench.json_file import rounded, write_with_requests
from longspan.entrypoints.bench.tables import console, distribution_table
from longspan.metrics.request_metrics import SLO, ClassMetrics, Distribution, RequestMetrics, measure
from longspan.profiler.check import ErrorSummary
from longspan.simulator.fleet import Fleet
from longspan.simulator.pool_sizes import PoolSizes
from longspan.simulator.simulator import SimulatedRequest, Simulation
from longspan.workload.traces import BLOCK_TOKENS


@dataclass(frozen=True)
class SimulationReport:
    """The report of a simulation.

    prediction_error: of the policy's cost model, at the points that it was fitted to.
    offered_load: over capacity. pools: what pools of other sizes would find; None where nothing is to be found.
    """

    fleet: Fleet
    config: SchedulerConfig
    settings: dict[str, Any]
    cost_model: FittedCostModel
    prediction_error: ErrorSummary
    offered_load: float | None
    slo: SLO
    long_threshold: int
    simulation: Simulation
    pools: PoolSizes | None = None

    @cached_property
    def metrics(self) -> RequestMetrics:
        return measure(self.simulation.records(), slo=self.slo, long_threshold=self.long_threshold)

    def queueing(self, name: str) -> Distribution | None:
        """Return seconds from arrival to the first batch."""
        members = self._members(name)
        return Distribution.of(r.began_s - r.record.arrived_s for r in members if r.began_s is not None)

    def service(self, name: str) -> Distribution | None:
        """Return seconds from the first batch to the end; a preempted request's time in the queue included."""
        members = self._members(name)
        return Distribution.of(r.record.ended_s - r.began_s for r in members if r.began_s is not None)

    def busy_shares(self) -> list[float]:
        """Return the busy share of each instance's time, from the first event to the last."""
        return [seconds / (self.metrics.span_s or 1.0) for seconds in self.simulation.usage.busy_s]

    def kv_shares(self) -> list[tuple[float, float]]:
        """Return the shares of each instance's KV slots: taken on average, and at most, as the samples show."""
        usage = self.simulation.usage
        most = [max(used) for used in zip(*usage.samples, strict=True)] or [0] * self.config.num_instances
        slots = self.config.kv_tokens
        return [(mean / slots, peak / slots) for mean, peak in zip(usage.mean_kv(), most, strict=True)]

    def print(self) -> None:
        out = console()
        fleet, everyone = self.fleet, self.metrics.classes["all"]
        out.print(
            f"{fleet.model.name} on {fleet.instances} x {fleet.pp * fleet.tp} {fleet.machine.name}, "
            f"{self.config.kv_tokens:,} KV slots each; policy {self.config.policy}",
            markup=False,
        )
        late = sum(request.refusal == "late" for request in self.simulation.requests)
        refused = f", {everyone.num_refused} refused" if everyone.num_refused else ""
        refused += f", {late} of them since they would be late" if late else ""
        out.print(
            f"{everyone.num_finished} of {everyone.num_requests} requests finished in {self.metrics.span_s:,.1f} s"
            f"{refused}; {self.metrics.requests_per_s:.3f} requests/s, {self.metrics.prompt_tokens_per_s:,.0f} prompt "
            f"tokens/s, {self.metrics.output_tokens_per_s:,.1f} output tokens/s"
        )
        if self.offered_load is not None:
            out.print(f"offered load: {self.offered_load:.2f} of capacity")
        for name, group in self.metrics.classes.items():
            if name != "all" or len(self.metrics.classes) != 2:  # two: one class only, which is the same
                out.print()
                self._print_class(name, group)
        out.print()
        out.print(self._instance_table())
        out.print()
        out.print(self._work_table())
        if (prefixes := self.simulation.prefixes).num_arrived:
            out.print(
                f"\nprefixes: {prefixes.hit_rate:.1%} of the prompt tokens were found computed; "
                f"{prefixes.best_hit_rate:.1%} of them had come before{self._cut_short()}"
            )
            if self.pools is not None:
                out.print(self.pools.told(self.config.total_kv_tokens))
        if (losses := self.simulation.losses).num_lost:
            small = sum(request.refusal == "fleet_too_small" for request in self.simulation.requests)
            out.print(
                f"\ninstances: {losses.num_lost} times one was lost or left; {losses.num_void:,} iterations were void, "
                f"{losses.recomputed:,} tokens were computed again, {small} requests did not fit any more"
            )
        error = self.prediction_error
        out.print(f"\nthe policy's predictions: {error.mean:.1%} off on average, {error.largest:.1%} at most")
        for figures, origin in fleet.machine.origins().items():
            out.print(f"{figures}: {origin}", markup=False)

    def write_json(self, path: Path) -> None:
        """Write JSON with a row for each request."""
        head = {
            "simulation": {"longspan": __version__, **self.settings},
            "fleet": {
                "machine": asdict(self.fleet.machine),
                "model": asdict(self.fleet.model),
                "instances": self.fleet.instances,
                "tp": self.fleet.tp,
                "pp": self.fleet.pp,
            },
            "scheduler": self.config,
            "cost_model": self.cost_model,
            "prediction_error": asdict(self.prediction_error),
            "offered_load": self.offered_load,
            "num_events": self.simulation.num_events,
            "num_batches": self.simulation.num_batches,
            "metrics": rounded(asdict(self.metrics)),
            "queueing_s": {name: self.queueing(name) for name in self.metrics.classes},
            "service_s": {name: self.service(name) for name in self.metrics.classes},
            "instances": [
                {"busy_share": busy, "kv_mean_share": mean, "kv_peak_share": peak}
                for busy, (mean, peak) in zip(self.busy_shares(), self.kv_shares(), strict=True)
            ],
            "work": [
                {"kind": kind, "dop": dop, "seconds": seconds}
                for (kind, dop), seconds in sorted(self.simulation.usage.group_s.items())
            ],
        }
        if (losses := self.simulation.losses).num_lost:
            head["losses"] = {
                "lost": losses.num_lost, "void_batches": losses.num_void, "recomputed_tokens": losses.recomputed,
            }  # fmt: skip
        if (prefixes := self.simulation.prefixes).num_arrived:
            head["prefixes"] = {"hit_rate": prefixes.hit_rate, "best_hit_rate": prefixes.best_hit_rate}
            if self.pools is not None:
                table = self.pools.table(self.config.total_kv_tokens)
                head["prefixes"]["pools"] = [{"times": times, "hit_rate": rate} for times, rate in table.items()]
        write_with_requests(path, head, map(_row, self.simulation.requests))

    def _members(self, name: str) -> Iterable[SimulatedRequest]:
        for request in self.simulation.requests:
            is_long = request.record.num_prompt_tokens >= self.long_threshold
            if name in ("all", "long" if is_long else "short"):
                yield request

    def _cut_short(self) -> str:
        """Say where prefixes end before what the trace says is the same does."""
        block = self.config.prefix_block
        if BLOCK_TOKENS % block == 0:
            return ""
        return (
            f", in whole blocks of {block} (the trace tells {BLOCK_TOKENS} at a time: where prompts part up to "
            f"{block - 1} of the tokens that they have in common are computed again)"
        )

    def _print_class(self, name: str, group: ClassMetrics) -> None:
        out = console()
        if not group.num_finished:
            out.print(f"{name}: none of {group.num_requests} requests finished")
            return
        rows = [
            ("TTFT", group.ttft_s), ("TPOT", group.tpot_s), ("ITL", group.itl_s), ("e2e", group.e2e_s),
            ("queueing", self.queueing(name)), ("service", self.service(name)),
        ]  # fmt: skip
        out.print(distribution_table(f"{name}: {group.num_requests} requests, ms", rows))
        normalised = (("per token", group.per_token_s), ("input", group.input_s), ("output", group.output_s))
        known = ", ".join(f"{label} {1000 * seconds:.2f}" for label, seconds in normalised if seconds is not None)
        out.print(f"normalised, ms/token: {known}")
        if group.slo_attainment is not None:
            out.print(f"within the SLO: {group.slo_attainment:.1%}, goodput {group.goodput:.3f} requests/s")

    def _instance_table(self) -> Table:
        table = Table("instance", "busy", "KV slots taken, mean", "at most", box=None, pad_edge=False)
        for number, (busy, (mean, peak)) in enumerate(zip(self.busy_shares(), self.kv_shares(), strict=True)):
            table.add_row(str(number), f"{busy:.1%}", f"{mean:.1%}", f"{peak:.1%}")
        return table

    def _work_table(self) -> Table:
        """Instance-seconds, so that the column adds up to the busy time of all."""
        work = {key: key[1] * seconds for key, seconds in self.simulation.usage.group_s.items()}
        total = sum(work.values()) or 1.0
        table = Table("work", "DoP", "share of busy time", box=None, pad_edge=False)
        for (kind, dop), seconds in sorted(work.items()):
            table.add_row(kind, str(dop), f"{seconds / total:.1%}")
        return table


def _row(request: SimulatedRequest) -> dict[str, Any]:
    record = request.record
    return {
        "arrived_s": record.arrived_s,
        "began_s": request.began_s,
        "ended_s": record.ended_s,
        "num_prompt_tokens": record.num_prompt_tokens,
        "num_output_tokens": record.num_output_tokens,
        "ttft_s": record.ttft_s,
        "tpot_s": record.tpot_s,
        "num_preemptions": request.num_preemptions,
        "outcome": record.outcome,
        "refusal": request.refusal,
    }
