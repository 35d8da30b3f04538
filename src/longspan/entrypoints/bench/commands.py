"""The subcommands of `longspan bench`. Imports here stay light, as in `longspan.entrypoints.cli`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from longspan.config import EngineConfig
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions, ServeOptions
from longspan.entrypoints.toml_config import ConfigFile

bench = App(name="bench", help="Measure a server, or the engine without one.")

Flat = Parameter(name="*")
EngineOptions = Parameter(name="*", group="Engine, as for `longspan serve`")


@bench.command
def serve(
    *,
    server: Annotated[ServeOptions, Flat] = ServeOptions(),  # noqa: B008  (frozen)
    lengths: Annotated[LengthOptions, Flat] = LengthOptions(),  # noqa: B008
    arrivals: Annotated[ArrivalOptions, Flat] = ArrivalOptions(),  # noqa: B008
    config: ConfigFile = None,
) -> int:
    """Send a workload to any OpenAI-compatible server, each request on its schedule however slow the server is.

    Ctrl-C stops the run; what there is by then is printed and written.

    Args:
        server.url: Where the server is.
        server.model: Which of its models; by default the first.
        server.api_key: Sent as a bearer token; better given as LONGSPAN_BENCH_SERVE_API_KEY or OPENAI_API_KEY.
        server.max_concurrency: Requests at the server at once, others wait in the client; 0 sets no limit.
        server.timeout: A request without its whole answer after so many seconds counts as failed; by default none is
            given up.
        server.token_ids: Prompts are random token ids in this range.
        server.prompt_text_file: Prompts are passages of this text instead; lengths then hold on average.
        server.slo: What counts as good, in seconds: ttft=0.5,tpot=0.05.
        server.long_threshold: Prompts of so many tokens are long; latencies are given by class.
        server.json: Write all results, and every request, to this file.
        server.plot: Draw TTFT and TPOT by class, and TTFT over time, into this PNG file.
        lengths.trace: File with lengths, and maybe arrivals: Longspan or Azure CSV, Mooncake JSONL, plain or
            gzipped. May be given several times.
        lengths.input_len: Prompt tokens where no trace is given: 512, or 128:384 for uniform lengths.
        lengths.output_len: Output tokens where no trace is given, likewise.
        lengths.max_total_tokens: Fit prompt and output together into so many tokens.
        lengths.fit: How: clip only those that are longer, or scale all by one factor.
        lengths.seed: For everything random; the same seed is the same workload.
        arrivals.workload: How requests arrive; by default as in the trace, or Poisson without one. mixed is short
            prompts and now and then one of 7,500 tokens; medha_mix and loongserve_zipf draw lengths too, from the
            --trace files if given; chats and agents are sessions, each of whose turns goes on from the one before.
        arrivals.rate: Requests a second (default 1; mixed 0.5, and a long one for every 15 short ones); a trace with
            arrivals is stretched to it.
        arrivals.cv2: Burstiness of gamma: variance over squared mean of the gaps; 1 is Poisson.
        arrivals.long_share: Of medha_mix: the share of very long requests.
        arrivals.zipf_exponent: Of loongserve_zipf.
        arrivals.duration: Only what arrives in the first so many seconds.
        arrivals.num_requests: Only the first so many (default 100 where the workload has no end).
    """
    from longspan.entrypoints.bench.serve import serve

    return serve(lengths, arrivals, server)


@bench.command
def latency(
    model_or_path: str | None = None,
    /,
    *,
    engine: Annotated[EngineConfig, EngineOptions] = EngineConfig(),  # noqa: B008
    input_len: int = 512,
    output_len: int = 64,
    batch_size: int = 1,
    iterations: int = 5,
    json: Path | None = None,
    config: ConfigFile = None,
) -> int:
    """How long one batch takes, without a server: to the first token, a decode step, all.

    Args:
        model_or_path: As for `longspan serve`.
        input_len: Tokens of each prompt.
        output_len: Tokens of each answer.
        batch_size: Requests at once.
        iterations: How often; one more comes first and does not count.
        json: Write the results to this file.
    """
    from longspan.entrypoints.bench.offline import latency

    return latency(
        _with_model(engine, model_or_path), input_len=input_len, output_len=output_len, batch_size=batch_size,
        iterations=iterations, json_path=json,
    )  # fmt: skip


@bench.command
def throughput(
    model_or_path: str | None = None,
    /,
    *,
    engine: Annotated[EngineConfig, EngineOptions] = EngineConfig(),  # noqa: B008
    lengths: Annotated[LengthOptions, Flat] = LengthOptions(),  # noqa: B008
    num_prompts: int = 32,
    json: Path | None = None,
    config: ConfigFile = None,
) -> int:
    """How fast many requests are through that all come at once, without a server.

    Args:
        model_or_path: As for `longspan serve`.
        lengths.trace: File with lengths; the first --num-prompts of it.
        lengths.input_len: Prompt tokens where no trace is given: 512, or 128:384 for uniform lengths.
        lengths.output_len: Output tokens where no trace is given, likewise.
        lengths.max_total_tokens: Fit prompt and output together into so many tokens.
        lengths.fit: How: clip only those that are longer, or scale all by one factor.
        lengths.seed: For everything random.
        num_prompts: How many requests.
        json: Write the results to this file.
    """
    from longspan.entrypoints.bench.offline import throughput

    return throughput(_with_model(engine, model_or_path), lengths, num_prompts=num_prompts, json_path=json)


def _with_model(engine: EngineConfig, model_or_path: str | None) -> EngineConfig:
    return engine if model_or_path is None else replace(engine, model=model_or_path)
