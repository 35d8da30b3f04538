"""From options to the requests of a run."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

from longspan.entrypoints.bench.options import MOST_REQUESTS, ArrivalOptions, LengthOptions, parse_range
from longspan.errors import ConfigError
from longspan.workload import arrivals, generator, transforms
from longspan.workload.logged import is_event_log, read_logged
from longspan.workload.sessions import AGENTS, CHATS, sessions
from longspan.workload.traces import TraceRequest, read_trace

DEFAULT_NUM_REQUESTS = 100  # of a workload that has no end of its own
DEFAULT_RATE, DEFAULT_MIXED_RATE = 1.0, 0.5


def make_lengths(options: LengthOptions) -> Iterable[TraceRequest]:
    """Return lengths of the traces, one after another; without a trace an endless stream."""
    if options.trace:
        return [
            request
            for path in options.trace
            for request in (read_logged(path) if is_event_log(path) else read_trace(path))
        ]
    prompt = parse_range("input_len", options.input_len)
    return generator.uniform_lengths(prompt, parse_range("output_len", options.output_len), options.seed)


def make_requests(lengths: LengthOptions, options: ArrivalOptions) -> list[TraceRequest]:
    """Return requests in order of arrival, at least one, cut to duration and number asked for, fitted to the limit.

    Raises ConfigError, TraceError.
    """
    stream = _arriving(lengths, options)
    if options.duration is not None:
        stream = transforms.first_seconds(stream, options.duration)
    num_requests = options.num_requests
    if num_requests is None and options.duration is None and _endless(lengths, options):
        num_requests = DEFAULT_NUM_REQUESTS
    requests = list(itertools.islice(stream, MOST_REQUESTS + 1 if num_requests is None else num_requests))
    if len(requests) > MOST_REQUESTS:
        raise ConfigError(f"these are more than {MOST_REQUESTS} requests: lower --rate or --duration")
    if not requests:
        raise ConfigError("no request arrives in this time: raise --duration or --rate")
    return fitted(requests, lengths)


def fitted(requests: list[TraceRequest], options: LengthOptions) -> list[TraceRequest]:
    if options.max_total_tokens is None:
        return requests
    if options.fit == "scale":
        return transforms.scaled_to(requests, options.max_total_tokens)
    return list(transforms.clipped_to(requests, options.max_total_tokens))


def _arriving(lengths: LengthOptions, options: ArrivalOptions) -> Iterator[TraceRequest]:
    rate, seed = options.rate or DEFAULT_RATE, lengths.seed
    match options.workload:
        case "poisson":
            return transforms.with_arrivals(make_lengths(lengths), arrivals.poisson(rate, seed))
        case "gamma":
            return transforms.with_arrivals(make_lengths(lengths), arrivals.gamma(rate, options.cv2, seed))
        case "interval":
            return transforms.with_arrivals(make_lengths(lengths), arrivals.interval(1 / rate))
        case "mixed":
            return generator.mixed_long_short(seed, short_rate=options.rate or DEFAULT_MIXED_RATE)
        case "medha_mix":
            shorts = list(make_lengths(lengths)) if lengths.trace else []
            return generator.medha_mix(rate, seed, long_share=options.long_share, shorts=shorts)
        case "chats" | "agents":
            talk = CHATS if options.workload == "chats" else AGENTS
            return sessions(rate / talk.turns, seed, talk)
        case "loongserve_zipf":
            if not lengths.trace:
                raise ConfigError("loongserve_zipf draws from real lengths: name their files with --trace")
            drawn = generator.loongserve_zipf(list(make_lengths(lengths)), options.zipf_exponent, seed)
            return transforms.with_arrivals(drawn, arrivals.poisson(rate, seed))
        case None:
            return _as_traced(lengths, options)


def _as_traced(lengths: LengthOptions, options: ArrivalOptions) -> Iterator[TraceRequest]:
    """The trace's own arrivals, at its own rate or the one asked for; Poisson if it has none."""
    if len(lengths.trace) > 1:
        raise ConfigError("several traces have no common clock: give a --workload for arrivals, or one --trace")
    requests = make_lengths(lengths)
    if not isinstance(requests, list) or requests[0].arrived_at_s is None:
        return transforms.with_arrivals(requests, arrivals.poisson(options.rate or DEFAULT_RATE, lengths.seed))
    return iter(requests if options.rate is None else transforms.at_rate(requests, options.rate))


def _endless(lengths: LengthOptions, options: ArrivalOptions) -> bool:
    return not lengths.trace or options.workload in (
        "mixed", "medha_mix", "loongserve_zipf", "chats", "agents",
    )  # fmt: skip
