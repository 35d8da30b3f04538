"""`longspan bench serve`: an open-loop workload against any OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from longspan.entrypoints.bench import plot
from longspan.entrypoints.bench.completion_stream import CompletionStream, error_message
from longspan.entrypoints.bench.exchange import Endpoint, exchange
from longspan.entrypoints.bench.open_loop import PATH, OpenLoop
from longspan.entrypoints.bench.options import ArrivalOptions, LengthOptions, ServeOptions, parse_range, parse_slo
from longspan.entrypoints.bench.progress import watch
from longspan.entrypoints.bench.prompts import Prompt, Prompts, TextPrompts, TokenPrompts
from longspan.entrypoints.bench.requests import make_requests
from longspan.entrypoints.bench.serve_report import ServeReport
from longspan.errors import ConfigError, LongspanError
from longspan.interrupts import stopped_by
from longspan.metrics.request_metrics import SLO
from longspan.workload.traces import TraceRequest

INTERRUPTED, FAILED = 130, 1
MODELS_TIMEOUT_S = 60.0  # for what no server has to compute
PROBE_TOKENS = 8
PROBE_CHARS = 4000  # enough text to learn how many characters a token has


class BenchError(LongspanError):
    """The server cannot be measured as it stands."""


def serve(lengths: LengthOptions, arrivals: ArrivalOptions, options: ServeOptions) -> int:
    """Runs the workload, prints what came out, writes the files; the exit code.

    Ctrl-C stops the run, and what there is by then is printed and written; then it is 130. If nothing finished, 1.

    Raises:
        LongspanError: an option, the trace or the server does not allow to begin.
    """
    if options.plot is not None:
        plot.check_available()
    requests = make_requests(lengths, arrivals)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report, interrupted = runner.run(_measure(requests, lengths, arrivals, options))
    report.print()
    if options.json is not None:
        report.write_json(options.json)
    if options.plot is not None:
        plot.write(report, options.plot)
    if interrupted:
        return INTERRUPTED
    return 0 if report.num_finished else FAILED


async def _measure(
    requests: Sequence[TraceRequest], lengths: LengthOptions, arrivals: ArrivalOptions, options: ServeOptions
) -> tuple[ServeReport, bool]:
    endpoint = Endpoint.parse(options.url, options.api_key)
    model = options.model or await _first_model(endpoint)
    prompts = await _make_prompts(endpoint, model, options, lengths.seed)
    loop = OpenLoop(
        endpoint,
        requests,
        lambda index, request: _body(model, prompts.make(index, request), request.num_output_tokens),
        options.max_concurrency,
        options.timeout,
    )
    began, cpu_began = time.monotonic(), time.process_time()
    interrupted = await _until_done_or_interrupted(loop)
    cpu_share = (time.process_time() - cpu_began) / (time.monotonic() - began)
    promises = parse_slo(options.slo)
    report = ServeReport(
        url=endpoint.url,
        model=model,
        settings={**_settings(lengths), **_settings(arrivals), **_settings(options)},
        slo=SLO(ttft_s=promises.get("ttft"), tpot_s=promises.get("tpot")) if promises else None,
        long_threshold=options.long_threshold,
        num_planned=len(requests),
        interrupted=interrupted,
        client_cpu_share=cpu_share,
        requests=loop.sent,
    )
    return report, interrupted


async def _until_done_or_interrupted(run: OpenLoop) -> bool:
    """True if Ctrl-C or SIGTERM stopped it. A second one ends the program as usual."""
    work = asyncio.create_task(run.run())
    watching = asyncio.create_task(watch(run.counts))
    try:
        with stopped_by(lambda _: work.cancel()):
            await work
    except asyncio.CancelledError:
        if not work.cancelled():
            raise
        return True
    finally:
        watching.cancel()
        await asyncio.wait({watching})
    return False


async def _first_model(endpoint: Endpoint) -> str:
    body = bytearray()
    request = endpoint.request("GET", "/v1/models")
    status = await exchange(endpoint, request, lambda _, data, __: body.extend(data), timeout_s=MODELS_TIMEOUT_S)
    try:
        if status != 200:
            key = "; give a key with --api-key" if status in (401, 403) else ""
            said = error_message(bytes(body))
            raise BenchError(f"{endpoint.url}/v1/models answers with status {status}: {said}{key}")
        return str(msgspec.json.decode(bytes(body))["data"][0]["id"])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, LookupError, TypeError) as error:
        raise BenchError(f"what answers at {endpoint.url} is not an OpenAI-compatible server") from error


async def _make_prompts(endpoint: Endpoint, model: str, options: ServeOptions, seed: int) -> Prompts:
    """Also asks for one token, so that what the server refuses is known before the run, and its paths are warm."""
    if options.prompt_text_file is None:
        low, high = parse_range("token_ids", options.token_ids)
        tokens = TokenPrompts(low, high, seed)
        await _probe(endpoint, model, tokens.make(0, TraceRequest(None, PROBE_TOKENS, 1)), options.timeout)
        return tokens
    text = _read_text(options.prompt_text_file)
    passage = text[:PROBE_CHARS]
    num_tokens = await _probe(endpoint, model, passage, options.timeout)
    if not num_tokens:
        raise BenchError("the server does not count prompt tokens (usage): measure it with token ids instead of text")
    return TextPrompts(text, len(passage) / num_tokens, seed)


async def _probe(endpoint: Endpoint, model: str, prompt: Prompt, timeout_s: float | None) -> int | None:
    """The prompt's length in tokens, as the server counts it."""
    stream = CompletionStream()
    request = endpoint.request("POST", PATH, _body(model, prompt, 1))
    status = await exchange(endpoint, request, stream.feed, timeout_s)
    stream.end(time.monotonic())
    if status != 200 or stream.error is not None:
        raise BenchError(f"{endpoint.url}{PATH} refuses a first request (status {status}): {stream.error}")
    return stream.num_prompt_tokens


def _body(model: str, prompt: Prompt, num_output_tokens: int) -> bytes:
    return msgspec.json.encode(
        {
            "model": model,
            "prompt": prompt,
            "max_tokens": num_output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )


def _read_text(path: Path) -> str:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt_text_file {path} cannot be read: {error}") from error
    if not text.strip():
        raise ConfigError(f"prompt_text_file {path} is empty")
    return text


def _settings(options: LengthOptions | ArrivalOptions | ServeOptions) -> dict[str, Any]:
    """As given, without secrets."""
    settings: dict[str, Any] = msgspec.to_builtins(options, enc_hook=str)
    settings.pop("api_key", None)
    return settings
