"""Checks with whole engines: vLLM as it is, with and without the scheduler class."""

from __future__ import annotations

import random
import time
from typing import Any

LONGSPAN = "longspan.integrations.vllm.LongspanScheduler"
MOST_STEPS = 100_000


def engine(model: str, is_ours: bool, **options: Any) -> Any:
    import vllm

    if is_ours:
        options["scheduler_cls"] = LONGSPAN
    return vllm.LLM(model, dtype="float32", enforce_eager=True, seed=0, **options).llm_engine


def scheduler_of(engine: Any) -> Any:
    return engine.engine_core.engine_core.scheduler


def what_is_left(scheduler: Any) -> dict[str, Any]:
    """Blocks that nobody gave back, and requests that anybody still knows."""
    pool = scheduler.kv_cache_manager.block_pool
    decider = getattr(scheduler, "_decider", None)
    known = 0
    if decider is not None:
        view, policy = decider.view, decider.policy
        feedback = policy.known(view).feedback
        known = sum(map(len, (view.requests, view.decodes, view.prefills, view.placement, view.waiting,
                              view.placement.found, policy._unserved, policy._hopeless, policy._sharing._tags,
                              policy._promises._open, feedback._issued, feedback._token_at, feedback.first_at)))
    return {
        "blocks": pool.num_gpu_blocks - 1 - pool.get_num_free_blocks(), "requests": len(scheduler.requests),
        "running": len(scheduler.running), "waiting": len(scheduler.waiting), "known": known,
    }  # fmt: skip


