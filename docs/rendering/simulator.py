"""The simulator: beside the engine, and how fast it is."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from rendering.plots import COLOURS, plot
from rendering.record import Record, ms, origin, signed_percent, table

AIM = 0.10
_FIGURES = tuple((name, statistic) for name in ("ttft", "tpot") for statistic in ("mean", "p90"))


def simulator_against_engine(record: Record) -> str:
    r = record["results"]
    parts = [
        "## The simulator beside the engine\n",
        origin(record, "Lengths are scaled down by one factor for each trace (or prompts only, where outputs would "
                       "shrink to nothing; these are cut off), arrivals are Poisson."),
        f"The same requests, policy and cost model; {r['model']} on {r['instances']} instances. "
        "The simulator has this machine as `longspan profile` measured it before and after each run, the mean "
        "of both; *drift* is how much longer iterations took afterwards, in the median (of repeated runs the one with "
        "the least drift counts, whatever came out of it; the others' stand behind). Milliseconds of the engine, of "
        f"the simulator, and how far the latter is above; the aim is {AIM:.0%}. Every event log was replayed in a "
        "fresh scheduler, to see whether it decides the same.\n",
    ]
    for trace, found in r["policies"].items():
        shape = r["workloads"][trace]
        parts += [
            f"{trace}: {shape['requests']} requests in {shape['seconds']:.0f} s, at {shape['rate']} a second, "
            f"{shape['prompt_tokens']} prompt and {shape['output_tokens']} output tokens.\n",
            table(
                ["policy", "load", "drift", *(f"{name.upper()} {part}" for name, part in _FIGURES), "events", "replay"],
                [[f"`{policy}`", f"{v['offered_load']:.2f}", _drift(v),
                  *(_beside(v[name][part]) for name, part in _FIGURES),
                  v["replay"]["events"], _replayed(v["replay"])] for policy, v in found.items()],
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
    return "\n".join([*parts, plot("simulator_against_engine", what, draw, columns=len(r["policies"]))])


def _drift(found: dict[str, Any]) -> str:
    others = [signed_percent(drift) for drift in found["drifts"] if drift != found["drift"]]
    return signed_percent(found["drift"]) + (f" ({', '.join(others)})" if others else "")


def _beside(figure: dict[str, float]) -> str:
    engine, simulator = (ms(figure[f"{side}_s"]) for side in ("engine", "simulator"))
    return f"{engine} / {simulator} / {signed_percent(figure['difference'])}"


def _replayed(found: dict[str, Any]) -> str:
    return "the same" if found["identical"] else f"otherwise, line {found['first_difference_in_line']}"


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
