"""A run as a picture: TTFT and TPOT by class, and TTFT over time."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from longspan.errors import ConfigError
from longspan.metrics.request_metrics import RequestRecord
from longspan.plot_axes import make_readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from longspan.entrypoints.bench.serve_report import ServeReport

COLOURS = {"short": "tab:blue", "long": "tab:red"}


def check_available() -> None:
    """Raises ConfigError."""
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it with: pip install matplotlib")


def write(report: ServeReport, path: Path) -> None:
    from matplotlib.figure import Figure

    finished = [record for sent in report.requests if (record := sent.record()).finished]
    classes = {
        "short": [record for record in finished if record.num_prompt_tokens < report.long_threshold],
        "long": [record for record in finished if record.num_prompt_tokens >= report.long_threshold],
    }
    figure = Figure(figsize=(15, 4), layout="constrained")
    figure.suptitle(f"{report.model}: {len(finished)} of {len(report.requests)} requests finished")
    ttft, tpot, timeline = figure.subplots(1, 3)
    for name, records in classes.items():
        if records:
            _draw_cdf(ttft, f"{name} ({len(records)})", COLOURS[name], [record.ttft_s for record in records])
            _draw_cdf(tpot, f"{name} ({len(records)})", COLOURS[name], [record.tpot_s for record in records])
            _draw_timeline(timeline, name, records)
    for axes, title, x, y in (
        (ttft, "Time to first token", "TTFT, s", "share of requests"),
        (tpot, "Time per output token", "TPOT, s", "share of requests"),
        (timeline, "Time to first token, over the run", "arrival, s", "TTFT, s"),
    ):
        axes.set(title=title, xlabel=x, ylabel=y)
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
        make_readable(axes)
    figure.savefig(path, dpi=120)


def _draw_cdf(axes: Axes, label: str, colour: str, seconds: Sequence[float | None]) -> None:
    known = sorted(value for value in seconds if value is not None)
    if known:
        shares = [(number + 1) / len(known) for number in range(len(known))]
        axes.step(known, shares, where="post", label=label, color=colour)


def _draw_timeline(axes: Axes, name: str, records: Sequence[RequestRecord]) -> None:
    axes.scatter(
        [record.arrived_s for record in records], [record.ttft_s or 0.0 for record in records],
        s=14, label=name, color=COLOURS[name], alpha=0.7,
    )  # fmt: skip
    axes.set_yscale("log")
