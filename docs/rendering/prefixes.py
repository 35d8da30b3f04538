"""Prefixes: what pools of several sizes find of them, by what they evict."""

from __future__ import annotations

from rendering.record import Record, ms, origin, percent, ratio, table

_ORDERS = ("own", "lru", "clairvoyant")


def eviction(record: Record) -> str:
    return "\n".join([
        "## What a pool finds of prefixes\n",
        origin(record, "Simulated: eight instances of two A100, Llama-3-8B, the default policy."),
        "*Ours* is the server's order of eviction; *LRU* evicts what was used least recently; *clairvoyant* what is "
        "asked for again last, as the trace tells. *At best*: of a pool without bounds. A pool holds one and a half of "
        "the longest requests at least. *Closed*: the part of the gap between LRU and clairvoyant; none where there is "
        "hardly any gap. TTFT in milliseconds: means of the three, and the 99th percentiles of ours and LRU.\n",
        _cells(record),
    ])  # fmt: skip


def eviction_mooncake(record: Record) -> str:
    return "\n".join([origin(record, "The same of Mooncake's conversations, at their own pace."), _cells(record)])


def eviction_bound(record: Record) -> str:
    cells = record["results"]["cells"]
    names = ["counted", "posterior", "hazards", "popularity"]
    rows = [
        [name, percent(cell["hit_rate"]["lru"]), percent(cell["hit_rate"]["belady"]),
         *[ratio(cell["closed"][order]) for order in names]]
        for name, cell in cells.items()
    ]  # fmt: skip
    return "\n".join([
        "What of the gap between LRU and Belady's order the past can tell:\n",
        origin(record, "Without a scheduler, in one pool of blocks."),
        "*Counted*: by the uses of each block, none forgotten. *Posterior*: and by how many blocks are used how often "
        "in all. *Hazards*: by when, and whether, blocks with as many uses are used again. *Popularity*: by the uses "
        "of each block in the whole trace, past and future. The last three know what no server does.\n",
        table(["", "LRU", "Belady", *names], rows, text=1),
    ])  # fmt: skip


def _cells(record: Record) -> str:
    r = record["results"]
    rows, seen = [], set[tuple[str, int]]()
    for name, cell in r["cells"].items():
        orders, compared = [cell["orders"][order] for order in _ORDERS], cell["compared"]
        pool = name.rpartition(", pool ")[0], orders[0]["pool_tokens"]
        if pool in seen:
            continue
        seen.add(pool)
        rows.append([
            pool[0], f"{pool[1]:,}", f"{orders[0]['pool_tokens'] / orders[0]['different_tokens']:.2f}",
            *[percent(each["hit_rate"]) for each in orders], percent(orders[0]["best_hit_rate"]),
            f"{compared['over_lru']:.3f}", ratio(compared.get("closed")),
            *[ms(each["ttft_s"]["mean"], 0) for each in orders], *[ms(each["ttft_s"]["p99"], 0) for each in orders[:2]],
        ])  # fmt: skip
    summary = r["summary"]
    head = ["", "KV slots", "of different tokens", "ours", "LRU", "clairvoyant", "at best", "ours over LRU", "closed",
            "TTFT ours", "LRU", "clairvoyant", "p99 ours", "LRU"]  # fmt: skip
    return "\n".join([
        table(head, rows, text=1),
        f"Closed on average: {ratio(summary['closed_on_average'])}; the aim is 0.5. The worst cell has "
        f"{summary['worst_over_lru']:.3f} times LRU's hit rate; the aim is 0.98.\n",
    ])  # fmt: skip


def prefix_reuse(record: Record) -> str:
    return "\n".join([
        "## Prefixes on the engine, and peers\n",
        origin(record, _setting(record)),
        _beside_peers(record),
        "A prompt of 7,500 tokens that is asked again:\n",
        table(
            ["", "first, s", "again, ms", "times as fast"],
            [[side, f"{v['first_s']:.2f}", ms(v["again_s"], 0), f"{v['times_as_fast']:.0f}"]
             for side, v in record["results"]["again"].items()],
            text=1,
        ),
    ])  # fmt: skip


def prefix_reuse_agents(record: Record) -> str:
    return "\n".join([
        "## Agents with longer contexts, and peers\n",
        origin(record, _setting(record) + " As above, with requests that are not cut shorter than the model allows."),
        _beside_peers(record),
    ])  # fmt: skip


def _setting(record: Record) -> str:
    r = record["results"]
    return (f"{r['model']}, two instances of one thread, {r['kv_tokens']:,} KV slots; peers have about as many, and "
            "both cores.")  # fmt: skip


def _beside_peers(record: Record) -> str:
    workloads = record["results"]["workloads"]
    rows = [
        [name, side, percent(v["hit_rate"]), f"{v['hit_rate'] / found['best_hit_rate']:.3f}",
         *[ms(v["ttft_s"][part], 0) for part in ("p50", "p90", "mean")],
         *[f"{v['times_as_fast_as_no_cache'][part]:.2f}" for part in ("p50", "p90")]]
        for name, found in workloads.items() for side, v in found["sides"].items()
    ]  # fmt: skip
    shapes = "; ".join([
        f"{name}: {v['requests']} requests, {v['prompt_tokens']:,} prompt and {v['output_tokens']:,} output tokens, "
        f"{percent(v['best_hit_rate'])} at best" for name, v in workloads.items()
    ])  # fmt: skip
    return "\n".join([
        f"The same requests, one at a time. {shapes}. *At best* is what a cache without bounds would find.\n",
        table(
            ["", "", "hit rate", "over the best", "TTFT p50, ms", "p90", "mean", "times as fast as without: p50",
             "p90"],
            rows, text=2,
        ),
    ])  # fmt: skip


def prefix_decode_cost(record: Record) -> str:
    return "\n".join([
        "## What the prefix cache costs decodes\n",
        origin(record, "A decode step with the cache over one without, the two taking turns; medians."),
        "*Fresh*: nothing is found. *Adopted*: the whole context was left by others. The aim is 1.02.\n",
        table(
            ["", "with, ms", "without, ms", "ratio"],
            [[name, ms(v["on"]["median"], 2), ms(v["off"]["median"], 2), f"{v['ratio']:.3f}"]
             for name, v in record["results"].items()],
            text=1,
        ),
    ])  # fmt: skip
