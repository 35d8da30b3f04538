"""`longspan bench latency` and `throughput`: the engine in this program, without HTTP."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from longspan import LLM, SamplingParams
from longspan.config import EngineConfig, check_count, instances_in_words
from longspan.engine.phase_display import shown_phases
from longspan.entrypoints.bench.options import MOST_REQUESTS, LengthOptions, check_writable
from longspan.entrypoints.bench.requests import fitted, make_lengths
from longspan.entrypoints.bench.tables import console, distribution_table, origin
from longspan.metrics.request_metrics import Distribution
from longspan.outputs import Completion
from longspan.workload.traces import TraceRequest


@dataclass(frozen=True, slots=True)
class Iteration:
    """One batch, seconds. step_s: of a decode step with the whole batch; None for outputs of one token."""

    e2e_s: float
    ttft_s: float
    step_s: float | None
    output_tokens_per_s: float


def latency(
    engine: EngineConfig, *, input_len: int, output_len: int, batch_size: int, iterations: int, json_path: Path | None
) -> int:
    """Run the same batch of random prompts again and again, after one that does not count."""
    for name, value in (("input_len", input_len), ("output_len", output_len), ("batch_size", batch_size),
                        ("iterations", iterations)):
        check_count(name, value, high=MOST_REQUESTS)
    check_writable(json_path)
    lengths = [TraceRequest(None, input_len, output_len)] * batch_size
    with _start(engine) as llm:
        engine = llm.engine.config
        measured = [_measure_iteration(llm, lengths, seed) for seed in range(iterations + 1)][1:]
    figures = {
        "e2e_s": Distribution.of(each.e2e_s for each in measured),
        "ttft_s": Distribution.of(each.ttft_s for each in measured),
        "decode_step_s": Distribution.of(each.step_s for each in measured),
    }
    rate = Distribution.of(each.output_tokens_per_s for each in measured)
    assert rate is not None
    out = console()
    out.print(
        f"{engine.model} on {instances_in_words(engine.num_instances)}: {batch_size} x {input_len} prompt and "
        f"{output_len} output tokens, {iterations} iterations", markup=False,
    )  # fmt: skip
    names = {"e2e_s": "e2e", "ttft_s": "TTFT", "decode_step_s": "decode step"}
    out.print(distribution_table("ms", [(names[name], figure) for name, figure in figures.items()]))
    out.print(f"{rate.p50:,.1f} output tokens/s (median)")
    shape = {"input_len": input_len, "output_len": output_len, "batch_size": batch_size, "iterations": iterations}
    _write_json(json_path, "latency", engine, shape, {
        **{name: asdict(figure) if figure else None for name, figure in figures.items()},
        "output_tokens_per_s": asdict(rate),
        "iterations": [asdict(each) for each in measured],
    })  # fmt: skip
    return 0


def throughput(engine: EngineConfig, lengths: LengthOptions, *, num_prompts: int, json_path: Path | None) -> int:
    """Send all prompts at once; tell how fast they are through."""
    check_count("num_prompts", num_prompts, high=MOST_REQUESTS)
    check_writable(json_path)
    requests = fitted(list(islice(make_lengths(lengths), num_prompts)), lengths)
    with _start(engine) as llm:
        engine = llm.engine.config
        _generate(llm, requests[:1], lengths.seed + 1)  # what is done on first use only
        prompts, params = _prompts(llm, requests, lengths.seed)
        begin = time.perf_counter()
        completions = llm.generate(prompts, params)
        seconds = time.perf_counter() - begin
    prompt_tokens = sum(len(completion.prompt_token_ids) for completion in completions)
    output_tokens = sum(len(completion.token_ids) for completion in completions)
    results = {
        "seconds": seconds,
        "num_requests": len(completions),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "requests_per_s": len(completions) / seconds,
        "prompt_tokens_per_s": prompt_tokens / seconds,
        "output_tokens_per_s": output_tokens / seconds,
    }
    out = console()
    out.print(
        f"{engine.model} on {instances_in_words(engine.num_instances)}: {len(completions)} requests with "
        f"{prompt_tokens:,} prompt and {output_tokens:,} output tokens in {seconds:.2f} s", markup=False,
    )  # fmt: skip
    out.print(
        f"{results['requests_per_s']:.2f} requests/s, {results['prompt_tokens_per_s']:,.1f} prompt tokens/s, "
        f"{results['output_tokens_per_s']:,.1f} output tokens/s"
    )
    shape = {
        "trace": [str(path) for path in lengths.trace], "input_len": lengths.input_len,
        "output_len": lengths.output_len, "max_total_tokens": lengths.max_total_tokens, "fit": lengths.fit,
        "seed": lengths.seed,
    }  # fmt: skip
    _write_json(json_path, "throughput", engine, shape, results)
    return 0


def _start(engine: EngineConfig) -> LLM:
    settings = asdict(engine)
    with shown_phases() as on_phase:
        return LLM(settings.pop("model"), on_phase=on_phase, **settings)


def _measure_iteration(llm: LLM, lengths: Sequence[TraceRequest], seed: int) -> Iteration:
    """Times are the engine's own. The decode step is that of the request that started last: until it ends, all
    others decode beside it.
    """
    completions = _generate(llm, lengths, seed)
    begin = min(completion.times.arrived for completion in completions)
    first, last = (max(times) for times in zip(*map(_token_times, completions), strict=True))
    steps = min(len(completion.token_ids) for completion in completions) - 1
    return Iteration(
        e2e_s=last - begin,
        ttft_s=first - begin,
        step_s=(last - first) / steps if steps else None,
        output_tokens_per_s=sum(len(completion.token_ids) for completion in completions) / (last - begin),
    )


def _token_times(completion: Completion) -> tuple[float, float]:
    """Of the first and the last token."""
    first, last = completion.times.first_token, completion.times.last_token
    assert first is not None and last is not None
    return first, last


def _generate(llm: LLM, lengths: Sequence[TraceRequest], seed: int) -> list[Completion]:
    prompts, params = _prompts(llm, lengths, seed)
    return llm.generate(prompts, params)


def _prompts(llm: LLM, lengths: Sequence[TraceRequest], seed: int) -> tuple[list[list[int]], list[SamplingParams]]:
    """Random token ids; greedy, and exactly so many tokens."""
    draw = random.Random(seed)
    vocab_size = llm.engine.vocab_size
    prompts = [[draw.randrange(vocab_size) for _ in range(request.num_prompt_tokens)] for request in lengths]
    params = [
        SamplingParams(temperature=0.0, max_tokens=request.num_output_tokens, ignore_eos=True) for request in lengths
    ]
    return prompts, params


def _write_json(
    path: Path | None, benchmark: str, engine: EngineConfig, shape: dict[str, Any], results: dict[str, Any]
) -> None:
    if path is not None:
        record = {"benchmark": benchmark, **origin(), "engine": asdict(engine), "settings": shape, "results": results}
        path.write_text(json.dumps(record, indent=1, default=str) + "\n")
