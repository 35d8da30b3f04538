"""Checks of vLLM's real schedulers without a model: what would sample is a stand-in, and time is counted, not measured.

The CPU build never schedules asynchronously, so that one step is made while another runs is tried here alone.
"""

from __future__ import annotations

import random
import statistics
import time
from collections import defaultdict, deque
from concurrent.futures import Future
from typing import Any

from checks import LONGSPAN, MOST_STEPS, Crowd, count_preemptions, what_is_left

_COST = (0.01, 1e-4, 1e-9, 1e-4)  # seconds of a step, of a token of a prompt, of a pair, of a decode


class Clock:
    """Stands for the module `time` where Longspan reads it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


class Engine:
    """What vLLM's engine core does with a scheduler: two steps are on their way if it schedules asynchronously."""

    def __init__(self, model: str, is_ours: bool, is_async: bool, blocks: int, seats: int, seed: int = 0) -> None:
        from vllm.engine.arg_utils import EngineArgs
        from vllm.utils.gc_utils import freeze_gc_heap
        from vllm.v1.structured_output import StructuredOutputManager

        options = {"scheduler_cls": LONGSPAN} if is_ours else {}
        config = EngineArgs(
            model, dtype="float32", max_model_len=2048, skip_tokenizer_init=True, max_num_seqs=seats, block_size=16,
            max_num_batched_tokens=512, enforce_eager=True, **options,
        ).create_engine_config()  # fmt: skip
        config.scheduler_config.async_scheduling = is_async
        config.cache_config.num_gpu_blocks = blocks
        self.clock, self.draw, self.depth = Clock(), random.Random(seed), 1 + is_async
        self.steps: deque[tuple[Any, list[tuple[str, bool]]]] = deque()
        if is_ours:
            from longspan.integrations.vllm import scheduler

            scheduler.time = self.clock  # type: ignore[assignment]  # in the module's place
        made = config.scheduler_config.get_scheduler_cls()
        self.scheduler = made(
            vllm_config=config, kv_cache_config=_one_group(blocks), log_stats=True, block_size=16, hash_block_size=16,
            structured_output_manager=StructuredOutputManager(config),
        )  # fmt: skip
        self._hash = _hasher(config)
        freeze_gc_heap()  # as vLLM's engine core does
        self.cpu_s: list[float] = []

    def add(self, name: str, prompt: list[int], max_tokens: int, priority: int = 0, grammar: Any = None) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, structured_outputs=grammar)
        self.scheduler.add_request(
            Request(name, prompt, params, None, arrival_time=self.clock.now, priority=priority, block_hasher=self._hash)
        )

    def step(self) -> list[tuple[str, int, bool]]:
        """Make a step, or wait for the oldest; return (request, tokens, whether it has ended) of what that brought."""
        if self.scheduler.has_requests() and len(self.steps) < self.depth:
            begun = time.thread_time()
            output = self.scheduler.schedule()
            self.cpu_s.append(time.thread_time() - begun)
            emits = [
                (name, not self.scheduler.requests[name].is_prefill_chunk) for name in output.num_scheduled_tokens
            ]
            self.steps.append((output, emits))
            if len(self.steps) < self.depth and output.num_scheduled_tokens:
                return []
        if not self.steps:
            return []
        return self._finish(*self.steps.popleft())

    def _finish(self, output: Any, emits: list[tuple[str, bool]]) -> list[tuple[str, int, bool]]:
        from vllm.v1.outputs import ModelRunnerOutput

        prefills = [count for count in output.num_scheduled_tokens.values() if count > 1]
        fixed, token, pair, decode = _COST
        work_s = sum(prefills) * token + sum([count * count for count in prefills]) * pair
        self.clock.now += fixed + work_s + decode * (len(emits) - len(prefills))
        sampled = [[self.draw.randrange(10, 900)] if does else [] for _, does in emits]
        names = [name for name, _ in emits]
        places = {name: place for place, name in enumerate(names)}
        begun = time.thread_time()
        outputs = self.scheduler.update_from_output(
            output, ModelRunnerOutput(req_ids=names, req_id_to_index=places, sampled_token_ids=sampled)
        )
        self.cpu_s[-1] += time.thread_time() - begun
        return [
            (each.request_id, len(each.new_token_ids), each.finish_reason is not None)
            for one in outputs.values()
            for each in one.outputs
        ]


def _one_group(blocks: int) -> Any:
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec

    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=1, dtype=torch.float32)
    return KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=[], kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)]
    )


def _hasher(config: Any) -> Any:
    from vllm.utils.hashing import get_hash_fn_by_name
    from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash

    function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
    init_none_hash(function)
    return get_request_block_hasher(16, function)


