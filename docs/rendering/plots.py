"""Pictures for docs/results.md: small SVG files, the same for the same figures."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from longspan.plot_axes import make_readable
from rendering.record import DOCS

FOLDER = DOCS / "plots"
COLOURS = {
    "loongserve": "tab:red", "loongserve_never_splits": "tab:pink", "loongserve_no_scale_up": "tab:orange",
    "medha": "tab:blue", "static_sp": "tab:green", "static_tp": "tab:olive", "replicated": "tab:gray",
    "vllm": "tab:purple", "splitfuse": "tab:cyan", "distserve": "tab:brown", "fcfs": "tab:gray", "edf": "tab:green",
    "least_slack": "tab:olive", "sarathi 512": "tab:cyan", "sarathi 2048": "tab:purple",
}  # fmt: skip
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "longspan", "font.size": 8})


def plot(name: str, what: str, draw: Callable[[list[Axes]], None], columns: int = 1, rows: int = 1) -> str:
    """docs/plots/NAME.svg, and the Markdown that shows it. what: in words. draw: gets the axes, row by row."""
    figure = Figure(figsize=(3.2 * columns + 0.6, 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    drawn = [axis for row in axes for axis in row]
    draw(drawn)
    for axis in drawn:
        make_readable(axis)
    FOLDER.mkdir(exist_ok=True)
    figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None})
    return f"![{what}](plots/{name}.svg)\n"
