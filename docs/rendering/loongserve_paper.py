"""LoongServe's figures 10 to 13, in simulation."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from rendering.differences import LOONGSERVE
from rendering.plots import COLOURS, plot
from rendering.record import Record, origin, ratio, table

FAR = 0.25
"""A ratio that is so far from the paper's gets a sentence."""
_TITLES = {
    10: "Figure 10: normalised latencies on 8 GPUs",
    11: "Figure 11: normalised latencies on 16 GPUs",
    12: "Figure 12: goodput on 8 GPUs, prompts of a Zipf distribution",
    13: "Figure 13: with and without scale-up",
}
_METRICS = {"per_token": "per token", "input": "input", "goodput": "goodput"}


def paper_loongserve(record: Record) -> str:
    r = record["results"]
    parts = [
        "## LoongServe's figures 10 to 13, in simulation\n",
        origin(record, f"{r['model']} on {r['hardware']}, seed {r['seed']}."),
        "Requests a second that a system bears, and LoongServe's over each. `loongserve_never_splits` stands for the "
        "released code, all of whose plans are one batch. The paper's vLLM 0.3.0 prefills whole prompts first, as "
        "`static_tp` does; `vllm` is vLLM as it is today, with chunked prefill. benchmarks/paper/loongserve.py says "
        "how a rate is found. The traces are not the authors'; where a ratio is more than 25 % from theirs, the last "
        "column says why.\n",
        _limits(r["cases"]),
    ]
    for figure, title in _TITLES.items():
        cases = {name: case for name, case in r["cases"].items() if case["figure"] == figure}
        if cases:
            parts += [f"### {title}\n", _cells(cases, r["cells"])]
        if figure == 10 and cases:
            parts.append(_curves(cases))
        if figure == 13 and "scale_ups_in_10_s" in r:
            counted = r["scale_ups_in_10_s"]
            parts.append(
                f"Scale-ups in 10 s, at 25 requests a second: {counted['ours']:.2f}; the paper's {counted['paper']}.\n"
            )
    return "\n".join(parts)


def _limits(cases: dict[str, Any]) -> str:
    """What a mean may be, milliseconds a token."""
    rows = []
    for name, case in cases.items():
        if case["limits"]:
            for metric in ("per_token", "input"):
                limits = [case["limits"][key][metric] for key in ("alone_s", "slo_s", "papers_slo_s")]
                rows.append([name, _METRICS[metric], *(f"{1000 * seconds:.2f}" for seconds in limits)])
    if not rows:
        return ""
    head = ["dataset", "metric", "without load, ms/token", "times 25: the limit", "the scripts' limit"]
    return table(head, rows, text=2)


def _cells(cases: dict[str, Any], cells: list[dict[str, Any]]) -> str:
    rows = []
    for cell in cells:
        if cell["case"] not in cases:
            continue
        systems = cases[cell["case"]]["systems"]
        name, metric = cell["over"], cell["metric"]
        rates = [_rate(systems[policy]["rates"]["slo"][metric]) for policy in ("loongserve", name)]
        there = [_rate(systems[policy]["rates"].get("papers_slo", {}).get(metric)) for policy in ("loongserve", name)]
        rows.append([
            cell["case"], f"`{name}`", _METRICS[metric], *rates, ratio(cell["ours"]), ratio(cell["paper"]),
            " / ".join(there) if there[0] != "-" else "-", _why(cell),
        ])  # fmt: skip
    head = ["dataset", "over", "metric", "`loongserve`, requests/s", "the other", "ratio", "the paper's",
            "rates at the scripts' limits", "why they differ"]  # fmt: skip
    return table(head, rows, text=3)


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _why(cell: dict[str, Any]) -> str:
    if cell["paper"] is None or cell["ours"] is None:
        return "" if cell["paper"] is None else "it bears nothing here"
    if abs(cell["ours"] / cell["paper"] - 1.0) <= FAR:
        return ""
    keys = ((cell["case"], cell["over"], cell["metric"]), (cell["case"], cell["over"]), (cell["over"],))
    return next((LOONGSERVE[key] for key in keys if key in LOONGSERVE), "**not explained yet**")


def _curves(cases: dict[str, Any]) -> str:
    """The paper's own picture: mean latency per token over the rate."""

    def draw(axes: list[Axes]) -> None:
        for axis, (name, case) in zip(axes, cases.items(), strict=True):
            for policy, system in case["systems"].items():
                points = system["points"]
                axis.plot([p["rate"] for p in points], [1000 * p["per_token_s"] for p in points], marker=".",
                          linewidth=1, label=policy, color=COLOURS.get(policy))  # fmt: skip
            axis.axhline(1000 * case["limits"]["slo_s"]["per_token"], color="black", linestyle=":", linewidth=0.8)
            axis.set(title=name, xlabel="requests/s", yscale="log", xscale="log")
        axes[0].set_ylabel("mean latency, ms/token")
        axes[-1].legend(fontsize=6)

    what = "Mean end-to-end latency per token over the rate, for each dataset and system; dotted: the limit"
    return plot("paper_loongserve", what, draw, columns=len(cases))
