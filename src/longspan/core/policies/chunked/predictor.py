"""What a policy that chunks prompts predicts: how long iterations may take, and how much of a prefill is left."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache
from itertools import count

from longspan.config import SchedulerConfig
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import Chunk, CostModel
from longspan.core.costs.load import context_seconds, exchange_seconds, ring_seconds
from longspan.core.policies.chunked.feedback import Feedback
from longspan.core.policies.chunked.priority import Standing

MAX_FIXED_SHARE = 0.8
"""Of an iteration with a chunk, where nothing else is said."""

REMEMBERED = 1 << 14
"""Prompts' lengths."""

_MANY = 1 << 20  # context tokens, to tell what one costs
_SECANTS = 8
_DEBT = 0.35
"""Of a TPOT: so far may a request that has just begun to decode fall behind; three tokens later its mean is kept."""
_SPARING = 0.5
"""Of the pace: decodes that take no more than that alone get ahead of it fast enough to wait for."""
_CATCHING_UP = 0.7
"""Of its pace: the gaps of one that is behind."""


class Predictor:
    """One deployment's figures.

    floor: tokens of the smallest chunk worth its while, see `chunk_floor`.
    shard_tokens: tokens of a request's KV on one instance before the next goes on, see `tokens_per_shard`.

    Times of whole prefills come from a table: the cumulative time of adaptive chunks, alone, each as large as the
    default target allows (the paper's algorithm 3). It remembers chunks' ends, so it is exact there; and it is no
    longer than a shard, for in later shards chunks are all alike.
    """

    def __init__(
        self, model: CostModel, config: SchedulerConfig, *, max_fixed_share: float = MAX_FIXED_SHARE,
        kvp_tokens_per_shard: int | None = None, aim: float = 1.0, idle_fixed_share: float = 1.0, gain: float = 0.0,
        burst: float = 1.0, team_burst: float = 1.0, team_fixed_share: float = 1.0,
    ) -> None:  # fmt: skip
        """Take the options of `AdaptiveChunks`."""
        self.model = model
        self.config = config
        self.feedback = Feedback(gain, config.num_instances)
        self.aim = aim
        self.burst = burst if config.pp == 1 else 1.0  # a pipeline's stages would wait for the largest chunk
        self.team_burst = team_burst if config.pp == 1 else 1.0
        self.team_fixed_share = team_fixed_share
        self.pace_s = aim * config.tpot_slo_s
        self.sparing_s = _SPARING * self.pace_s
        self.team_burst_s = self.team_burst * self.pace_s
        self.floor = chunk_floor(model)
        self._fixed_s = model.prefill((), 1)
        self.least_target = self._fixed_s / max_fixed_share
        self.least_idle_target = max(self.least_target, self._fixed_s / idle_fixed_share)
        self.idle_target = default = self.target()
        self.shard_tokens = tokens_per_shard(model, config, default, kvp_tokens_per_shard)
        self.exchange = cache(lambda num_instances: exchange_seconds(model, num_instances))
        self.ring = cache(lambda num_instances: ring_seconds(model, num_instances) if num_instances else 0.0)
        self.whole_prefill = lru_cache(REMEMBERED)(self.prefill)
        self.alone: Callable[[int], float] = self.whole_prefill  # seconds of a prompt that has everything for itself
        self._exchange_s = self.exchange(min(2, config.num_instances))
        self._default = default
        self._ends = [0]
        self._seconds = [0.0]

    def target(self, tightest_gap_s: float | None = None, scale: float = 1.0) -> float:
        """Return the seconds that an iteration may take, as predictions go. tightest_gap_s: see `Part`.

        scale: actual over predicted. Where nobody decodes it is as long as fixed costs ask for. Never less than leaves
        these their greatest share, however wrong predictions are: weights are read in every iteration, and one that
        hardly does more would only stretch every prefill.
        """
        if tightest_gap_s is None:
            return max(self.aim * self.config.tpot_slo_s / scale, self.least_idle_target)
        return max(tightest_gap_s / (self.feedback.pace * scale), self.least_target)

    def tpot(self, request: Request) -> float:
        return self.config.tpot_slo_s if request.service.tpot_s is None else request.service.tpot_s

    def gap(self, request: Request, now: float) -> float:
        """Return the seconds in which a request that decodes should get its next token: a share of its TPOT.

        With a `burst`, more as long as its tokens are ahead of that pace, so that chunks may be larger and fewer.
        """
        pace_s = self.aim * self.tpot(request)
        if self.burst <= 1.0:
            return pace_s
        return min(max(self.credit(request, now), _CATCHING_UP * pace_s), self.burst * pace_s)

    def credit(self, request: Request, now: float) -> float:
        """Return the seconds from now to when a request that decodes falls behind its pace without another token."""
        pace_s = self.aim * self.tpot(request)
        begun = self.feedback.first_token(request)
        if begun is None:
            return pace_s
        return pace_s * request.num_output_tokens + _DEBT * self.tpot(request) - (now - begun)

    def team_target(self, size: int) -> float:
        """Return the seconds of the shortest iteration in which a team of so many computes a chunk, beside decodes."""
        return min(self.team_burst_s, self.model.prefill((), size) / self.team_fixed_share)

    def saves_up(self, size: int, limit: float, decodes_s: float) -> bool:
        """Tell whether a team does better to let decodes go on alone, until they are ahead of their pace.

        limit: of an iteration now, seconds. decodes_s: without a chunk; if it takes long there is little to save.
        """
        if self.team_burst <= 1.0 or limit >= self.team_target(size):
            return False
        return decodes_s < self.sparing_s

    def prefill(self, tokens: int) -> float:
        """Return the seconds of a prompt's first tokens, alone, in chunks. `whole_prefill` is the same, and remembers.

        In a pipeline every stage has its part of the work, and chunks follow each other; only one chunk's way through
        the other stages comes on top.
        """
        serial, stages = self._serial(tokens), self.config.pp
        return (serial + (stages - 1) * min(serial, self._default)) / stages

    def work(self, tokens: int) -> float:
        """Return the seconds for which a prompt's first tokens keep each stage of an instance from others."""
        return self._serial(tokens) / self.config.pp

    def _serial(self, tokens: int) -> float:
        """As if one chunk left the last stage before the next entered the first."""
        if tokens <= self.shard_tokens:
            return self._first_shard(tokens)
        shards, rest = divmod(tokens - self.shard_tokens, self.shard_tokens)
        later = shards * self._later_shard(self.shard_tokens) + self._later_shard(rest)
        return self._first_shard(self.shard_tokens) + later

    def standing(self, request: Request, now: float) -> Standing[float]:
        total, remaining = self.whole_prefill(request.num_tokens), self.remaining(request)
        return Standing(now, request.arrived, self.deadline(request), remaining, total, max(total, 1e-9), 0.0, 0.0)

    def remaining(self, request: Request) -> float:
        """Return the seconds of what is left of its prefill, alone on one instance."""
        total, stored = self.whole_prefill(request.num_tokens), request.num_stored
        return total - self.prefill(stored) if stored else total

    def deadline(self, request: Request) -> float:
        """Return seconds from arrival to the first token: what the request asks, else in proportion to its work."""
        if request.service.ttft_s is not None:
            return request.service.ttft_s
        alone_s = self.alone(request.num_prompt_tokens)
        return max(self.config.ttft_slo_factor * alone_s, self.config.ttft_slo_floor_s)

    def is_attention_bound(self, context: int) -> bool:
        """Tell whether a chunk behind so much context, on one instance, spends most of its own time on that context.

        Such a chunk leaves dense layers little to do, which chunks of short prompts can fill. It replaces the published
        code's constant of 262144 tokens.
        """
        whole = (self._fixed_s + self.model.work(self.floor, context, 1)) - self._fixed_s
        return 2 * context_seconds(self.model, self.floor, context) > whole

    def _first_shard(self, tokens: int) -> float:
        while self._ends[-1] < tokens:
            context = self._ends[-1]
            length = self._chunk_length(context, self.shard_tokens - context)
            self._ends.append(context + length)
            self._seconds.append(self._seconds[-1] + self._chunk(length, context))
        place = bisect_right(self._ends, tokens) - 1
        end, seconds = self._ends[place], self._seconds[place]
        return seconds if tokens == end else seconds + self._chunk(tokens - end, end)

    def _later_shard(self, tokens: int) -> float:
        """Chunks there are all alike: the context is shared out, and its busiest holder has a full shard."""
        if not tokens:
            return 0.0
        chunks, rest = divmod(tokens, self._later_length)
        seconds = chunks * self._chunk(self._later_length, self.shard_tokens)
        return seconds + (self._chunk(rest, self.shard_tokens) if rest else 0.0)

    @cached_property
    def _later_length(self) -> int:
        return self._chunk_length(self.shard_tokens, self.shard_tokens)

    def _chunk(self, length: int, context: int) -> float:
        """Seconds of a chunk alone."""
        exchange_s = self._exchange_s if context >= self.shard_tokens else 0.0
        return self._fixed_s + self.model.work(length, context, 1) + exchange_s

    def _chunk_length(self, context: int, left: int) -> int:
        """As large as the target allows."""
        most = min(self.config.max_batch_tokens, left)
        return min(most, max(longest(most, lambda length: self._chunk(length, context), self._default), self.floor))


