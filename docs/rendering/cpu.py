"""The engine on the CPU of one machine: kernels, prefill and decode, what comes on top, weights of few bits."""

from __future__ import annotations

from typing import Any

from rendering.record import Record, milliseconds, origin, percent, seconds, table


def against_peers(record: Record) -> str:
    r = record["results"]
    sides = list(next(iter(r["prefill"].values()))["seconds"])
    theirs = [side for side in sides if side in r["peers"]]

    def rows(part: str, show: Any) -> list[list[str]]:
        return [[n, *(show(v["seconds"][s]) if s in v["seconds"] else "-" for s in sides)] for n, v in r[part].items()]

    ratios = [
        [f"{part} {n}", ours, *(f"{v['times_as_fast_as'][p][ours]:.2f}" if p in v["seconds"] else "-" for p in theirs)]
        for part in ("prefill", "decode") for n, v in r[part].items() for ours in sides if ours not in theirs
    ]  # fmt: skip
    versions = ", ".join(f"{name}: {facts['version']}" for name, facts in r["peers"].items())
    return "\n".join([
        "## Beside vLLM, llama.cpp and transformers, all cores for each side\n",
        origin(record),
        f"SmolLM2-135M, bf16 where nothing else is said. {versions}. vLLM runs in one process with Intel's OpenMP, "
        "which suits it best here; llama.cpp is compiled for this processor. Two instances have one thread each, one "
        "instance has two.\n",
        "Prefill of one prompt, seconds:\n",
        table(["tokens", *sides], rows("prefill", seconds)),
        "Decode, milliseconds a step, 128 tokens of context:\n",
        table(["batch", *sides], rows("decode", milliseconds)),
        "Times as fast as each peer, in the same rounds:\n",
        table(["", "side", *theirs], ratios),
    ])  # fmt: skip


def kernel(record: Record) -> str:
    r = record["results"]

    def computed(part: str) -> str:
        return table(
            ["head_dim", "tokens", "context", "slots", "threads", "ours, GFLOP/s", "torch's", "times as fast",
             "share of the GEMM", "share of the peak"],
            [[v["head_dim"], v["tokens"], v.get("context", ""), v.get("slots", ""), v["threads"],
              f"{v['gflops']['native']:.0f}", f"{v['gflops']['torch']:.0f}", f"{v['native_over_torch']:.2f}",
              percent(v["share_of_gemm"]["native"]), percent(v["share_of_peak"]["native"])] for v in r[part]],
        )  # fmt: skip

    return "\n".join([
        f"## Attention kernels ({r['isa']})\n",
        origin(record),
        "The GEMM is torch's bf16 matrix product of 1024 cubed, the peak a loop of `vdpbf16ps` that never leaves the "
        "registers (AVX512-BF16). Prefill, a causal block:\n",
        computed("prefill"),
        "A chunk against a long context in the pool:\n",
        computed("chunk"),
        "Decode, one token against the pool, K and V of all layers far beyond the caches:\n",
        table(
            ["head_dim", "context", "slots", "threads", "ours, GB/s", "torch's", "plain read", "share of the read"],
            [[v["head_dim"], v["context"], v["slots"], v["threads"], f"{v['gigabytes_per_second']['native']:.1f}",
              f"{v['gigabytes_per_second']['torch']:.1f}", f"{v['gigabytes_per_second']['read']:.1f}",
              percent(v["share_of_read"]["native"])] for v in r["decode"]],
        ),
        f"Four times torch would be {min(r['four_times_torch_over_peak']):.2f} to "
        f"{max(r['four_times_torch_over_peak']):.2f} of this processor's peak.\n",
    ])  # fmt: skip


