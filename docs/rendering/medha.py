"""What Medha's mechanisms do on the engine: mixed load beside vLLM, both parallelisms, and what small chunks cost."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from rendering.plots import plot
from rendering.record import Record, milliseconds, origin, percent, ratio, seconds, table

SMALLEST_CONTEXT = 1024  # where no context is drawn, on a logarithmic axis
LITTLE = 0.1  # overhead of the smallest chunk that is called cheap; the paper's figure for 32 tokens at 1M is 0.11


def mixed_load(record: Record) -> str:
    return _mixed("Short requests beside long ones, over HTTP", record)


def mixed_load_half(record: Record) -> str:
    return _mixed("The same at half the rate, which both sides keep up with", record)


def _mixed(title: str, record: Record) -> str:
    r = record["results"]

    def latency(side: dict[str, Any], kind: str, name: str, *which: str) -> list[str]:
        found = side[kind][name]
        return ["-" if found is None else f"{found[percentile]:.3f}" for percentile in which]

    def missing(side: dict[str, Any], kind: str) -> int:
        return int(side[kind]["num_requests"] - side[kind]["num_finished"])

    rate = r.get("rate", 0.5)  # before there were others
    compared = next(iter(next(iter(r["times_as_good_as"].values())).values())) if r["times_as_good_as"] else {}
    return "\n".join([
        f"## {title}\n",
        origin(record, "All rounds' requests together; tokens/s: the median round."),
        f"Two instances of one thread, and vLLM's CPU build, in turns of {r['seconds']:.0f} s, {r['rounds']} each: "
        f"shorts of 128 to 384 prompt tokens, {rate} a second, and every {15 / rate:.0f} s one of 7,500 tokens; 32 "
        "output tokens. "
        "Latencies in seconds, from when a request was due.\n",
        table(
            ["side", "flags", "short TTFT p50", "p99", "short TPOT p50", "p99", "long TTFT p50", "long TPOT p50",
             "tokens/s", "shorts not finished", "longs"],
            [[name, f"`{side['flags']}`" if side["flags"] else "none",
              *latency(side, "short", "ttft_s", "p50", "p99"), *latency(side, "short", "tpot_s", "p50", "p99"),
              *latency(side, "long", "ttft_s", "p50"), *latency(side, "long", "tpot_s", "p50"),
              f"{side['tokens_per_s']['median']:.0f}", missing(side, "short"), missing(side, "long")]
             for name, side in r["sides"].items()],
            text=2,
        ),
        "How many times as good as vLLM: its latency over ours, and our tokens/s over its:\n",
        table(
            ["beside", "ours", *compared],
            [[peer, name, *(ratio(figure) for figure in figures.values())]
             for peer, ours in r["times_as_good_as"].items() for name, figures in ours.items()],
            text=2,
        ),
        "While one side had its turn the others, idle, took at most "
        f"{percent(max(side['others_cpu_share'] for side in r['sides'].values()))} of a core.\n",
    ])  # fmt: skip


def kvp(record: Record) -> str:
    r = record["results"]
    random = r["random_weights"]
    rows = [[r["real"]["model"], r["real"]["context"], r["real"]]] + [
        [f"{name}, {found['model']['layers']} layers", context, measured]
        for name, found in random.items() for context, measured in found["contexts"].items()
    ]  # fmt: skip
    reads = r["memory"]["gigabytes_per_second"]
    return "\n".join([
        "## KV-cache parallelism: a decode step on two shards against one\n",
        origin(record),
        "Batch 1, one thread for each instance. Models whose layers are numbered have random weights.\n",
        table(
            ["model", "context", "one shard, ms a token", "two shards", "times as fast"],
            [[model, context, milliseconds(v["tpot_s"]["1"]), milliseconds(v["tpot_s"]["2"]), ratio(v["times_as_fast"])]
             for model, context, v in rows],
            text=1,
        ),
        f"Both instances share this machine's memory: one core reads {reads['1']:.1f} GB/s of it, two together "
        f"{reads['2']:.1f}, {ratio(r['memory']['two_cores_over_one'])} times as much.\n",
    ])  # fmt: skip


def spp(record: Record) -> str:
    r = record["results"]
    return "\n".join([
        "## Sequence pipeline parallelism: two stages of one thread against one\n",
        origin(record),
        f"TTFT of a prompt of {r['tokens']} tokens, {r['model']} in {r['dtype']}, one instance. Uncut, one stage takes "
        f"{seconds(r['ttft_s']['whole'])} s.\n",
        table(
            ["chunks", "one stage, s", "two stages, s", "times as fast as one", "as one, uncut"],
            [[chunks, *(seconds(r["ttft_s"][f"{chunks}, pp {stages}"]) for stages in (1, 2)), ratio(v["alike"]),
              ratio(v["whole"])] for chunks, v in r["times_as_fast"].items()],
            text=1,
        ),
    ])  # fmt: skip


def chunk_overhead(record: Record) -> str:
    r = record["results"]
    contexts: dict[str, dict[str, Any]] = r["contexts"]
    *lengths, largest = next(iter(contexts.values()))["overhead"]

    def draw(axes: list[Axes]) -> None:
        places = [max(int(context), SMALLEST_CONTEXT) for context in contexts]
        for length in lengths:
            axes[0].plot(places, [100 * v["overhead"][length] for v in contexts.values()], marker=".", label=length)
        axes[0].axhline(0, color="black", linewidth=0.8)
        axes[0].set_xscale("log", base=2)
        axes[0].set_yscale("symlog", linthresh=10)
        axes[0].yaxis.set_major_formatter("{x:.0f}")
        axes[0].grid(alpha=0.3)
        axes[0].set_xticks(places, ["0" if c == "0" else f"{int(c) // 1024}k" for c in contexts])
        axes[0].set(xlabel="context, tokens", ylabel=f"overhead over chunks of {largest}, %")
        axes[0].legend(title="chunk, tokens", fontsize="x-small", ncols=2)

    cheap = [
        next((length for length in (*lengths, largest) if v["overhead"][length] <= LITTLE), largest)
        for v in contexts.values()
    ]
    return "\n".join([
        "## What small chunks cost, behind contexts of any length\n",
        origin(record),
        f"{r['model']['layers']} layers of SmolLM2's shape with random weights, bf16, one instance of {r['threads']} "
        f"thread(s). Overhead: seconds a token, over those of chunks of {largest} behind the same context.\n",
        plot("chunk_overhead", "Overhead of small chunks over the length of the context", draw),
        table(
            ["context", f"chunks of {largest}, us a token", *lengths, f"smallest within {LITTLE:.0%}"],
            [[context, f"{v['microseconds_per_token'][largest]:.0f}", *(percent(v["overhead"][n]) for n in lengths),
              smallest] for (context, v), smallest in zip(contexts.items(), cheap, strict=True)],
        ),
    ])  # fmt: skip
