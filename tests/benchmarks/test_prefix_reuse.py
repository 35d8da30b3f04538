"""The requests of the benchmark of prompts that begin as earlier ones do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.engine.prefix_reuse import POSITIONS, asked, best_hit_rate, whole_conversations
from longspan.workload.traces import BLOCK_TOKENS, TraceRequest


def talk(number: int, turns: int) -> list[TraceRequest]:
    """All talks begin with block 0; each turn has four blocks more of its own talk than the one before."""
    ids = [0, *range(100 * number, 100 * number + 4 * turns)]
    return [TraceRequest(None, BLOCK_TOKENS * (1 + 4 * k), 64, tuple(ids[: 1 + 4 * k])) for k in range(1, turns + 1)]


def test_conversations_are_taken_whole_and_in_order() -> None:
    rows = [turn for turns in zip(*[talk(number, 3) for number in range(1, 5)], strict=True) for turn in turns]
    assert whole_conversations(rows, 12) == rows
    chosen = whole_conversations(rows, 7)
    assert chosen == [row for row in rows if row.prefix_block_ids[1] in (100, 300)]
    assert whole_conversations(rows, 2) == talk(1, 3)[:2]


def test_scaled_prompts_have_the_same_part_in_common(tmp_path: Path) -> None:
    rows = talk(1, 20)
    trace = tmp_path / "talk.csv"
    lines = [f",{row.num_prompt_tokens},{row.num_output_tokens}" for row in rows]
    trace.write_text("\n".join(["arrived_at_s,num_prefill_tokens,num_decode_tokens", *lines]) + "\n")
    ids = [json.dumps(row.prefix_block_ids) for row in rows]
    Path(tmp_path, "talk.prefix_hash_ids.jsonl").write_text("\n".join(ids))
    prompts = [prompt for prompt, _ in asked(trace, 20, 1)]
    scale = POSITIONS / rows[-1].num_tokens
    for before, after, row in zip(prompts, prompts[1:], rows[1:], strict=False):
        assert after[: len(before)] == before and len(after) == pytest.approx(scale * row.num_prompt_tokens, abs=1)
    total = sum(map(len, prompts))
    assert best_hit_rate(prompts) == pytest.approx((total - len(prompts[-1])) / total, abs=0.01)
