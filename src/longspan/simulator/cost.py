"""How long the simulated devices take, from first principles.

Every operator takes the longer of its arithmetic and its memory traffic (a roofline); attention is summed request by
request, never over a batch's averages. Instances of a group meet twice in a layer, once queries are known and once
attention is done, so each of these halves takes as long as its slowest instance.

    layer  =  dense(rows)                       projections and feed-forward layers, all-reduces, what lies between
            + attention                         own and passing KV while queries travel, then the peers' queries
    device =  layers * layer + head(emitting)
    host   =  prepared while the iteration before still runs

Cut into stages, each would have its part of the layers; no term but the head belongs to a single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil
from typing import NamedTuple

from longspan.core.actions import MigrateKV, RunBatch, Segment
from longspan.core.loans import loans
from longspan.pipeline import balanced_stages
from longspan.simulator.fleet import Fleet

ACTIVATION_BYTES = 2.0
PARTIAL_BYTES = 4.0
"""Of a number in a partial result: outputs and their log-sum-exps travel in fp32."""
NORM_PASSES = 8.0
"""How often a token's hidden state is read or written between matrix products, in one layer: two norms, two residual
additions (assumed: each reads its input and what it adds, and writes both)."""


CHUNK = 512
"""Tokens by whose time a pipeline's stages are balanced, as in worker/stages.py."""


class Seconds(NamedTuple):
    """The seconds of a batch.

    host: before the first device can begin. stages: from then on, of each pipeline stage, on every instance of the
    group.
    """

    host: float
    stages: tuple[float, ...]

    @property
    def device(self) -> float:
        """Seconds from the first stage's beginning to the last one's end, if nothing is ahead."""
        return sum(self.stages)

    @property
    def total(self) -> float:
        return self.host + self.device

    @property
    def in_a_row(self) -> float:
        """Seconds of each of many like decodes: the host prepares the next when the last but one has ended."""
        return max(self.device, self.total / 2)


@dataclass(slots=True)
class _Load:
    """One instance's part in one layer of a batch.

    rows: tokens that it computes. emitting: those of them after which a token is sampled.
    own_s: seconds of attention for its own rows, over KV that is here or passes by in full.
    serving_s: of attention for the rows of others, and over what is borrowed. asked, answered: rows that leave to ask,
    that come to be answered. lent: tokens whose KV leaves, for others to attend to.
    """

    rows: float = 0.0
    emitting: int = 0
    own_s: float = 0.0
    serving_s: float = 0.0
    asked: float = 0.0
    answered: float = 0.0
    lent: float = 0.0


