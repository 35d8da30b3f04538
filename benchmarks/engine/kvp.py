"""KV-cache parallelism: a decode step with a long context on two instances of one thread, against one.

One request with a long prompt decodes with its KV on both instances, then with all of it on the first one, and so on in
turn; KV migrates in between. Its master is the first instance throughout. TPOT is the time between two tokens of the
same phase. The real model at 8k, where reading the weights takes most of a step; and models of a few layers with random
weights at 64k and 128k, where attention does: one with SmolLM2's three query heads to a KV head, and one with eight, as
Llama-3-70B has them. Vocabularies are cut so that the head has its usual share of the weights.

Two instances on one machine share its memory. So beside it is measured how fast one core reads it and how fast two do:
that bounds what a second shard can give while the kernel waits for memory.

    python -m benchmarks.engine.kvp [--contexts 65536,131072] [--phases 8]
"""

from __future__ import annotations

import functools
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import (
    arguments,
    fixed_output,
    interleaved,
    paired_ratio,
    random_prompt,
    save,
    say,
    summary,
    timed,
)
from benchmarks.engine.random_model import RandomModel
from benchmarks.kernels.machine_peak import MachinePeak
from longspan import LLM
from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.events import BatchCompleted, KVMigrated
from longspan.core.news import News
from longspan.core.policies.fixed import FixedPolicy
from longspan.core.state import SchedulerState
from longspan.metrics.event_log import read_event_log
from longspan.native.isa import available_isas

REAL_CONTEXT = 7900  # and the tokens that it decodes: as much as the model takes
SHAPES = {"3 query heads to a KV head": RandomModel(vocab=6144),
          "8 query heads to a KV head": RandomModel(heads=16, kv_heads=2, vocab=6144)}  # fmt: skip
STEPS = 16
READ_BYTES, READ_ROUNDS = 400_000_000, 5
WHOLE_PROMPT = 1 << 30