def longest(most: int, seconds: Callable[[int], float], limit: float) -> int:
    """Return the longest length up to `most` that takes no more seconds than the limit, 0 if none does.

    seconds: never falls as lengths grow. It is nearly a line: so where the line through the last two lengths tried
    meets the limit is tried next, and half the way only when that does not come to an end.
    """
    if most < 1 or (high_s := seconds(most)) <= limit:
        return most
    low, high = 0, most  # low keeps the limit, high does not
    before, before_s, last, last_s = 0, seconds(0), most, high_s
    for tries in count():
        if high - low == 1:
            return low
        tried = (low + high) // 2
        if tries < _SECANTS and last_s != before_s:
            meets = last + (limit - last_s) * (last - before) / (last_s - before_s)
            tried = int(min(max(meets, low + 1), high - 1))
        before, before_s, last, last_s = last, last_s, tried, seconds(tried)
        low, high = (tried, high) if last_s <= limit else (low, tried)
    raise AssertionError


def chunk_floor(model: CostModel) -> int:
    """Return the smallest chunk, of one token at least, whose attention is not held up by reading its KV.

    A chunk of c tokens does 4 c d h_q operations for each context token, and reads 4 d h_kv bytes for it (half
    precision): its intensity c h_q / h_kv is that of the machine at c = balance h_kv / h_q, whatever the context
    (equation 1). Here both sides come from the cost model: reading a context token is what it adds to a decode
    iteration, computing with it what it adds to a chunk of one token. A smaller chunk takes no less time.

    Dense layers need no floor of their own: their weights are read once for an iteration, which is filled up to
    its target whatever the chunks' sizes.
    """
    reading = model.decode(1, _MANY, 1, 1) - model.decode(1, 0, 1, 1)
    computing = context_seconds(model, 1, _MANY)
    return max(1, math.ceil(reading / computing)) if computing > 0.0 else 1


