"""The simulator: beside the engine, and how fast it is."""

from __future__ import annotations

import statistics
from typing import Any

from matplotlib.axes import Axes

from rendering.plots import COLOURS, plot
from rendering.record import Record, ms, origin, percent, signed_percent, table

AIM = 0.10
_FIGURES = tuple((name, statistic) for name in ("ttft", "tpot") for statistic in ("mean", "p90"))


def simulator_against_engine(record: Record) -> str:
    return _against_engine(record, "## The simulator beside the engine\n")


def simulator_against_engine_longspan(record: Record) -> str:
    return _against_engine(record, "## The simulator beside the engine, with the default policy\n")


def _against_engine(record: Record, title: str) -> str:
    r = record["results"]
    parts = [
        title,
        origin(record, "Lengths are scaled down by one factor for each trace (or prompts only, where outputs would "
                       "shrink to nothing; these are cut off), arrivals are Poisson."),
        f"The same requests, policy and cost model; {r['model']} on {r['instances']} instances. "
        "The simulator has this machine as `longspan profile` measured it before and after each run, the mean of both. "
        f"Runs around which its speed changed by more than {r['most_drift']:.0%} count only where there is no other. "
        "Medians over the runs that count, in milliseconds: of the engine, of the simulator, and of how far the latter "
        f"is above, with the least and the most of it; the aim is {AIM:.0%}. Every event log was replayed in a fresh "
        "scheduler, to see whether it decides the same.\n",
        _closeness(r["policies"]),
    ]
    for trace, found in r["policies"].items():
        shape = r["workloads"][trace]
        parts += [
            f"{trace}: {shape['requests']} requests in {shape['seconds']:.0f} s, at {shape['rate']} a second, "
            f"{shape['prompt_tokens']} prompt and {shape['output_tokens']} output tokens.\n",
            table(
                ["policy", "load", "runs", *(f"{name.upper()} {part}" for name, part in _FIGURES), "events", "replay"],
                [[f"`{policy}`", f"{v['offered_load']:.2f}", f"{v['counting']} of {len(v['runs'])}",
                  *(_beside(v, name, part) for name, part in _FIGURES),
                  sum(run["replay"]["events"] for run in v["runs"]), _replayed(v["runs"])]
                 for policy, v in found.items()],
                text=1,
            ),
        ]  # fmt: skip

    def draw(axes: list[Axes]) -> None:
        for axis, (trace, found) in zip(axes, r["policies"].items(), strict=True):
            width = 0.8 / len(found)
            for place, (policy, v) in enumerate(found.items()):
                heights = [100 * v[name][statistic]["difference"] for name, statistic in _FIGURES]
                axis.bar([x + place * width for x in range(len(heights))], heights, width, label=policy,
                         color=COLOURS.get(policy))  # fmt: skip
            axis.axhspan(-100 * AIM, 100 * AIM, color="black", alpha=0.1)
            axis.set(title=trace, ylabel="simulator above engine, %")
            axis.set_xticks([x + 0.4 - width / 2 for x in range(len(_FIGURES))],
                            [f"{name.upper()} {statistic}" for name, statistic in _FIGURES])  # fmt: skip
        axes[0].legend()

    what = "How far the simulator's mean and p90 of TTFT and TPOT are from the engine's; the band is the aim"
    return "\n".join([*parts, plot(record["benchmark"], what, draw, columns=len(r["policies"]))])


def _closeness(policies: dict[str, Any]) -> str:
    """How many are within the aim; and how close the engine is to itself."""
    cells = [(v, name, part) for found in policies.values() for v in found.values() for name, part in _FIGURES]
    near = sum(abs(v[name][part]["difference"]) <= AIM for v, name, part in cells)
    apart = []
    for v, name, part in cells:
        seconds = [run[name][part]["engine_s"] for run in v["runs"]]
        if len(seconds) > 1:
            apart.append(max(seconds) / min(seconds) - 1.0)
    text = f"Of {len(cells)} figures {near} are within the aim."
    if apart:
        text += (
            f" Where there were several runs, the engine's own figures are {percent(statistics.median(apart))} apart, "
            f"the slowest over the fastest, in the median, and {percent(max(apart))} at most."
        )
    return text + "\n"


def _beside(found: dict[str, Any], name: str, statistic: str) -> str:
    figure = found[name][statistic]
    engine, simulator = (ms(figure[f"{side}_s"]) for side in ("engine", "simulator"))
    spread = ""
    if found["counting"] > 1:
        spread = f" ({signed_percent(figure['least'])} … {signed_percent(figure['most'])})"
    return f"{engine} / {simulator} / {signed_percent(figure['difference'])}{spread}"


def _replayed(runs: list[dict[str, Any]]) -> str:
    lines = [run["replay"]["first_difference_in_line"] for run in runs if not run["replay"]["identical"]]
    return f"otherwise, lines {lines}" if lines else "the same"


def simulator_speed(record: Record) -> str:
    return _speed(record, "## The simulator's speed\n", "One core; CPU time, the scheduler included.")


def simulator_speed_large(record: Record) -> str:
    return _speed(record, "### A thousand instances\n", "As before; a hundred thousand requests on 1,024 instances.")


def _speed(record: Record, title: str, text: str) -> str:
    return "\n".join([
        title,
        origin(record, text),
        table(
            ["policy", "requests", "load", "simulated, s", "CPU, s", "events/s", "output tokens/s", "peak memory, MiB"],
            [[f"`{policy}`", f"{v['requests']:,}", f"{v['offered_load']:.2f}", f"{v['simulated_s']:,.0f}",
              f"{v['cpu_s']:,.1f}", f"{v['events_per_s']:,.0f}", f"{v['output_tokens_per_s']:,.0f}",
              f"{v['peak_memory_mib']:,.0f}"] for policy, v in record["results"].items()],
            text=1,
        ),
    ])  # fmt: skip
