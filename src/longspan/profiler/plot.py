"""A picture of a check: predicted over measured. Needs matplotlib, which Longspan otherwise does without."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from longspan.errors import ConfigError
from longspan.plot_axes import make_readable
from longspan.profiler.check import Check

_TOLERANCE = 0.1  # the shaded band


def require_matplotlib() -> None:
    """Raises ConfigError if it is not there."""
    if find_spec("matplotlib") is None:
        raise ConfigError("--plot needs matplotlib; install it with: pip install matplotlib")


def plot_check(result: Check, path: Path) -> None:
    """Plot with both axes logarithmic; right predictions lie on the diagonal. Raises ConfigError."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, s")
    everything = [seconds for c in result.comparisons for seconds in (c.measured, c.predicted)]
    ends = [0.8 * min(everything), 1.25 * max(everything)]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    below, above = ([(1 + sign * _TOLERANCE) * end for end in ends] for sign in (-1, 1))
    axes.fill_between(ends, below, above, color="black", alpha=0.1, linewidth=0, label=f"within {_TOLERANCE:.0%}")
    for kind in result.kinds():
        points = [c for c in result.comparisons if c.kind == kind]
        axes.scatter([c.measured for c in points], [c.predicted for c in points], s=16, label=kind)
    overall = result.summary()
    axes.set_title(f"relative error: mean {overall.mean:.1%}, largest {overall.largest:.1%}")
    axes.legend()
    make_readable(axes)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:  # no such folder; no such kind of picture
        raise ConfigError(f"{path} cannot be written: {error}") from error
