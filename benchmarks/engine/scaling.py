"""Scale-down and scale-up on two instances of one thread, at the points of LoongServe's Fig. 14 scaled to this model.

Scale-down: a batch is prefilled on both instances and decodes on one. Proactive: the retention plan keeps all KV there
while it passes. Reactive: both keep half, and the other half migrates after the prefill. None: both keep half, and
decode together. Timed are the first token, and the second, which needs the KV where it is wanted.

Scale-up: a batch decodes with one master and goes on with two; timed is the first iteration with two, from the decision
to its end, against later ones. No KV moves.

    python -m benchmarks.engine.scaling [--rounds 3]
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, fixed_output, paired_ratio, random_prompt, save, say, summary
from longspan import LLM
from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.events import BatchCompleted
from longspan.core.policies.fixed import FixedPolicy
from longspan.core.state import SchedulerState
from longspan.metrics.event_log import read_event_log

POINTS = ((64, 16), (32, 64), (16, 256), (8, 1000), (4, 2000), (2, 4000), (1, 8000))  # (batch, tokens)
SCALE_UP_POINTS = ((64, 16), (32, 64), (16, 256))
SCALED_AT, STEPS = 8, 16


class Reactive(FixedPolicy):
    """Moves all KV to the first instance before the first decode iteration."""

    def _migrate(self, state: SchedulerState, _: Request) -> bool:
        for request in list(state.cluster[1].ready.values()):
            ranges = state.placement.held(request.id, 1)
            state.migrate(request.id, 1, 0, ranges)
            return True  # it takes both instances
        return False


def policy_of(side: str) -> FixedPolicy:
    keepers = (0,) if side == "proactive" else (0, 1)
    kind = Reactive if side == "reactive" else FixedPolicy
    return kind((0, 1), keepers=keepers, masters=lambda _: (0,), max_prefill_tokens=16_384)


def first_two_tokens(llm: LLM, batch: int, tokens: int, seed: int) -> tuple[float, float]:
    completions = llm.generate([random_prompt(tokens, seed * 1000 + i) for i in range(batch)], fixed_output(2))
    begin = min(c.times.arrived for c in completions)
    first = max(c.times.first_token or 0.0 for c in completions) - begin
    return first, max(c.times.last_token or 0.0 for c in completions) - begin


def scale_down(llms: dict[str, LLM], rounds: int) -> dict[str, Any]:
    results = {}
    for batch, tokens in POINTS:
        times: dict[str, list[tuple[float, float]]] = {side: [] for side in llms}
        for seed in range(-1, rounds):
            for side, llm in llms.items():
                times[side].append(first_two_tokens(llm, batch, tokens, seed))
        first = {side: [t[0] for t in found[1:]] for side, found in times.items()}
        second = {side: [t[1] for t in found[1:]] for side, found in times.items()}
        found = {
            "first_token_over_none": {s: paired_ratio(first[s], first["none"]) for s in ("proactive", "reactive")},
            "reactive_over_proactive_second_token": paired_ratio(second["reactive"], second["proactive"]),
            "first_token_s": {side: summary(values) for side, values in first.items()},
            "second_token_s": {side: summary(values) for side, values in second.items()},
        }
        results[f"{batch}x{tokens}"] = found
        say(f"{batch} x {tokens}: first token, proactive over none {found['first_token_over_none']['proactive']:.3f}; "
            f"second token, reactive over proactive {found['reactive_over_proactive_second_token']:.3f}")  # fmt: skip
    return results


def decode_steps(log: Path, batch: int) -> list[float]:
    """Seconds of the decode iterations of the whole batch, in order."""
    issued: dict[int, float] = {}
    steps = []
    for record in read_event_log(log):
        if isinstance(record.event, BatchCompleted) and record.event.batch_id in issued:
            steps.append(record.now - issued[record.event.batch_id])
        for action in record.actions:
            if isinstance(action, RunBatch) and len(action.segments) == batch and action.segments[0].length == 1:
                issued[action.batch_id] = record.now
    return steps


def scale_up(batch: int, tokens: int, rounds: int) -> dict[str, Any]:
    small, first, large = [], [], []
    for seed in range(rounds + 1):
        with tempfile.TemporaryDirectory() as folder:
            log = Path(folder, "events.jsonl")
            policy = FixedPolicy(
                (0,), masters=lambda i: (0,) if i < SCALED_AT else (0, 1), max_prefill_tokens=16_384
            )
            with LLM(instances=2, threads_per_device=1, dtype="bfloat16", kv_tokens=16_384, policy=policy,
                     lookahead=False, event_log=log) as llm:  # fmt: skip
                prompts = [random_prompt(tokens, seed * 1000 + i) for i in range(batch)]
                llm.generate(prompts, fixed_output(STEPS + 1))
            steps = decode_steps(log, batch)
        small.append(statistics.median(steps[2:SCALED_AT]))
        first.append(steps[SCALED_AT])
        large.append(statistics.median(steps[SCALED_AT + 1 : STEPS]))
    found = {
        "first_over_later": paired_ratio(first, large),
        "one_master_over_two": paired_ratio(small, large),
        "one_master_s": summary(small), "first_with_two_s": summary(first), "two_masters_s": summary(large),
    }  # fmt: skip
    say(
        f"{batch} x {tokens}: the first iteration with two masters takes "
        f"{1e3 * found['first_with_two_s']['median']:.1f} ms, {found['first_over_later']:.3f} of a later one; "
        f"one master takes {found['one_master_over_two']:.2f} of two"
    )
    return found


def main() -> None:
    options = arguments(__doc__ or "", [("rounds", 3, "rounds")])
    common: dict[str, Any] = {
        "instances": 2, "threads_per_device": 1, "dtype": "bfloat16", "kv_tokens": 16_384, "prefix_cache": False,
    }  # fmt: skip
    up = {f"{batch}x{tokens}": scale_up(batch, tokens, options.rounds) for batch, tokens in SCALE_UP_POINTS}
    llms = {side: LLM(policy=policy_of(side), **common) for side in ("none", "proactive", "reactive")}
    try:
        down = scale_down(llms, options.rounds)
    finally:
        for llm in llms.values():
            llm.close()
    save("scaling", {"scale_down": down, "scale_up": up})


if __name__ == "__main__":
    main()
