"""Offered load over capacity: what a workload needs at the least, over what its fleet has while it arrives."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from longspan.config import SchedulerConfig
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk
from longspan.simulator.cost import IterationCost
from longspan.simulator.spread import evenly_spread
from longspan.workload.traces import TraceRequest


def offered_load(requests: Sequence[TraceRequest], cost: IterationCost, config: SchedulerConfig) -> float | None:
    """Return the load: above 1 the fleet cannot keep up, whatever the policy. None without a span of arrivals."""
    arrivals = [request.arrived_at_s for request in requests if request.arrived_at_s is not None]
    span_s = max(arrivals) - min(arrivals) if arrivals else 0.0
    if not span_s:
        return None
    # n requests make n - 1 gaps, and the last one needs its gap of time as well.
    span_s *= len(arrivals) / (len(arrivals) - 1)
    return sum(instance_seconds(request, cost, config) for request in requests) / (span_s * config.num_instances)


def instance_seconds(request: TraceRequest, cost: IterationCost, config: SchedulerConfig) -> float:
    """Return what a request takes of its instances' time at the least: its prompt alone on the fewest that hold it, and
    each output token a share of a decode iteration, at half its output, with as many like it as fit.
    """
    instances = min(config.num_instances, ceil(request.num_tokens / config.kv_tokens))
    prompt = BatchShape(num_instances=instances, chunks=(Chunk(request.num_prompt_tokens),))
    prefill_s = cost.batch(evenly_spread(prompt)).total
    alike = max(1, min(config.max_batch_requests, instances * config.kv_tokens // request.num_tokens))
    decode_s = cost.decode_alike(alike, request.num_prompt_tokens + request.num_output_tokens // 2, instances)
    # While one batch is in one stage of a pipeline, others are in the others.
    return instances / cost.fleet.pp * (prefill_s + (request.num_output_tokens - 1) * decode_s / alike)
