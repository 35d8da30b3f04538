"""Policies on the engine: how well times are predicted, policies beside each other, scaling, the time to decide."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from rendering.plots import plot
from rendering.record import Record, ms, origin, percent, ratio, table

AIM = 0.05
_MARKS = {"prefill": "o", "decode": "s", "mixed": "^", "migration": "x"}


def profile_check(record: Record) -> str:
    """What `longspan profile --check SIB --json` prints."""
    there, points = record["deployment"], record["points"]

    def draw(axes: list[Axes]) -> None:
        (axis,) = axes
        times = [point[side] for point in points for side in ("measured", "predicted")]
        ends = [0.8 * min(times), 1.25 * max(times)]
        axis.plot(ends, ends, color="black", linewidth=0.8)
        axis.fill_between(ends, [0.9 * end for end in ends], [1.1 * end for end in ends], color="black", alpha=0.1)
        for kind, mark in _MARKS.items():
            mine = [point for point in points if point["kind"] == kind]
            axis.scatter([p["measured"] for p in mine], [p["predicted"] for p in mine], s=9, marker=mark, label=kind)
        axis.set(xscale="log", yscale="log", xlabel="measured, s", ylabel="predicted, s")
        axis.legend()

    return "\n".join([
        "## The cost model against measurements it has not seen\n",
        f"*benchmarks/results/profile_check.json: `longspan profile --check sib.json --json`; {there['model']}, "
        f"{there['dtype']}, weights {there['quantization']}, {there['instances']} instances of "
        f"{there['threads_per_device']} thread(s), {there['cores']} cores of {there['processor']} "
        f"({there['kernels']}).*\n",
        f"Relative errors of single iterations and migrations; the aim is a mean of {percent(AIM)}, the paper's are "
        "below 10 %.\n",
        table(
            ["", "points", "mean error", "largest"],
            [[kind, e["count"], percent(e["mean"]), percent(e["largest"])] for kind, e in record["errors"].items()],
            text=1,
        ),
        plot("profile_check", "Predicted over measured seconds, both logarithmic; the band is 10 % wide", draw),
    ])  # fmt: skip


def policies(record: Record) -> str:
    r = record["results"]
    parts = [
        "## Policies on the engine\n",
        origin(record, "Lengths are scaled down by one factor for each trace; see benchmarks/policy/policies.py."),
        "Normalised latencies are LoongServe's: end to end over prompt and output tokens, first token over prompt "
        "tokens, and time per output token; means.\n",
    ]
    for name, shape in r["workloads"].items():
        parts += [
            f"{name}: {shape['requests']} requests, {shape['prompt_tokens']} prompt and {shape['output_tokens']} "
            "output tokens.\n",
            table(
                ["policy", "finished", "per token, ms", "input, ms", "output, ms", "TTFT p50, s", "p90, s",
                 "TPOT p50, ms", "p90, ms", "prefill tokens on one instance"],
                [_policy_row(policy, found[name]) for policy, found in r["policies"].items()],
                text=1,
            ),
        ]  # fmt: skip
    return "\n".join(parts)


def _policy_row(policy: str, found: dict[str, Any]) -> list[str]:
    every = found["metrics"]["classes"]["all"]
    prefill = found["prefill_tokens_by_dop"]
    ttft, tpot = every["ttft_s"], every["tpot_s"]
    return [
        f"`{policy}`", f"{every['num_finished']} of {every['num_requests']}", ms(every["per_token_s"], 2),
        ms(every["input_s"], 2), ms(every["output_s"]), f"{ttft['p50']:.2f}", f"{ttft['p90']:.2f}", ms(tpot["p50"]),
        ms(tpot["p90"]), percent(prefill.get("1", 0) / (sum(prefill.values()) or 1)),
    ]  # fmt: skip


def scaling(record: Record) -> str:
    r = record["results"]

    def median(found: dict[str, Any], part: str, side: str) -> str:
        return ms(found[part][side]["median"])

    return "\n".join([
        "## Scaling down and up\n",
        origin(record),
        "A batch is prefilled by two instances and decodes on one. Proactive: KV stays where it is wanted while it "
        "passes. Reactive: it migrates after the prefill. None: both instances keep half. The points are those of "
        "LoongServe's figure 14, scaled to this model.\n",
        table(
            ["batch x tokens", "first token, ms: none", "proactive", "reactive", "proactive over none",
             "second token, ms: proactive", "reactive", "reactive over proactive"],
            [[point, *(median(v, "first_token_s", side) for side in ("none", "proactive", "reactive")),
              f"{v['first_token_over_none']['proactive']:.3f}",
              *(median(v, "second_token_s", side) for side in ("proactive", "reactive")),
              f"{v['reactive_over_proactive_second_token']:.3f}"] for point, v in r["scale_down"].items()],
        ),
        "A decode batch gets a second master, from one iteration to the next; no KV moves. From the decision to the "
        "end of the first iteration with two masters:\n",
        table(
            ["batch x tokens", "one master, ms", "first with two, ms", "later, ms", "first over later",
             "one master over two"],
            [[point, ms(v["one_master_s"]["median"]), ms(v["first_with_two_s"]["median"]),
              ms(v["two_masters_s"]["median"]), ratio(v["first_over_later"]), ratio(v["one_master_over_two"])]
             for point, v in r["scale_up"].items()],
        ),
    ])  # fmt: skip


def deciding(record: Record) -> str:
    return "\n".join([
        "## The time to decide\n",
        origin(record, "CPU time of `Scheduler.handle`, books and checks included."),
        _times_to_decide(record),
    ])  # fmt: skip


def deciding_cached(record: Record) -> str:
    memory = record["results"]["memory"]
    log_mb = memory["log_bytes_of_a_million_tokens"] / 1e6
    return "\n".join([
        "## The time to decide, with many prefixes\n",
        origin(
            record, "The same, with a prefix cache: talks go on from earlier ones, and what starts evicts.",
        ),
        _times_to_decide(record),
        "The aim is 1 ms for 99 of 100 calls. It is missed where many run: prefixes are shared over instances, which "
        "binds these together, so one event completes, and one decision issues, a batch with the next token of a "
        "hundred requests and more, each of them a segment with checks and books of its own.\n",
        f"A token that is kept takes {memory['index_bytes_per_token']:.1f} bytes of the scheduler's memory; the keys "
        f"of a prompt of a million tokens {log_mb:.2f} MB of an event log.\n",
    ])  # fmt: skip


def _times_to_decide(record: Record) -> str:
    told = {name: figures for name, figures in record["results"].items() if "p99_ms" in figures}
    return table(
        ["", "events", "run at the end", "mean, ms", "p50, ms", "p99, ms", "largest, ms"],
        [[name, v["events"], v["running_at_the_end"], f"{v['mean_ms']:.2f}", f"{v['p50_ms']:.2f}",
          f"{v['p99_ms']:.2f}", f"{v['max_ms']:.1f}"] for name, v in told.items()],
        text=1,
    )  # fmt: skip


def against_version(record: Record) -> str:
    r = record["results"]
    rows = [
        [what, figure, f"{v['before_ms']:.3f}", f"{v['now_ms']:.3f}", f"{v['ratio']:.3f}"]
        for what, figures in r["measurements"].items()
        for figure, v in figures.items()
    ]
    return "\n".join([
        "## This version beside an earlier one\n",
        origin(record, "CPU time; each figure of both versions in turns, medians of the rounds."),
        f"Before is commit {r['before']}, when KV was a request's own and had no residences.\n",
        table(["", "", "before, ms", "now, ms", "ratio"], rows, text=2),
    ])  # fmt: skip