def tokens_per_shard(
    model: CostModel, config: SchedulerConfig, target: float, chosen: int | None = None
) -> int:
    """Return the longest context that one instance can read in an iteration which keeps the target.

    So a chunk of the floor's size, which attends for as long as it reads, and a decode keep it too. Between a pool
    shared out over all instances, the finest that makes sense, and a whole pool. A chosen number goes
    before.
    """
    if config.num_instances == 1:
        return config.kv_tokens
    if chosen is not None:
        return chosen
    reading = (model.decode(1, _MANY, 1, 1) - model.decode(1, 0, 1, 1)) / _MANY
    finest = max(1, config.kv_tokens // config.num_instances)
    if reading <= 0.0:
        return config.kv_tokens
    floor = chunk_floor(model)
    left = target - model.prefill((Chunk(floor),), 1)
    return min(config.kv_tokens, max(finest, int(left / reading)))


class TokenCount:
    """A cost model that counts tokens instead of seconds: what policies with fixed chunks go by."""

    def prefill(self, chunks: Iterable[Chunk], num_instances: int) -> float:
        return float(sum(length for length, _ in chunks))

    def work(self, length: int, context: int, num_instances: int) -> float:
        return float(length)

    def decode(self, num_requests: int, context_tokens: int, num_instances: int, num_masters: int) -> float:
        return float(num_requests)

    def mixed(self, chunks: Iterable[Chunk], num_requests: int, context_tokens: int, num_instances: int) -> float:
        return self.prefill(chunks, num_instances) + num_requests

    def iteration(self, work_s: float, num_requests: int, context_tokens: int, num_instances: int) -> float:
        return work_s + num_requests

    def migration(self, num_tokens: int) -> float:
        return float(num_tokens)


class TokenBudget(Predictor):
    """Sarathi-Serve's: an iteration takes so many tokens, whatever they cost."""

    def __init__(self, config: SchedulerConfig, chunk_size: int, kvp_tokens_per_shard: int | None = None) -> None:
        self.chunk_size = chunk_size
        super().__init__(TokenCount(), config, kvp_tokens_per_shard=kvp_tokens_per_shard)

    def target(self, tightest_gap_s: float | None = None, scale: float = 1.0) -> float:
        return float(self.chunk_size)
