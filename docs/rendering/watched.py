"""What it costs to be watched, and how right what clients are told is."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, origin, percent, signed_percent, table


def watching(record: Record) -> str:
    r = record["results"]
    each = r["us_a_token"]
    return "\n".join([
        "## Being watched\n",
        origin(record),
        f"An event log, a trace of each request, and {r['viewers']} open pages, against the defaults: CPU time of the "
        f"engine's process, all its threads, for {r['streams']} streams of {r['model']} with prompts of {r['context']} "
        f"tokens. **{signed_percent(r['ratio'] - 1)}**: {each['watched']:.0f} µs a token beside {each['plain']:.0f}. "
        "The aim was 2 % at most. The process beside it, which writes the log and works out what the pages show, uses "
        f"{r['observer_us_a_token']:.0f} more.\n",
    ])  # fmt: skip


def progress_quotes(record: Record) -> str:
    r = record["results"]

    def row(share: str, v: dict[str, Any]) -> list[str]:
        ratio = v["ratio"]
        return [
            share, f"{v['told']} of {v['of']}", f"{ratio['median']:.2f}", f"{ratio['p10']:.2f} to {ratio['p90']:.2f}",
            percent(v["within_median"]), percent(v["within_quote"]),
        ]  # fmt: skip

    low, high = r["long_tokens"]
    return "\n".join([
        "## What a stream that waits is told\n",
        origin(record, ""),
        f"{r['longs']} prompts of {low:,} to {high:,} tokens, {r['every_s']:g} s apart on average, among "
        f"{r['num_shorts']} short ones, to {r['model']}; each stream asks for `\"progress\": true`. What it was told "
        "last when so much of its wait was over, against when its first token really came. They waited "
        f"{r['long_ttft_s']['median']:.1f} s (median), {r['long_ttft_s']['max']:.1f} s at most; shorts "
        f"{1000 * r['short_ttft_s']:.0f} ms.\n",
        table(
            ["of the wait", "told", "TTFT / median estimate", "8 of 10 lie in", "within the median",
             "within the 95 % estimate"],
            [row(share, v) for share, v in r["at"].items() if v["told"]], text=1,
        ),
    ])  # fmt: skip
