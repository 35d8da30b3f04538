"""Medha's evaluation, in simulation."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from rendering.differences import MEDHA
from rendering.plots import COLOURS, plot
from rendering.record import Record, ms, origin, percent, ratio, table

FAR = 0.25


def paper_medha(record: Record) -> str:
    r = record["results"]
    parts = [
        "## Medha's evaluation, in simulation\n",
        origin(record, f"{r['model']} on 16 {r['hardware']}, {r['window_s']:.0f} s of arrivals, seed {r['seed']}."),
        "The paper's set-ups: one instance of two stages of eight devices (TP8, SPP2), for `loongserve` eight "
        "instances of two. Load is what the requests need at the least, over what the fleet has while they arrive: "
        "above 1 nobody keeps up, and latencies grow with the window. An iteration may take 50 ms. In time: the first "
        f"token within max(1.5 T(n), 0.5 s), further ones within {ms(r['tpot_s'], 0)} ms; T(n) is what `medha` needs "
        "for the prompt alone. benchmarks/paper/medha.py says more.\n",
    ]
    for share in sorted({run["long_share"] for run in r["runs"]}):
        runs = [run for run in r["runs"] if run["long_share"] == share]
        parts += [f"### {share:.0%} of requests are long\n", _runs(runs, with_long=share > 0)]
        if share > 0:
            parts.append(_curves(runs, share))
    parts += [
        "### The paper's headlines\n",
        "LoongServe over `medha`, at 0.75 a second. The paper counts all requests together; so few of them are long "
        "that its median and 90th percentile are those of short ones, which are shown as well.\n",
        _headlines(r["cells"]),
        *_scaling(r["scaling"]),
    ]
    return "\n".join(parts)


def _runs(runs: list[dict[str, Any]], with_long: bool) -> str:
    classes = ("short", "long") if with_long else ("short",)
    head = ["requests/s", "load", "system"]
    for name in classes:
        head += [f"{name}: TTFT p50, s", "p90", "p99", "TPOT p50, ms", "p99", "in time"]
    rows = []
    for run in sorted(runs, key=lambda run: run["rate"]):
        row = [f"{run['rate']:.2f}", f"{run['offered_load']:.2f}", f"`{run['system']}`"]
        for name in classes:
            row += _class(run["classes"].get(name))
        rows.append(row)
    return table(head, rows)


def _class(group: dict[str, Any] | None) -> list[str]:
    if group is None or group["ttft_s"] is None:
        return ["-"] * 6
    ttft, tpot = group["ttft_s"], group["tpot_s"]
    tpots = ["-", "-"] if tpot is None else [ms(tpot["p50"]), ms(tpot["p99"])]
    return [*(f"{ttft[p]:.2f}" for p in ("p50", "p90", "p99")), *tpots, percent(group["attainment"])]


def _curves(runs: list[dict[str, Any]], share: float) -> str:
    def draw(axes: list[Axes]) -> None:
        for system in dict.fromkeys(run["system"] for run in runs):
            mine = sorted((run for run in runs if run["system"] == system), key=lambda run: run["rate"])
            for axis, (name, value) in zip(axes, _PANELS, strict=True):
                points = [(run["rate"], value(run["classes"][name])) for run in mine if name in run["classes"]]
                axis.plot([x for x, _ in points], [y for _, y in points], marker=".", linewidth=1, label=system,
                          color=COLOURS.get(system))  # fmt: skip
        for axis, title in zip(axes, ("short: TTFT p99, s", "short: in time, %", "long: in time, %"), strict=True):
            axis.set(title=title, xlabel="requests/s")
        axes[0].set_yscale("log")
        axes[0].legend(fontsize=6)

    what = f"TTFT and the share in time of short and of long requests over the rate, {share:.0%} long, for each system"
    return plot(f"paper_medha_{round(100 * share)}", what, draw, columns=len(_PANELS))


_PANELS = (
    ("short", lambda group: group["ttft_s"]["p99"]),
    ("short", lambda group: 100 * group["attainment"]),
    ("long", lambda group: 100 * group["attainment"]),
)


def _headlines(cells: list[dict[str, Any]]) -> str:
    def why(cell: dict[str, Any]) -> str:
        if all(abs(ours / cell["paper"] - 1.0) <= FAR for ours in cell["ours"].values()):
            return ""
        return MEDHA.get(cell["what"], "**not explained yet**")

    rows = [[cell["what"], ratio(cell["paper"]), *map(ratio, cell["ours"].values()), why(cell)] for cell in cells]
    names = [f"`{system}`, {group}" for system, group in (name.split(", ") for name in cells[0]["ours"])]
    return table(["", "the paper's", *names, "why they differ"], rows, text=1)


def _scaling(r: dict[str, Any]) -> list[str]:
    """One very long prompt, and its decode."""
    parts = [
        "### One very long prompt on many devices\n",
        f"Llama-3-8B on {r['hardware']}, stages or instances of eight devices. Ways to cut the work: a ring of "
        "instances, in one batch; or pipeline stages (SPP) with chunks of a fixed size, or as large as 50 ms allow "
        "(`medha`). Efficiency is against the fewest devices that hold the prompt.\n",
    ]
    for tokens in dict.fromkeys(found["tokens"] for found in r["prompts"]):
        mine = [found for found in r["prompts"] if found["tokens"] == tokens]
        by_way = {way: {f["devices"]: f["ttft_s"] for f in mine if f["way"] == way} for way in _ways(mine)}
        devices = sorted({found["devices"] for found in mine})
        parts += [
            f"TTFT of {tokens:,} tokens, s, and efficiency:\n",
            table(["devices", *by_way], [[n, *(_ttft(times, n) for times in by_way.values())] for n in devices]),
        ]

    def draw(axes: list[Axes]) -> None:
        (axis,) = axes
        for tokens, style in zip(dict.fromkeys(found["tokens"] for found in r["prompts"]), ("-", "--"), strict=True):
            mine = [found for found in r["prompts"] if found["tokens"] == tokens and found["ttft_s"] is not None]
            for way, colour in zip(_ways(r["prompts"]), ("tab:red", "tab:cyan", "tab:blue"), strict=True):
                points = sorted((f["devices"], f["ttft_s"]) for f in mine if f["way"] == way)
                if points:
                    axis.plot([x for x, _ in points], [y for _, y in points], style, marker=".", color=colour,
                              linewidth=1, label=f"{tokens // 10**6}M, {way}")  # fmt: skip
        axis.set(xscale="log", yscale="log", xlabel="devices", ylabel="TTFT, s")
        axis.legend(fontsize=6)

    what = "Seconds to the first token over the number of devices, both logarithmic, for each way to cut the work"
    return [
        *parts,
        plot("paper_medha_scaling", what, draw),
        "A decode iteration behind that prompt, on instances of four stages that share its KV (KVP):\n",
        table(
            ["context", "instances", "devices", "TPOT, ms", "tokens/s", "over one instance"],
            [[f"{found['tokens']:,}", found["instances"], found["devices"], ms(found["tpot_s"]),
              f"{1 / found['tpot_s']:.1f}", ratio(found["tpot_s"] / _alone(r["kvp"], found["tokens"]))]
             for found in r["kvp"]],
        ),
    ]  # fmt: skip


def _ways(found: list[dict[str, Any]]) -> list[str]:
    return sorted({prompt["way"] for prompt in found}, key=("ring", "sarathi 4096", "medha").index)


def _ttft(times: dict[int, float | None], devices: int) -> str:
    seconds = times.get(devices)
    if seconds is None:
        return "does not fit" if devices in times else "-"
    first = min(number for number, time in times.items() if time is not None)
    fewest_s = times[first]
    assert fewest_s is not None
    return f"{seconds:.2f} ({fewest_s * first / (seconds * devices):.0%})"


def _alone(found: list[dict[str, Any]], tokens: int) -> float:
    return next(float(f["tpot_s"]) for f in found if f["tokens"] == tokens)