def tokens(model: str, is_ours: bool, seed: int = 0, rounds: int = 3, speculative: bool = False) -> dict[str, Any]:
    """Serve prompts that share beginnings, some with grammars, some of them aborted; return who got which tokens.

    The first rounds teach what steps cost, so that all of the last is decided by the policy.
    """
    options: dict[str, Any] = {"max_model_len": 4096, "enable_prefix_caching": True}
    if speculative:
        options["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
    served = engine(model, is_ours, **options)
    draw = random.Random(seed)
    common = [draw.randrange(1000, 40_000) for _ in range(1024)]
    got: dict[str, list[int]] = {}
    gone: list[str] = []
    for number in range(rounds):
        aborted = {}
        for place in range(12):
            prompt = common[: draw.choice((0, 256, 1024))]
            prompt = [*prompt, *(draw.randrange(1000, 40_000) for _ in range(draw.choice((20, 150, 900))))]
            if speculative:
                prompt = prompt[:40] * 6
            has_grammar = place % 4 == 1 and not speculative
            served.add_request(f"{number}-{place}", {"prompt_token_ids": prompt}, _greedy(24, has_grammar))
            if place % 5 == 3:
                aborted[draw.randrange(2, 12)] = f"{number}-{place}"
            got[f"{number}-{place}"] = []
        for step in range(MOST_STEPS):
            if not served.has_unfinished_requests():
                break
            if step in aborted:
                served.abort_request([aborted[step]])
                gone.append(aborted[step])
            got |= {output.request_id: list(output.outputs[0].token_ids) for output in served.step()}
    scheduler = scheduler_of(served)
    decided = scheduler._decider.is_ready if is_ours else None
    return {"tokens": got, "gone": gone, "decided": decided, **what_is_left(scheduler)}


def _greedy(max_tokens: int, has_grammar: bool = False, **more: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    grammar = StructuredOutputsParams(regex=r"[a-d]{3} [0-9]{4}") if has_grammar else None
    return SamplingParams(
        temperature=0.0, max_tokens=max_tokens, ignore_eos=grammar is None, structured_outputs=grammar,
        output_kind=RequestOutputKind.CUMULATIVE, **more,
    )  # fmt: skip


class Crowd:
    """Small random requests, of which a part is aborted at any time."""

    def __init__(self, many: int, aborts: float, seed: int) -> None:
        self.many, self.aborts, self.draw = many, aborts, random.Random(seed)
        self.wanted: dict[str, int] = {}  # tokens
        self.got: dict[str, int] = {}  # of those that have ended
        self.aborted: set[str] = set()
        self._doomed: dict[str, int] = {}  # by when they are aborted, if they have not ended

    @property
    def is_over(self) -> bool:
        return len(self.got) == self.many

    @property
    def num_alive(self) -> int:
        return len(self.wanted) - len(self.got)

    def short(self) -> dict[str, Any]:
        """Those that were not aborted, and got another number of tokens than they wanted."""
        whole = self.wanted.keys() - self.aborted
        return {name: self.got.get(name) for name in whole if self.got.get(name) != self.wanted[name]}

    def come(self, step: int, most_tokens: int) -> tuple[str, int]:
        """Return the next one's name, and how many tokens it wants."""
        name = str(len(self.wanted))
        self.wanted[name] = self.draw.randint(1, most_tokens)
        if self.draw.random() < self.aborts:
            self._doomed[name] = step + self.draw.randrange(20)
        return name, self.wanted[name]

    def go(self, step: int) -> list[str]:
        """Return who is aborted now."""
        names = [name for name, at in self._doomed.items() if at <= step]
        for name in names:
            del self._doomed[name]
        gone = [name for name in names if name not in self.got]
        self.aborted.update(gone)
        self.got |= dict.fromkeys(gone, 0)
        return gone

    def end(self, name: str, tokens: int) -> None:
        if name not in self.aborted:
            self.got[name] = tokens


def storm(model: str, is_ours: bool, many: int, aborts: float, seed: int = 0, log: str = "") -> dict[str, Any]:
    """Serve many small requests, of which a part is aborted at any time, with too little memory for all."""
    options: dict[str, Any] = {"additional_config": {"longspan": {"event_log": log}}} if log else {}
    served = engine(
        model, is_ours, max_model_len=512, skip_tokenizer_init=True, max_num_seqs=16, block_size=32,
        num_gpu_blocks_override=48, max_num_batched_tokens=256, scheduling_policy="priority", **options,
    )  # fmt: skip
    scheduler, crowd = scheduler_of(served), Crowd(many, aborts, seed)
    draw, preemptions, begun, step = crowd.draw, count_preemptions(scheduler), time.monotonic(), 0
    while not crowd.is_over or scheduler.has_requests():
        while len(crowd.wanted) < many and crowd.num_alive < 60:
            name, wanted = crowd.come(step, 12)
            length = draw.choice((5, 90, 400))
            prompt = [7] * draw.choice((0, 32, 64)) + [draw.randrange(10, 900) for _ in range(length)]
            params = _greedy(wanted, detokenize=False, extra_args={"ttft_slo_ms": draw.choice((1, 1e3, "x"))})
            served.add_request(name, {"prompt_token_ids": prompt}, params, priority=draw.choice((0, 0, 1)))
        if gone := crowd.go(step):
            served.abort_request(gone)
        for output in served.step():
            if output.finished:
                crowd.end(output.request_id, len(output.outputs[0].token_ids))
        step += 1
        if step >= MOST_STEPS:
            break
    found = {
        "short": crowd.short(), "aborted": len(crowd.aborted), "seconds": time.monotonic() - begun, "steps": step,
        "preemptions": len(preemptions), **what_is_left(scheduler),
    }  # fmt: skip
    if is_ours:
        found["decided"] = scheduler._decider.is_ready
        scheduler.shutdown()
    return found


def count_preemptions(scheduler: Any) -> list[str]:
    """Return a list to which everybody comes who loses its KV."""
    found: list[str] = []
    preempt = scheduler._preempt_request

    def counted(request: Any, *args: Any, **kwargs: Any) -> None:
        found.append(request.request_id)
        preempt(request, *args, **kwargs)

    scheduler._preempt_request = counted
    return found


def refused(model: str, **options: Any) -> dict[str, str]:
    """Start an engine that cannot go with the class; return what it says."""
    try:
        engine(model, True, max_model_len=512, skip_tokenizer_init=True, **options)
    except Exception as error:
        return {"error": str(error)}
    return {"error": ""}