class IterationCost:
    """Durations of one fleet's actions. Pure: the same action always takes the same time."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        shape, sheet, efficiency = fleet.model.shape, fleet.machine.sheet, fleet.machine.efficiency
        self._shape = shape
        self._overheads = fleet.machine.overheads
        self._residuals = fleet.machine.residuals
        self._flops = sheet.flops * efficiency.matmul * fleet.tp
        self._bandwidth = sheet.memory_bandwidth * efficiency.memory * fleet.tp
        self._link = sheet.link_bandwidth * efficiency.link
        self._network = sheet.network_bandwidth * efficiency.link
        query_size, kv_size = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        self._matrices = (
            (shape.hidden_size, query_size + 2 * kv_size),
            (query_size, shape.hidden_size),
            (shape.hidden_size, 2 * shape.intermediate_size),
            (shape.intermediate_size, shape.hidden_size),
        )
        passed = NORM_PASSES * shape.hidden_size * fleet.tp  # on every device
        passed += 2 * (query_size + kv_size) + 3 * shape.intermediate_size  # rotary embedding, gated activation
        self._elementwise_bytes = passed * ACTIVATION_BYTES
        self._pair_s = shape.flops_per_pair / shape.num_layers / (sheet.flops * efficiency.attention * fleet.tp)
        self._kv_bytes = shape.kv_bytes_per_token / shape.num_layers
        self._kv_read_s = self._kv_bytes / self._bandwidth
        self._context_s = max(self._pair_s, self._kv_read_s)  # of one token's query and one token's KV
        self._query_bytes = query_size * ACTIVATION_BYTES / fleet.tp
        self._reply_bytes = (query_size + shape.num_heads) * PARTIAL_BYTES / fleet.tp
        self._dense_s = lru_cache(maxsize=4096)(self._dense)  # decode batches have few different sizes
        self._head_s = lru_cache(maxsize=4096)(self._head)

    def duration(self, action: RunBatch | MigrateKV) -> Seconds:
        if isinstance(action, MigrateKV):
            seconds = self.migration(action.num_tokens, (action.source, action.target))
            return Seconds(0.0, (seconds / self.fleet.pp,) * self.fleet.pp)
        return self.batch(action)

    def batch(self, batch: RunBatch) -> Seconds:
        overheads, others = self._overheads, len(batch.group) - 1
        sharers = 0
        if others:
            loads, attention_s = self._across(batch)
            rows = max([load.rows for load in loads])
            emitting = max([load.emitting for load in loads])
            sharers = sum([load.rows > 0 for load in loads]) - 1
        else:
            rows, emitting, attention_s = self._alone(batch.segments)
        layer_s = self._dense_s(rows, sharers) + attention_s + overheads.layer_s
        has_prompts = any([segment.length > 1 for segment in batch.segments])
        host_s = (
            overheads.iteration_s
            + overheads.prompts_s * has_prompts
            + overheads.request_s * len(batch.segments)
            + overheads.instance_s * others
        )
        first, *later = self._stages(layer_s, self._head_s(emitting, sharers), batch)
        if not overheads.overlaps_host:
            host_s, first = 0.0, host_s + first
        if self._residuals is not None:
            factor = self._residuals.factor(batch)
            host_s, first, later = factor * host_s, factor * first, [factor * stage_s for stage_s in later]
        if not has_prompts:
            host_s += overheads.unqueued_s
        return Seconds(host_s, (first, *later))

    def _stages(self, layer_s: float, head_s: float, batch: RunBatch) -> tuple[float, ...]:
        """Of each pipeline stage: its layers, what comes in from the stage before, and in the last one the head."""
        if self.fleet.pp == 1:
            return (self._shape.num_layers * layer_s + head_s,)
        seconds = [layers * layer_s for layers in self._split]
        seconds[-1] += head_s
        tokens = max(sum(s.length / len(s.computing) for s in batch.segments if i in s.compute) for i in batch.group)
        for stage in range(1, self.fleet.pp):
            seconds[stage] += self._handover(tokens, batch.group[0], stage)
        return tuple(seconds)

    def _handover(self, rows: float, instance: int, stage: int) -> float:
        """Every device sends the whole residual stream, fp32, to its twin in the next stage."""
        sent = rows * self._shape.hidden_size * PARTIAL_BYTES
        if self.fleet.node(instance, stage - 1) == self.fleet.node(instance, stage):
            return self._overheads.exchange_s + sent / self._link
        return self._overheads.exchange_s + self._overheads.network_s + sent / self._network

    @cached_property
    def _split(self) -> tuple[int, ...]:
        """As the engine does it: by a layer's time for a chunk, and the head's for one token."""
        layer_s = self._dense(CHUNK) + self._new_tokens(CHUNK) + self._overheads.layer_s
        return balanced_stages(self._shape.num_layers, self.fleet.pp, layer_s, 0.0, self._head(1))

    def decode_alike(self, num_requests: int, context: int, num_instances: int) -> float:
        """Return the seconds of a decode of like requests, if nothing had to travel and the host were never late."""
        share = num_requests / num_instances
        attention_s = share * context * self._context_s
        layer_s = self._dense_s(max(1.0, share)) + attention_s + self._overheads.layer_s
        return self._shape.num_layers * layer_s + self._head_s(ceil(share))

    def migration(self, num_tokens: int, instances: Sequence[int]) -> float:
        """Return the seconds of a migration, in which each device sends its own heads' part."""
        latency_s, bandwidth = self._link_between(instances)
        sent = num_tokens * self._shape.kv_bytes_per_token / self.fleet.tp
        return self._overheads.migration_s + latency_s + sent / bandwidth

    # dense layers

    def _dense(self, rows: float, sharers: int = 0) -> float:
        """One layer without its attention. sharers: other instances that read weights at the same time."""
        bandwidth = self._shared_bandwidth(sharers)
        products_s = sum(self._matmul(rows, inputs, outputs, bandwidth) for inputs, outputs in self._matrices)
        return products_s + rows * self._elementwise_bytes / bandwidth + 2 * self._allreduce(rows)

    def _head(self, rows: int, sharers: int = 0) -> float:
        bandwidth = self._shared_bandwidth(sharers)
        return self._matmul(rows, self._shape.hidden_size, self._shape.vocab_size, bandwidth) if rows else 0.0

    def _shared_bandwidth(self, sharers: int) -> float:
        return self._bandwidth / (1.0 + self._overheads.contention * sharers)

    def _matmul(self, rows: float, inputs: int, outputs: int, bandwidth: float) -> float:
        weights = inputs * outputs
        moved = weights * self._shape.weight_bytes + rows * (inputs + outputs) * ACTIVATION_BYTES
        return max(2.0 * rows * weights / self._flops, moved / bandwidth)

    def _allreduce(self, rows: float) -> float:
        """A ring: every device sends all but its own share, twice."""
        tp = self.fleet.tp
        if tp == 1:
            return 0.0
        sent = 2.0 * (tp - 1) / tp * rows * self._shape.hidden_size * ACTIVATION_BYTES
        return self._overheads.allreduce_s * (tp.bit_length() - 1) + sent / self._link

    # attention

    def _alone(self, segments: Sequence[Segment]) -> tuple[int, int, float]:
        """A group of one: everything is here. Rows, those emitting, and the seconds of attention in one layer."""
        rows = emitting = 0
        own_s, context_s = 0.0, self._context_s
        for segment in segments:
            length = segment.length
            rows += length
            emitting += segment.emits
            if length == 1:
                own_s += (segment.start + 1) * context_s
            else:
                own_s += self._new_tokens(length) + self._over(length, segment.start)
        return rows, emitting, own_s

    def _across(self, batch: RunBatch) -> tuple[list[_Load], float]:
        """Each instance's load, and the seconds of attention in one layer."""
        loads = {instance: _Load() for instance in batch.group}
        ring: tuple[int, ...] = ()
        ring_tokens, ring_pieces, ring_s = 0, 0, 0.0
        for segment in batch.segments:
            if segment.length == len(segment.compute) == 1:
                self._add_decode(loads, segment)
                continue
            computing = segment.computing
            size = len(computing)
            if size > 1:
                ring = computing
                ring_tokens += segment.length
                ring_pieces += 1
                ring_s += self._new_tokens(segment.length) / size
            self._add_across(loads, segment, computing)
        if ring:
            passing_s = self._ring(ring, ring_tokens, ring_pieces, ring_s)
            for instance in ring:
                loads[instance].own_s += passing_s
        asked = max(max(load.asked, load.answered) for load in loads.values())
        lent = max(load.lent for load in loads.values())
        if not asked and not lent:
            return list(loads.values()), max(load.own_s for load in loads.values())
        latency_s, bandwidth = self._link_between(batch.group)
        query_s = latency_s + (asked * self._query_bytes + lent * self._kv_bytes / self.fleet.tp) / bandwidth
        reply_s = latency_s + asked * self._reply_bytes / bandwidth
        slowest_s = max(max(load.own_s, query_s) + load.serving_s for load in loads.values())
        return list(loads.values()), slowest_s + (reply_s if asked else 0.0)

    def _add_decode(self, loads: dict[int, _Load], segment: Segment) -> None:
        """A single token of one instance: what `_add_across` does, but most segments are that."""
        load, context_s = loads[segment.compute[0]], self._context_s
        load.emitting += segment.emits
        load.rows += 1.0
        load.own_s += context_s
        for holder, tokens in segment.context:
            attend_s = tokens * context_s
            holding = loads[holder]
            if holding is load:
                load.own_s += attend_s
            else:
                holding.serving_s += attend_s
                holding.answered += 1.0
                load.asked += 1.0

    def _add_across(self, loads: dict[int, _Load], segment: Segment, computing: tuple[int, ...]) -> None:
        """All of a segment but what passes in a ring."""
        size = len(computing)
        if segment.emits:
            loads[segment.emitter].emitting += 1
        length, rows = segment.length, segment.length / size
        for instance in computing:
            loads[instance].rows += rows
        if size == 1:
            loads[segment.compute[0]].own_s += self._context_s if length == 1 else self._new_tokens(length)
        lent = loans(segment) if self.fleet.machine.lends_context else {}
        for holder, tokens in segment.context:
            holding = loads[holder]
            for instance in computing:
                if instance == holder:
                    holding.own_s += self._over(rows, tokens)
                    continue
                borrowed = lent.get((holder, instance), 0) if self._are_near(holder, instance) else 0
                holding.lent += borrowed
                loads[instance].serving_s += self._over(rows, borrowed)
                if borrowed < tokens:
                    holding.serving_s += self._over(rows, tokens - borrowed)
                    holding.answered += rows
                    loads[instance].asked += rows

    def _are_near(self, one: int, other: int) -> bool:
        return self.fleet.node(one) == self.fleet.node(other)

    def _new_tokens(self, length: int) -> float:
        """Attention of new tokens to themselves: each to all before it."""
        return max(0.5 * length * (length + 1) * self._pair_s, length * self._kv_read_s)

    def _over(self, rows: float, tokens: int) -> float:
        """Attention of so many rows of one request over so many tokens of its context."""
        return tokens * max(rows * self._pair_s, self._kv_read_s)

    def _ring(self, ring: tuple[int, ...], tokens: int, pieces: int, attention_s: float) -> float:
        """attention_s: of one instance, over all blocks. The first block is its own; the others arrive one by one."""
        latency_s, bandwidth = self._link_between(ring)
        hop_s = latency_s + tokens / len(ring) * self._kv_bytes / self.fleet.tp / bandwidth
        block_s = self._overheads.round_s + pieces * self._overheads.piece_s + attention_s / len(ring)
        hops = len(ring) - 1
        return block_s + hops * (max(block_s, hop_s) if self._overheads.overlaps_ring else block_s + hop_s)

    def _link_between(self, instances: Sequence[int]) -> tuple[float, float]:
        """Latency, and bytes a second that each device sends; of the slowest hop."""
        first = self.fleet.node(instances[0])
        if all(self.fleet.node(instance) == first for instance in instances):
            return self._overheads.exchange_s, self._link
        return self._overheads.exchange_s + self._overheads.network_s, self._network