def pipelined(model: str, is_async: bool, many: int, aborts: float, seed: int = 0) -> dict[str, Any]:
    """Serve many random requests, of which a part is aborted at any time, with too little memory for all."""
    from vllm.v1.request import RequestStatus

    engine = Engine(model, True, is_async, blocks=120, seats=24, seed=seed)
    scheduler, crowd = engine.scheduler, Crowd(many, aborts, seed)
    draw, preemptions, step = crowd.draw, count_preemptions(scheduler), 0
    got: dict[str, int] = defaultdict(int)
    while not crowd.is_over or scheduler.has_requests() or engine.steps:
        while len(crowd.wanted) < many and crowd.num_alive < 60 and draw.random() < 0.5:
            name, wanted = crowd.come(step, 40)
            prompt = [7] * draw.choice((0, 64, 320)) + [
                draw.randrange(10, 900) for _ in range(draw.choice((5, 60, 300, 1200)))
            ]
            engine.add(name, prompt, wanted, draw.choice((0, 0, 0, 1)))
        for name in crowd.go(step):
            scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
        for name, count, is_end in engine.step():
            got[name] += count
            if is_end:
                crowd.end(name, got[name])
        engine.clock.now += 1e-4
        step += 1
        if step >= MOST_STEPS:
            break
    return {
        "class": type(scheduler).__name__, "short": crowd.short(), "decided": scheduler._decider.is_ready,
        "aborted": len(crowd.aborted), "preemptions": len(preemptions), "steps": step, **what_is_left(scheduler),
    }  # fmt: skip


class _Compiling(Future[Any]):
    """Stands for a grammar that is ready when it is asked for the fourth time, and allows everything."""

    asked = 0

    def done(self) -> bool:
        self.asked += 1
        return self.asked >= 4

    def result(self, timeout: float | None = None) -> Any:
        return self

    def accept_tokens(self, name: str, tokens: list[int]) -> bool:
        return True

    def is_terminated(self) -> bool:
        return False


def held_up(model: str, most_steps: int = 400) -> dict[str, Any]:
    """Find out whether a request is served whose grammar is ready first when vLLM asks, and that lacks memory then.

    It is asked once before each step, and by vLLM in the third, which has a part of its budget left. Later there always
    are others that run.
    """
    from vllm.sampling_params import StructuredOutputsParams

    engine = Engine(model, True, False, blocks=76, seats=8)
    scheduler, draw = engine.scheduler, engine.draw

    def prompt(length: int) -> list[int]:
        return [draw.randrange(10, 900) for _ in range(length)]

    engine.add("hog", prompt(1100), 40)
    engine.add("held up", prompt(200), 4, grammar=StructuredOutputsParams(regex="a+"))
    scheduler.requests["held up"].structured_output_request.grammar = _Compiling()
    alive, was_ready = 0, False
    for step in range(most_steps):
        if scheduler._decider.is_ready and alive < 3:
            was_ready, alive = True, alive + 1
            engine.add(str(step), prompt(20), 30)
        for name, _, is_end in engine.step():
            if is_end and name == "held up":
                return {"served": True, "steps": step, "had_to_wait": was_ready}
            alive -= is_end and name != "hog"
    return {"served": False, "steps": most_steps, "had_to_wait": was_ready}


def deciding(model: str, is_ours: bool, running: int, waiting: int, seats: int, steps: int = 300) -> dict[str, Any]:
    """Return the thread's CPU time of a step, with so many that decode, and so many that wait; seconds."""
    engine = Engine(model, is_ours, False, blocks=20_000, seats=seats)
    draw = engine.draw

    def prompt(length: int) -> list[int]:
        return [draw.randrange(10, 900) for _ in range(length)]

    for number in range(running):
        engine.add(f"r{number}", prompt(50), 2 * steps + 900)
    while len(engine.scheduler.running) < running or any(r.is_prefill_chunk for r in engine.scheduler.running):
        engine.step()
    for number in range(waiting):
        engine.add(f"w{number}", prompt(draw.randrange(20, 1000)), 2 * steps)
    for _ in range(5):
        engine.step()
    engine.cpu_s.clear()
    scheduler = engine.scheduler
    waits = []
    for _ in range(steps):
        engine.step()
        waits.append(len(scheduler.waiting))
    cuts = statistics.quantiles(engine.cpu_s, n=20)
    return {"mean": statistics.mean(engine.cpu_s), "median": statistics.median(engine.cpu_s), "p95": cuts[-1],
            "waiting": min(waits), "decided": scheduler._decider.is_ready if is_ours else None}  # fmt: skip
