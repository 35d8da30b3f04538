"""The server without a flag beside vLLM: nothing to tune; and vLLM with our scheduler class."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, origin, ratio, table

_NOTE = "Percentiles over all rounds' requests; tokens/s and the lone prompt: medians of the rounds."


def untuned(record: Record) -> str:
    log = record["results"]["log"]
    told = "\n".join(["```text", *[line.partition(" INFO ")[2] or line for line in log], "```\n"])
    head = ["## Without a flag, beside vLLM\n", origin(record, _NOTE), "What its log said:\n", told]
    return "\n".join([*head, _tables(record)])


def in_vllm(record: Record) -> str:
    return "\n".join(["## The policy inside vLLM\n", origin(record, _NOTE), _tables(record)])


def in_vllm_told(record: Record) -> str:
    """For docs/vllm.md."""
    return f"{origin(record, _NOTE)}\n{_tables(record)}"


def _tables(record: Record) -> str:
    r = record["results"]
    mixed: dict[str, dict[str, Any]] = r["mixed"]
    some = next(iter(mixed.values()))
    longs = " and ".join(f"{tokens:,}" for tokens in r["longs"])
    pace = r["pace"]

    def at(side: dict[str, Any], name: str, *which: str) -> list[str]:
        return [f"{side[name][percentile]:.3f}" for percentile in which]

    return "\n".join([
        f"Shorts (128 to 384 prompt tokens, 32 output tokens), {0.5 * pace:.2g} a second, every {25 / pace:.2g} s a "
        f"prompt of {longs} tokens{' in turn' if len(r['longs']) > 1 else ''}, in "
        f"turns of {r['seconds']:.0f} s, {r['rounds']} each: {some['num_shorts']} shorts and {some['num_longs']} longs "
        f"a side. Seconds, from when a request was due. vLLM tuned for shorts: `{r['vllm_tuned']}`"
        f"{'; vllm_longspan: vLLM with our scheduler class and no other flag' if 'vllm_longspan' in mixed else ''}.\n",
        table(
            ["side", "short TTFT p50", "p90", "p95", "p99", "short TPOT p50", "p90", "long TTFT p50", "max",
             *[f"{int(tokens):,} tokens: p50" for tokens in some["long_ttft_s_by_tokens"]], "not finished"],
            [[name, *at(side, "short_ttft_s", "p50", "p90", "p95", "p99"), *at(side, "short_tpot_s", "p50", "p90"),
              *at(side, "long_ttft_s", "p50", "max"),
              *[f"{of['p50']:.3f}" for of in side["long_ttft_s_by_tokens"].values()], side["num_not_finished"]]
             for name, side in mixed.items()],
            text=1,
        ),
        "16 requests in flight (128 prompt, 64 output tokens), and one prompt of 7,500 tokens alone"
        f"{', also on ours in each shape that the cores can be cut up into' if 'ours' in mixed else ''}:\n",
        table(
            ["side", "output tokens/s", "TTFT of the lone prompt, s"],
            [[name, f"{r['closed'][name]['tokens_per_s_median']:.0f}" if name in r["closed"] else "",
              f"{side['ttft_s_median']:.2f}"] for name, side in r["lone"].items()],
            text=1,
        ),
        *([table(["compared", "ratio"], [[what, ratio(it)] for what, it in r["compared"].items()], text=1)]
          if "compared" in r else []),
    ])  # fmt: skip
