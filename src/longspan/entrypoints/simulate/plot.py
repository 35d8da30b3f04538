"""A simulation as pictures, in a folder: latencies, groups over time, KV over time."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from longspan.entrypoints.bench.plot import COLOURS, check_available
from longspan.entrypoints.simulate.report import SimulationReport
from longspan.errors import ConfigError
from longspan.plot_axes import count_whole, make_readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["check_available", "write"]

WORK_COLOURS = {"prefill": "tab:orange", "decode": "tab:green", "mixed": "tab:purple", "migration": "black"}
_LINEAR_UP_TO_S = 0.01  # times are logarithmic from here on; many requests do not queue at all
MOST_LINES = 12  # instances that have one each; more would neither be told apart nor fit the legend
MOST_BARS = 20_000  # of the earliest spans; more are neither seen nor drawn in reasonable time


def write(report: SimulationReport, folder: Path) -> None:
    """Write latencies.png, groups.png, kv.png. Raises ConfigError."""
    from matplotlib.figure import Figure

    try:
        folder.mkdir(exist_ok=True)
        for name, draw in (("latencies", _draw_latencies), ("groups", _draw_groups), ("kv", _draw_kv)):
            figure = Figure(figsize=(15, 4 if name == "latencies" else 6), layout="constrained")
            draw(figure, report)
            figure.savefig(folder / f"{name}.png", dpi=120)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from error


def _draw_latencies(figure: Figure, report: SimulationReport) -> None:
    finished = [request for request in report.simulation.requests if request.record.finished]
    axes = figure.subplots(1, 4)
    for name, colour in COLOURS.items():
        members = [r for r in finished if (r.record.num_prompt_tokens >= report.long_threshold) == (name == "long")]
        if not members:
            continue
        values: tuple[list[float | None], ...] = (
            [r.record.ttft_s for r in members],
            [r.record.tpot_s for r in members],
            [r.record.e2e_s for r in members],
            [(r.began_s or r.record.arrived_s) - r.record.arrived_s for r in members],
        )
        for axis, seconds in zip(axes, values, strict=True):
            _draw_cdf(axis, f"{name} ({len(members)})", colour, seconds)
    for axis, title in zip(axes, ("TTFT", "TPOT", "end to end", "queueing"), strict=True):
        axis.set(title=title, xlabel="s", ylabel="share of requests")
        axis.set_xscale("symlog", linthresh=_LINEAR_UP_TO_S)
        axis.grid(alpha=0.3)
        if axis.has_data():
            axis.legend()
        make_readable(axis)


def _draw_groups(figure: Figure, report: SimulationReport) -> None:
    """Above: what each instance works on; below: how many work together, weighed by time."""
    usage = report.simulation.usage
    instances, dop = figure.subplots(2, 1, sharex=True)
    spans = usage.spans[:MOST_BARS]
    for kind, colour in WORK_COLOURS.items():
        mine = [span for span in spans if span.kind == kind]
        for number in range(report.config.num_instances):
            bars = [(span.begin_s, span.end_s - span.begin_s) for span in mine if number in span.group]
            if bars:
                instances.broken_barh(bars, (number - 0.4, 0.8), color=colour, linewidth=0)
        if mine:
            dop.hlines([len(s.group) for s in mine], [s.begin_s for s in mine], [s.end_s for s in mine],
                       color=colour, label=kind, linewidth=3, alpha=0.7)  # fmt: skip
    more = f" (the first {MOST_BARS:,} spans)" if len(usage.spans) > MOST_BARS else ""
    instances.set(title=f"What instances work on{more}", ylabel="instance")
    count_whole(instances.yaxis, 0, report.config.num_instances - 1)  # those that never work, too
    dop.set(title="Degree of parallelism", xlabel="s", ylabel="instances of a group")
    count_whole(dop.yaxis, 1, report.config.num_instances)
    if dop.has_data():
        figure.legend(loc="outside lower center", ncols=4)


def _draw_kv(figure: Figure, report: SimulationReport) -> None:
    usage = report.simulation.usage
    axes = figure.subplots()
    times, each = usage.sample_times_s, 100 / report.config.kv_tokens
    if report.config.num_instances <= MOST_LINES:
        for number, used in enumerate(zip(*usage.samples, strict=True)):
            shares = [each * slots for slots in used]
            axes.step(times, shares, where="post", label=f"instance {number}", linewidth=0.8)
    elif usage.samples:
        least, most = ([each * of(sample) for sample in usage.samples] for of in (min, max))
        means = [each * sum(sample) / len(sample) for sample in usage.samples]
        axes.fill_between(times, least, most, step="post", alpha=0.3, linewidth=0, label="least and most of any")
        axes.step(times, means, where="post", label=f"mean of {report.config.num_instances} instances", linewidth=0.8)
    axes.set(title="KV slots taken", xlabel="s", ylabel="% of an instance's", ylim=(0, 105))
    axes.grid(alpha=0.3)
    if axes.has_data():
        figure.legend(loc="outside lower center", ncols=4)


def _draw_cdf(axes: Axes, label: str, colour: str, seconds: Iterable[float | None]) -> None:
    known = sorted(value for value in seconds if value is not None)
    if known:
        shares = [(number + 1) / len(known) for number in range(len(known))]
        axes.step(known, shares, where="post", label=label, color=colour)
