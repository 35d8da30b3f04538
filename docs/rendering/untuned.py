"""The server without a flag beside vLLM: nothing to tune."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, origin, ratio, table


def untuned(record: Record) -> str:
    r = record["results"]
    mixed: dict[str, dict[str, Any]] = r["mixed"]
    some = next(iter(mixed.values()))

    def at(side: dict[str, Any], name: str, *which: str) -> list[str]:
        return [f"{side[name][percentile]:.3f}" for percentile in which]

    return "\n".join([
        "## Without a flag, beside vLLM\n",
        origin(record, "Percentiles over all rounds' requests; tokens/s and the lone prompt: medians of the rounds."),
        "What its log said:\n",
        "\n".join(["```text", *[line.partition(" INFO ")[2] or line for line in r["log"]], "```\n"]),
        "Shorts (128 to 384 prompt tokens, 32 output tokens), 0.5 a second, every 25 s a prompt of 4,000 tokens, in "
        f"turns of {r['seconds']:.0f} s, {r['rounds']} each: {some['num_shorts']} shorts and {some['num_longs']} longs "
        f"a side. Seconds, from when a request was due. vLLM tuned for shorts: `{r['vllm_tuned']}`.\n",
        table(
            ["side", "short TTFT p50", "p90", "p95", "p99", "short TPOT p50", "p90", "long TTFT p50", "max",
             "not finished"],
            [[name, *at(side, "short_ttft_s", "p50", "p90", "p95", "p99"), *at(side, "short_tpot_s", "p50", "p90"),
              *at(side, "long_ttft_s", "p50", "max"), side["num_not_finished"]] for name, side in mixed.items()],
            text=1,
        ),
        "16 requests in flight (128 prompt, 64 output tokens), and one prompt of 7,500 tokens alone, also on ours in "
        "each shape that the cores can be cut up into:\n",
        table(
            ["side", "output tokens/s", "TTFT of the lone prompt, s"],
            [[name, f"{r['closed'][name]['tokens_per_s_median']:.0f}" if name in r["closed"] else "",
              f"{side['ttft_s_median']:.2f}"] for name, side in r["lone"].items()],
            text=1,
        ),
        *([table(["ours without a flag", "ratio"], [[what, ratio(it)] for what, it in r["compared"].items()], text=1)]
          if "compared" in r else []),
    ])  # fmt: skip
