"""Metrics in Prometheus' text format, under vLLM's names: its dashboards and routers read ours unchanged.

Histograms and token counters are fed by what each request gives back; gauges are read when scraped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.openmetrics.exposition import ALLOWUTF8

from longspan.core.events import FinishReason
from longspan.core.policies.longspan.promise import size_class
from longspan.metrics.engine_collector import LABELS, EngineCollector
from longspan.metrics.iterations import RATIO_BUCKETS
from longspan.metrics.stored_responses import StoredResponses, StoredResponsesCollector
from longspan.metrics.token_metrics import ITL_BUCKETS, TokenMetrics
from longspan.outputs import EngineStats, Quote, RequestOutput

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = "application/openmetrics-text"
ENGINE = "0"

Ending = FinishReason | Literal["error"]

SOURCES = ("local_compute", "local_cache_hit", "external_kv_transfer")
TURNED_AWAY = ("rate_limit_exceeded", "overloaded")
METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"}
HTTP_BUCKETS = (0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
REQUEST_HISTOGRAMS = (
    ("prefill_time_seconds", "First scheduled to first token.", "s"),
    ("decode_time_seconds", "First token to last token.", "s"),
    ("inference_time_seconds", "First scheduled to last token.", "s"),
    ("max_num_generation_tokens", "Tokens of the longest choice of a prompt.", "tokens"),
    ("params_max_tokens", "Tokens that a request may generate.", "tokens"),
    ("prefill_kv_computed_tokens", "Prompt tokens that were computed for a request.", "tokens"),
)
"""Of requests that end by themselves; vLLM's names, less what is common to them."""

# vLLM's own bounds, so that panels written for them line up.
TTFT_BUCKETS = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
LATENCY_BUCKETS = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
)  # fmt: skip