def elastic(record: Record) -> str:
    r = record["results"]
    return "\n".join([
        "## Elasticity: two instances of one thread each\n",
        origin(record),
        f"Model {r['model']}, {r['dtype']}.\n",
        "Prefill on two instances (DoP 2) against one (DoP 1):\n",
        table(
            ["tokens", "DoP 1, s", "DoP 2, s", "times as fast"],
            [[n, seconds(v["dop1"]), seconds(v["dop2"]), f"{v['speedup']:.2f}"]
             for n, v in r["prefill_dop2_over_dop1"].items()],
        ),
        "Scale-down: prefill on two instances with the KV kept by one of them, against both:\n",
        table(
            ["tokens", "onto one, s", "onto both, s", "time, onto one over both"],
            [[n, seconds(v["onto_one"]), seconds(v["onto_both"]), f"{v['ratio']:.3f}"]
             for n, v in r["retention_onto_one_over_both"].items()],
        ),
        "Decode with two masters against one, the KV on both instances, 256 tokens of context:\n",
        table(
            ["batch", "one master, ms a step", "two masters, ms a step", "times as fast"],
            [[n, milliseconds(v["one_master"]), milliseconds(v["two_masters"]), f"{v['speedup']:.2f}"]
             for n, v in r["two_masters_over_one"].items()],
        ),
    ])  # fmt: skip


def overhead(record: Record) -> str:
    r = record["results"]
    streaming = r["streaming"]
    return "\n".join([
        "## What the engine costs beside the model\n",
        origin(record),
        "Share of the time, from the first batch to the last token, inside the model:\n",
        table(
            ["batch", "share"],
            [[n, percent(v["inside_model_share"]["median"])] for n, v in r["inside_the_model"].items()],
        ),
        f"{streaming['streams']} streams over HTTP have {percent(streaming['share_of_offline'])} of the tokens per "
        "second of the offline class.\n",
        "A decode step over two instances, beside its compute (a step on one instance with half the context):\n",
        table(
            ["batch x context", "two instances, ms", "compute, ms", "difference, ms"],
            [[n, milliseconds(v["two_instances"]), milliseconds(v["compute"]), f"{v['extra_ms']['median']:.2f}"]
             for n, v in r["two_instance_step"].items()],
        ),
    ])  # fmt: skip


def long_prompt(record: Record) -> str:
    r = record["results"]
    memory = max(r["peak_memory_gib"].values())
    gemm = sum(r["gemm_gflops"].values()) / 2
    return "\n".join([
        "## One very long prompt\n",
        origin(record),
        f"{r['tokens']} tokens on {r['instances']} instances of one thread, {r['model']['layers']} layers of "
        f"SmolLM2's shape with random weights: {r['seconds']:.1f} s, {r['tokens_per_s']:.0f} tokens/s, "
        f"{percent(r['share_of_gemm'])} of the {gemm:.0f} GFLOP/s that a bf16 matrix product reaches on both cores. "
        f"Peak memory of a worker {memory:.2f} GiB; the prompt's KV is {r['kv_gib']:.2f} GiB over both.\n",
    ])  # fmt: skip


def quantization(record: Record) -> str:
    threads = {name: figures for name, figures in record["results"].items() if name.endswith("thread(s)")}
    parts = [
        "## Weights of four and eight bits\n",
        origin(record),
        "`none` is bf16, `gguf` the file's own weights as they are, `int8` groups of 32 with a scale. Milliseconds; in "
        "brackets: times as fast as bf16.\n",
        table(
            ["threads", "what", "none", "gguf", "int8"],
            [[name.partition(" ")[0], what, *(f"{milliseconds(v[side])} ({v[side]['times_as_fast_as_none']:.2f})"
              for side in ("none", "gguf", "int8"))]
             for name, figures in threads.items() for what, v in figures.items()],
        ),
    ]  # fmt: skip
    return "\n".join(parts)


def quality(record: Record) -> str:
    return "\n".join([
        "Quality: perplexity, and over that of fp32 with the same weights:\n",
        origin(record),
        table(
            ["text", "side", "perplexity", "over fp32"],
            [[text, side, f"{v['perplexity']:.4f}", f"{v['over_fp32']:.5f}"]
             for text, sides in record["results"]["texts"].items() for side, v in sides.items()],
        ),
    ])  # fmt: skip
