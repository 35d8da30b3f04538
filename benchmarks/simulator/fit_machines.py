"""Fits the simulator's A800 and A40 to published timings, and shows the error of each of them.

    python -m benchmarks.simulator.fit_machines

The figures of `longspan.simulator.hardware` are what this prints; --json saves them with all errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.common import arguments, save, say
from longspan.simulator.calibration import Figure, Timing, calibrate, mean_error
from longspan.simulator.hardware import A40, A800_80G, FIGURES
from longspan.simulator.machine import Machine
from longspan.simulator.published import a40_prefills, loongserve_figure_3, without_overlap

PREFILL_FIGURES = ("matmul", "attention", "memory", "link", "iteration_s", "instance_s", "allreduce_s")


def main() -> None:
    options = arguments("Fit machines to published timings.", [("json", "", "name of the result to save")])
    a40_figures = [figure for figure in FIGURES if figure.name in PREFILL_FIGURES]
    results = {
        "a800-80g": fit(without_overlap(A800_80G), FIGURES, loongserve_figure_3(A800_80G)),
        "a40": fit(without_overlap(A40), a40_figures, a40_prefills(A40)),
    }
    if options.json:
        save(options.json, results)


def fit(machine: Machine, figures: Sequence[Figure], timings: Sequence[Timing]) -> dict[str, Any]:
    fitted = calibrate(machine, figures, timings)
    say(f"\n{machine.name}: measured ms, fitted anew, error; error of the figures in use")
    for timing in timings:
        say(
            f"{timing.label:34s} {1e3 * timing.seconds:10.1f} {1e3 * timing.predict(fitted):10.1f} "
            f"{100 * timing.error(fitted):+7.1f} % {100 * timing.error(machine):+7.1f} %"
        )
    say(f"mean of the errors' sizes: {mean_error(fitted, timings):.1%}; in use {mean_error(machine, timings):.1%}")
    values = {figure.name: float(f"{getattr(getattr(fitted, figure.group), figure.name):.3g}") for figure in figures}
    say(f"{values}")
    return {
        "figures": values,
        "timings": [
            {"label": timing.label, "measured_s": timing.seconds, "relative_error": timing.error(fitted)}
            for timing in timings
        ],
        "mean_error": mean_error(fitted, timings),
    }


if __name__ == "__main__":
    main()