class AlternatingShards(FixedPolicy):
    """Prefill on both instances, which keep half of the KV each; after `steps` tokens all of it moves onto the first,
    after as many more its second half moves back, and so on. For one request at a time.
    """

    name = "alternating_shards"

    def __init__(self, steps: int) -> None:
        super().__init__((0, 1), masters=lambda _: (0,), max_prefill_tokens=WHOLE_PROMPT)
        self.steps = steps

    def schedule(self, state: SchedulerState, news: News, now: float) -> None:
        self._moves = any(len(state.placement.holders(r.id)) != self._shards(r) for r in state.with_kv())
        super().schedule(state, news, now)

    def looks_ahead(self, state: SchedulerState, now: float) -> bool:
        return not self._moves and super().looks_ahead(state, now)

    def _shards(self, request: Request) -> int:
        return 2 - (max(request.num_output_tokens, 1) - 1) // self.steps % 2

    def _migrate(self, state: SchedulerState, request: Request) -> bool:
        shards = len(state.placement.holders(request.id))
        if shards == self._shards(request):
            return False
        if shards == 2:
            state.migrate(request.id, 1, 0, state.placement.held(request.id, 1))
        else:
            state.migrate(request.id, 0, 1, [(request.num_prompt_tokens // 2, request.num_prompt_tokens)])
        return True


def decode_times(log: Path) -> Iterator[tuple[int, float]]:
    """(shards, time) of each decode step's completion; (0, time) where KV has moved."""
    shards: dict[int, int] = {}
    for record in read_event_log(log):
        if isinstance(record.event, KVMigrated):
            yield 0, record.now
        elif isinstance(record.event, BatchCompleted) and record.event.batch_id in shards:
            yield shards[record.event.batch_id], record.now
        for action in record.actions:
            if isinstance(action, RunBatch) and action.segments[0].length == 1:
                shards[action.batch_id] = len(action.segments[0].context)


def phases(log: Path) -> dict[int, list[float]]:
    """For each number of shards the median seconds between two tokens, phase by phase."""
    gaps: list[tuple[int, list[float]]] = []
    previous: tuple[int, float] = (0, 0.0)
    for shards, now in decode_times(log):
        if shards and shards != previous[0]:
            gaps.append((shards, []))
        elif shards:
            gaps[-1][1].append(now - previous[1])
        previous = (shards, now)
    found: dict[int, list[float]] = {1: [], 2: []}
    for shards, seconds in gaps:
        if seconds:
            found[shards].append(statistics.median(seconds))
    return found


def measure(model: str, prompt: list[int], num_phases: int) -> dict[str, Any]:
    """num_phases: of each number of shards; the first of each does not count."""
    tokens = 2 * STEPS * (num_phases + 1)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "events.jsonl")
        with LLM(
            model, instances=2, threads_per_device=1, dtype="bfloat16", quantization="none",
            kv_tokens=len(prompt) + tokens, policy=AlternatingShards(STEPS), event_log=log,
        ) as llm:  # fmt: skip
            (completion,) = llm.generate([prompt], fixed_output(tokens))
        found = {shards: seconds[1 : num_phases + 1] for shards, seconds in phases(log).items()}
    times = completion.times
    assert times.first_token is not None
    return {
        "times_as_fast": paired_ratio(found[1], found[2]),
        "prefill_s": times.first_token - times.arrived,
        "tpot_s": {str(shards): summary(seconds) for shards, seconds in found.items()},
    }


def memory() -> dict[str, Any]:
    """GB/s that one core reads, and two together; the better of two ways in each round."""
    peak = MachinePeak(available_isas()[0])
    data = torch.randn(READ_BYTES // 2, dtype=torch.bfloat16)

    def read(threads: int) -> float:
        ways = (functools.partial(peak.read, data, threads, prefetched=prefetched) for prefetched in (False, True))
        return min(map(timed, ways))

    seconds = interleaved({"1": lambda _: read(1), "2": lambda _: read(2)}, READ_ROUNDS)
    return {
        "two_cores_over_one": paired_ratio(seconds["1"], seconds["2"]),
        "gigabytes_per_second": {n: READ_BYTES / statistics.median(s) / 1e9 for n, s in seconds.items()},
    }


def say_measured(what: str, found: dict[str, Any]) -> None:
    one, two = (1e3 * found["tpot_s"][shards]["median"] for shards in ("1", "2"))
    say(f"{what}: {one:.2f} ms a token on one shard, {two:.2f} on two, {found['times_as_fast']:.2f} times as fast "
        f"(prefill {found['prefill_s']:.1f} s)")  # fmt: skip


def main() -> None:
    options = arguments(
        __doc__ or "",
        [("contexts", "65536,131072", "of the models with random weights; with commas"),
         ("real-context", REAL_CONTEXT, "of the real model"), ("phases", 8, "of each number of shards"),
         ("layers", 4, "of the models with random weights"), ("name", "kvp", "name of the result")],
    )  # fmt: skip
    contexts = [int(context) for context in options.contexts.split(",")]
    results: dict[str, Any] = {"memory": memory(), "random_weights": {}}
    say(f"memory: {results['memory']}")
    prompt = random_prompt(options.real_context, seed=1)
    real = measure("smollm2-135m", prompt, options.phases)
    results["real"] = {"model": "smollm2-135m", "context": options.real_context, **real}
    say_measured(f"smollm2-135m at {options.real_context}", real)
    with ExitStack() as stack:
        for name, base in SHAPES.items():
            model = RandomModel(**{**base.facts(), "layers": options.layers})
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            model.write(folder, max(contexts) + 4 * STEPS * (options.phases + 1))
            found = {}
            for context in contexts:
                found[str(context)] = measure(str(folder), model.prompt(context, seed=1), options.phases)
                say_measured(f"{name} at {context}", found[str(context)])
            results["random_weights"][name] = {"model": model.facts(), "contexts": found}
    results["memory_after"] = memory()
    save(options.name, results)


if __name__ == "__main__":
    main()