class ServerMetrics:
    """All metrics of one server, in a registry of its own."""

    def __init__(
        self,
        *,
        model_name: str,
        max_model_len: int,
        stats: Callable[[], EngineStats],
        error: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Take what to count.

        error: why the engine is dead, if it is: then nothing runs or waits, whatever the stats say.
        """
        self.registry = CollectorRegistry()
        labels = self._labels = (model_name, ENGINE)
        self.of_requests: dict[str, Histogram] = {}

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, LABELS, registry=self.registry).labels(*labels)

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(name, text, LABELS, registry=self.registry, buckets=buckets).labels(*labels)

        def counter_of(name: str, text: str, *more: str) -> Counter:
            return Counter(name, text, (*LABELS, *more), registry=self.registry)

        self.prompt_tokens = counter("vllm:prompt_tokens", "Prompt tokens prefilled.")
        self.tokens = TokenMetrics(labels)
        self.registry.register(self.tokens)
        success = Counter(
            "vllm:request_success",
            "Requests that ended.",
            (*LABELS, "finished_reason"),
            registry=self.registry,
        )
        self.request_success: dict[Ending, Counter] = {
            reason: success.labels(*labels, reason) for reason in (*get_args(FinishReason), "error")
        }
        sources = counter_of("vllm:prompt_tokens_by_source", "Prompt tokens, by where their KV came from.", "source")
        self.computed, self.found, _ = [sources.labels(*labels, source) for source in SOURCES]
        rejected = counter_of("vllm:admission_rejections", "Requests turned away for the load, by the code.", "reason")
        self._rejections = {code: rejected.labels(*labels, code) for code in TURNED_AWAY}
        self.requests_refused = Counter(
            "longspan:requests_refused",
            "Requests answered with an error, by the error's code.",
            (*LABELS, "code"),
            registry=self.registry,
        )
        self.ttft = histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS)
        self.e2e = histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", LATENCY_BUCKETS)
        self.queue = histogram(
            "vllm:request_queue_time_seconds", "Arrival to first scheduled.", LATENCY_BUCKETS
        )
        sizes = token_buckets(max_model_len)
        self.request_prompt_tokens = histogram(
            "vllm:request_prompt_tokens", "Prompt tokens a request.", sizes
        )
        self.request_generation_tokens = histogram(
            "vllm:request_generation_tokens", "Generated tokens a request.", sizes
        )
        self._promises = counter_of(
            "longspan:promises", "First tokens, by whether they came when they were promised.", "kept"
        )
        self._quotes = counter_of(
            "longspan:quotes", "First tokens, by whether they came within the 95 % estimate at arrival.", "kept"
        )
        self._goals = counter_of(
            "longspan:goals", "Requests, by whether a latency met its goal.", "goal", "prompt", "met"
        )
        self.quote_ratio = histogram(
            "longspan:quote_ratio", "Arrival to first token, divided by its median estimate at arrival.", RATIO_BUCKETS
        )
        self.http = HttpMetrics(self.registry)
        for name, text, sort in REQUEST_HISTOGRAMS:
            self.of_requests[name] = histogram(f"vllm:request_{name}", text, LATENCY_BUCKETS if sort == "s" else sizes)
        few = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)
        self.of_requests["params_n"] = histogram("vllm:request_params_n", "Choices a prompt.", few)
        text = "Times that a request's KV was dropped."
        self.of_requests["num_preemptions"] = histogram("vllm:request_num_preemptions", text, (0.0, *few))
        text = "Token to next token, the mean of a request; none of one token."
        self.of_requests["time_per_output_token_seconds"] = histogram(
            "vllm:request_time_per_output_token_seconds", text, ITL_BUCKETS
        )
        self.registry.register(EngineCollector(labels, stats, error))

    def arrive(self) -> Arrival:
        """Count one call of a client that asks for text."""
        return Arrival(self)

    def watch_responses(self, stored: StoredResponses) -> None:
        """Tell from now on what is kept of responses."""
        self.registry.register(StoredResponsesCollector(self._labels, stored))

    def refuse(self, code: str) -> None:
        """Count one error that is sent. `code` comes from our own table of errors, never from a client: each is a
        time series for good."""
        self.requests_refused.labels(*self._labels, code).inc()
        if code in self._rejections:
            self._rejections[code].inc()

    def judge_first_token(self, seconds: float, num_prompt_tokens: int, quote: Quote) -> None:
        """Count whether what was said at a request's arrival came true. seconds: from then to its first token."""
        self._promises.labels(*self._labels, _yes(seconds <= quote.promised_s)).inc()
        self._quotes.labels(*self._labels, _yes(seconds <= quote.quote_s)).inc()
        if quote.median_s > 0.0:
            self.quote_ratio.observe(seconds / quote.median_s)
        self._judge("ttft", num_prompt_tokens, seconds <= quote.deadline_s)

    def judge_pace(self, tpot_s: float, num_prompt_tokens: int, quote: Quote) -> None:
        """Count whether a whole answer's tokens followed each other as fast as was the goal."""
        self._judge("tpot", num_prompt_tokens, tpot_s <= quote.tpot_s)

    def _judge(self, goal: str, num_prompt_tokens: int, is_met: bool) -> None:
        size = ("short", "medium", "long")[size_class(num_prompt_tokens)]
        self._goals.labels(*self._labels, goal, size, _yes(is_met)).inc()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Return all of them and their content type: OpenMetrics where `accept`, a header, asks for it."""
        if OPEN_METRICS in accept:  # with the colons that names have; prometheus_client's own choice breaks counters
            write = openmetrics.generate_latest
            text = write(self.registry, ALLOWUTF8, "1.0.0")  # type: ignore[no-untyped-call]  # it has no types
            return text, f"{OPEN_METRICS}; version=1.0.0; charset=utf-8"
        return generate_latest(self.registry), CONTENT_TYPE


class Arrival:
    """A client's call, from its arrival to its one end: a request for each choice, or a refusal, or a client that left.

    What sends an error counts it by `ServerMetrics.refuse`; here it only means that nothing else is counted.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics
        self._requests: list[RequestMetrics] = []
        self._ended = False

    def siblings(self, n: int) -> Siblings:
        """Return what the `n` choices of one prompt share."""
        return Siblings(self._metrics, n)

    def request(self, siblings: Siblings | None = None, max_tokens: int | None = None) -> RequestMetrics:
        """Return metrics of one choice, once all are known to be servable: show it every output."""
        request = RequestMetrics(self._metrics, siblings or self.siblings(1), max_tokens)
        self._requests.append(request)
        return request

    def end(self, reason: Ending | None) -> None:
        """End for this reason what has not ended by itself; None: it was refused. Only the first end counts."""
        if self._ended:
            return
        self._ended = True
        if reason == "abort" and not self._requests:
            self._metrics.request_success["abort"].inc()
        for request in self._requests:
            request.end(reason)


class Siblings:
    """The choices of one prompt, which counts once all have ended by themselves."""

    def __init__(self, metrics: ServerMetrics, n: int) -> None:
        self._metrics = metrics
        self._n = self._left = n
        self._most = 0

    def end(self, num_tokens: int) -> None:
        """One has ended, with so many tokens."""
        self._left -= 1
        self._most = max(self._most, num_tokens)
        if not self._left:
            self._metrics.of_requests["params_n"].observe(self._n)
            self._metrics.of_requests["max_num_generation_tokens"].observe(self._most)


class RequestMetrics:
    """Turns the outputs of one request into observations, and its end into one count.

    quote: what was predicted at its arrival, once it has a token.
    """

    def __init__(self, metrics: ServerMetrics, siblings: Siblings, max_tokens: int | None = None) -> None:
        self._metrics = metrics
        self._siblings = siblings
        self._max_tokens = max_tokens
        self.quote: Quote | None = None
        self._previous_token: float | None = None
        self._started = False
        self._ended = False

    def observe(self, output: RequestOutput) -> None:
        metrics, times = self._metrics, output.times
        self.quote = output.quote
        if output.token_ids:
            metrics.tokens.generated += len(output.token_ids)
            self._observe_tokens(output)
        if output.finish_reason is not None and not self._ended:
            self._ended = True
            metrics.request_success[output.finish_reason].inc()
            metrics.request_prompt_tokens.observe(output.num_prompt_tokens)
            metrics.request_generation_tokens.observe(output.num_output_tokens)
            if times.finished is not None:
                metrics.e2e.observe(times.finished - times.arrived)
            self._observe_whole(output)

    def end(self, reason: Ending | None) -> None:
        """End it, unless it has ended. One that was refused is not counted; but one that had begun then, with more of
        its call, was aborted."""
        if self._ended:
            return
        self._ended = True
        if reason is None and self._started:
            reason = "abort"
        if reason is not None:
            self._metrics.request_success[reason].inc()

    def _observe_whole(self, output: RequestOutput) -> None:
        """What is known of a request that has ended by itself."""
        found, times, tokens = self._metrics.of_requests, output.times, output.num_output_tokens
        if times.scheduled is None or times.first_token is None or times.last_token is None:
            return  # it was ended from outside
        self._siblings.end(tokens)
        found["num_preemptions"].observe(output.num_preemptions)
        found["prefill_kv_computed_tokens"].observe(output.num_prompt_tokens - output.num_cached_tokens)
        if self._max_tokens is not None:
            found["params_max_tokens"].observe(self._max_tokens)
        found["prefill_time_seconds"].observe(times.first_token - times.scheduled)
        found["decode_time_seconds"].observe(times.last_token - times.first_token)
        found["inference_time_seconds"].observe(times.last_token - times.scheduled)
        if tokens > 1:
            tpot_s = (times.last_token - times.first_token) / (tokens - 1)
            found["time_per_output_token_seconds"].observe(tpot_s)
            if output.quote is not None:
                self._metrics.judge_pace(tpot_s, output.num_prompt_tokens, output.quote)

    def _observe_tokens(self, output: RequestOutput) -> None:
        metrics, times = self._metrics, output.times
        gaps = len(output.token_ids)
        if not self._started:
            self._started = True
            gaps -= 1
            metrics.prompt_tokens.inc(output.num_prompt_tokens)
            metrics.computed.inc(output.num_prompt_tokens - output.num_cached_tokens)
            metrics.found.inc(output.num_cached_tokens)
            self._previous_token = times.first_token
            if times.first_token is not None:
                metrics.ttft.observe(times.first_token - times.arrived)
                if output.quote is not None:
                    metrics.judge_first_token(times.first_token - times.arrived, output.num_prompt_tokens, output.quote)
            if times.scheduled is not None:
                metrics.queue.observe(times.scheduled - times.arrived)
        if times.last_token is None or self._previous_token is None:
            return
        for _ in range(gaps):  # an output that carries several tokens shares its time evenly among them
            metrics.tokens.gaps.observe((times.last_token - self._previous_token) / gaps)
        self._previous_token = times.last_token


class HttpMetrics:
    """Answers by path, method and status, and how long they took to their last byte; as vLLM has them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("handler", "method")
        self._answers = Counter("http_requests", "HTTP requests that were answered.", (*labels, "status"),
                                registry=registry)  # fmt: skip
        self._seconds = Histogram("http_request_duration_seconds", "Seconds to the last byte of the answer.", labels,
                                  registry=registry, buckets=HTTP_BUCKETS)  # fmt: skip

    def answered(self, handler: str, method: str, status: int, seconds: float | None) -> None:
        """Count one. handler: one of the server's own paths, never a client's word: each is a time series for good."""
        method = method if method in METHODS else "other"
        self._answers.labels(handler, method, str(status)).inc()
        if seconds is not None:
            self._seconds.labels(handler, method).observe(seconds)


def _yes(it_is: bool) -> str:
    return "true" if it_is else "false"


def token_buckets(largest: int) -> tuple[float, ...]:
    """Return 1, 2, 5, 10, 20, 50 ... up to `largest`."""
    steps = [float(digit * 10**power) for power in range(len(str(largest))) for digit in (1, 2, 5)]
    return tuple(step for step in steps if step <= largest)
