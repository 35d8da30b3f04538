"""A million tokens in one prompt: what they took, and whether what comes of long prompts is exact."""

from __future__ import annotations

from rendering.record import Record, ms, origin, percent, table


def million_tokens(record: Record) -> str:
    r = record["results"]
    life, shorts, model = r["life"], r["shorts"], r["model"]
    peak = sum(r["peak_gflops"]) / len(r["peak_gflops"])
    pause, (priority, *_) = life["longest_pause"], r["priority"]
    return "\n".join([
        f"## {r['tokens']:,} tokens in one prompt\n",
        origin(record, "One run."),
        f"Over HTTP, a body of {r['body_mb']:.1f} MB, on two instances of one thread (`longspan serve "
        f"{' '.join(r['options'])}`, all else as it is by default: bf16, the policy `longspan`). One layer, "
        f"{model['heads']} query heads and {model['kv_heads']} KV head of {model['head_dim']}, random weights, "
        f"positions to {model['max_positions']:,}. Beside it {shorts['sent']} short chats, one every few "
        f"seconds, and half-way a prompt of {priority['tokens']:,} tokens with a higher `priority`.\n",
        table(["what", "figure"], [
            ["time to the first token", f"{r['ttft_s']:.0f} s"],
            ["tokens/s", f"{r['tokens_per_s']:.0f}"],
            ["operations/s, of attention and matrices", f"{r['gflops']:.0f} GFLOP/s"],
            [f"of the processor's peak, {peak:.0f} GFLOP/s on both cores", percent(r["share_of_peak"])],
            ["the same without the time in which it was paused", percent(r["share_of_peak_without_pauses"])],
            ["each further token", f"{ms(r['tpot_s'])} ms"],
            ["chunks", f"{life['chunks']:,}, of {life['chunk_tokens']['first']:,} tokens at first and "
                       f"{life['chunk_tokens']['last']:,} at last"],
            ["chunks by instances that computed them",
             ", ".join(f"{count:,} by {width}" for width, count in life["chunks_by_instances"].items())],
            ["tokens of the prompt computed", f"{life['tokens_computed']:,}"],
            ["times that KV of it was dropped", str(life["times_kv_dropped"])],
            ["pauses, with others running", f"{life['pauses']:,}, {life['paused_s']:.1f} s in all"],
            ["the longest", f"{pause['seconds']:.1f} s with {pause['stored']:,} tokens done, while "
                            f"{pause['tokens']:,} of others ran"],
            ["the other's time to the first token", f"{priority['ttft_s']:.1f} s"],
            ["short chats: TTFT, p50, p90, p99",
             ", ".join(f"{ms(shorts['ttft_s'][share], 0)}" for share in ("p50", "p90", "p99")) + " ms"],
            ["short chats: refused or failed", str(shorts["refused_or_failed"])],
            ["memory at most, all processes", f"{sum(r['peak_memory_gib']):.2f} GiB"],
            ["memory at most, the server's own process", f"{r['peak_memory_gib'][0]:.2f} GiB"],
        ], text=1),
        "The event log has every chunk: each begins where the one before ended, so nothing was computed twice. Peak: "
        "multiply-adds out of registers.\n",
    ])  # fmt: skip


def million_exact(record: Record) -> str:
    r = record["results"]
    widths = ", ".join(f"{count} chunks by {width}" for width, count in r["life"]["chunks_by_instances"].items())
    return "\n".join([
        f"## Exact at {r['tokens']:,} tokens, in fp32\n",
        origin(record, "One run."),
        f"Beside transformers, a model of one layer and {r['model']['heads']} heads of {r['model']['head_dim']} with "
        "random weights. A prompt is cut at sampled positions, and taken whole; each part over HTTP on two instances "
        f"(of the whole one: {widths}), and {r['generated']} tokens generated, with the best {r['top']} log "
        "probabilities at each. The last column is by how much transformers' log probabilities change if the first "
        "half of the context is left out: attention is made sharp, so that an error anywhere shows.\n",
        table(
            ["tokens", "generated tokens alike", "largest difference of a log probability", "without the first half"],
            [[f"{p['end']:,}", f"{sum(a == b for a, b in zip(p['tokens'], p['theirs'], strict=True))} of "
              f"{len(p['tokens'])}", f"{p['largest_difference']:.1e}", f"{p['without_first_half']:.2f}"]
             for p in r["positions"]],
        ),
    ])  # fmt: skip
