"""What a run of `longspan bench serve` showed: printed, and as JSON with every request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from longspan.entrypoints.bench.json_file import write_with_requests
from longspan.entrypoints.bench.open_loop import SentRequest
from longspan.entrypoints.bench.tables import console, distribution_table, origin
from longspan.metrics.request_metrics import SLO, Distribution, RequestMetrics, measure

LATE_S = 0.05  # a client later than this at its 99th percentile cannot be trusted


@dataclass(frozen=True, slots=True)
class Failures:
    """Requests that ended alike: refused with one status, or broken off."""

    kind: str
    count: int
    first_message: str


@dataclass(frozen=True)
class ServeReport:
    """The report of a run.

    num_planned: requests of the workload; `requests` are those that left.
    client_cpu_share: of one core, what this client took; its own lateness says whether that was too much.
    """

    url: str
    model: str
    settings: dict[str, Any]
    slo: SLO | None
    long_threshold: int
    num_planned: int
    interrupted: bool
    client_cpu_share: float
    requests: Sequence[SentRequest]

    @cached_property
    def from_schedule(self) -> RequestMetrics:
        """Latencies since each request should have left: what a user would have waited."""
        records = [sent.record() for sent in self.requests]
        return measure(records, slo=self.slo, long_threshold=self.long_threshold)

    @cached_property
    def from_send(self) -> RequestMetrics:
        """Latencies since each request was sent: the server's alone."""
        records = [sent.record(from_send=True) for sent in self.requests if sent.sent_s is not None]
        return measure(records, slo=self.slo, long_threshold=self.long_threshold)

    @property
    def lateness(self) -> Distribution | None:
        return Distribution.of(sent.departed_s - sent.scheduled_s for sent in self.requests)

    @property
    def num_finished(self) -> int:
        return self.from_schedule.classes["all"].num_finished

    @property
    def failures(self) -> list[Failures]:
        messages: dict[str, list[str]] = {}
        for sent in self.requests:
            if sent.outcome in ("refused", "failed"):
                kind = f"status {sent.status}" if sent.outcome == "refused" else "broken off"
                messages.setdefault(kind, []).append(sent.message or "")
        return [Failures(kind, len(each), each[0]) for kind, each in sorted(messages.items())]

    def print(self) -> None:
        out = console()
        metrics, everyone = self.from_schedule, self.from_schedule.classes["all"]
        stopped = f", stopped after {len(self.requests)} of {self.num_planned}" if self.interrupted else ""
        out.print(
            f"{self.model} at {self.url}: {everyone.num_finished} of {len(self.requests)} requests finished in "
            f"{metrics.span_s:.1f} s{stopped}",
            markup=False,
        )
        out.print(
            f"{metrics.requests_per_s:.2f} requests/s, {metrics.prompt_tokens_per_s:,.1f} prompt tokens/s, "
            f"{metrics.output_tokens_per_s:,.1f} output tokens/s"
        )
        for name, group in metrics.classes.items():
            if name == "all" and len(metrics.classes) == 2:
                continue  # one class only: it is the same
            out.print()
            if not group.num_finished:
                out.print(f"{name}: none of {group.num_requests} requests finished")
                continue
            out.print(
                distribution_table(
                    f"{name}: {group.num_requests} requests, ms",
                    [
                        ("TTFT", group.ttft_s),
                        ("TTFT since sent", self._ttft_from_send(name)),
                        ("TPOT", group.tpot_s),
                        ("ITL", group.itl_s),
                        ("e2e", group.e2e_s),
                    ],
                )
            )
            out.print(_normalised(group.per_token_s, group.input_s, group.output_s))
            if self.slo is not None and group.slo_attainment is not None:
                out.print(
                    f"within the SLO: {100 * group.slo_attainment:.1f} %, goodput {group.goodput:.3f} requests/s"
                )
        self._print_troubles()

    def write_json(self, path: Path) -> None:
        """Write JSON with a row for each request."""
        head = {
            "benchmark": "serve",
            **origin(),
            "url": self.url,
            "model": self.model,
            "settings": self.settings,
            "interrupted": self.interrupted,
            "num_planned": self.num_planned,
            "from_schedule": asdict(self.from_schedule),
            "from_send": asdict(self.from_send),
            "client": {"cpu_share": self.client_cpu_share, "lateness_s": self.lateness},
            "failures": self.failures,
        }
        write_with_requests(path, head, map(msgspec.to_builtins, self.requests))

    def _ttft_from_send(self, name: Any) -> Distribution | None:
        """Only where a limit of concurrency made requests wait in the client is it another one."""
        if not self.settings.get("max_concurrency"):
            return None
        group = self.from_send.classes.get(name)
        return group.ttft_s if group is not None else None

    def _print_troubles(self) -> None:
        out = console()
        for failure in self.failures:
            out.print(f"\n{failure.count} x {failure.kind}, first: {failure.first_message}", markup=False)
        late = self.lateness
        if late is not None:
            out.print(
                f"\nclient: {100 * self.client_cpu_share:.1f} % of a core, {1000 * late.p99:.1f} ms late at p99"
                + ("; too late: its machine is overloaded, do not trust these figures" if late.p99 > LATE_S else "")
            )


def _normalised(per_token_s: float | None, input_s: float | None, output_s: float | None) -> str:
    parts = (("per token", per_token_s), ("input", input_s), ("output", output_s))
    known = ", ".join(f"{name} {1000 * seconds:.2f}" for name, seconds in parts if seconds is not None)
    return f"normalised, ms/token: {known or 'none'}"
