"""What a policy that chunks prompts predicts: how long iterations may take, and how much of a prefill is left."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable
from functools import cache, cached_property, lru_cache

from longspan.config import SchedulerConfig
from longspan.core.actions import RunBatch
from longspan.core.books.request import Request
from longspan.core.costs.cost_model import Chunk, CostModel
from longspan.core.costs.load import context_seconds, exchange_seconds, ring_seconds
from longspan.core.policies.chunked.feedback import Feedback
from longspan.core.policies.chunked.priority import Standing
from longspan.core.policies.parts.longest import longest
from longspan.core.policies.parts.pace import CATCHING_UP, Pace

MAX_FIXED_SHARE = 0.8
"""Of an iteration with a chunk, where nothing else is said."""

REMEMBERED = 1 << 14
"""Prompts' lengths."""

_MANY = 1 << 20  # context tokens, to tell what one costs
_SPARING = 0.5
"""Of the pace: decodes that take no more than that alone get ahead of it fast enough to wait for."""


class Predictor:
    """One deployment's figures.

    pace_s: of requests that name no TPOT: see `Gaps`.
    floor: tokens of the smallest chunk worth its while, see `chunk_floor`.
    shard_tokens: tokens of a request's KV on one instance before the next goes on, see `tokens_per_shard`.

    Times of whole prefills come from a table: the cumulative time of adaptive chunks, alone, each as large as the
    default target allows (the paper's algorithm 3). It remembers chunks' ends, so it is exact there; and it is no
    longer than a shard, for in later shards chunks are all alike.
    """

    def __init__(
        self, model: CostModel, config: SchedulerConfig, *, max_fixed_share: float = MAX_FIXED_SHARE,
        kvp_tokens_per_shard: int | None = None, aim: float = 1.0, idle_fixed_share: float = 1.0, gain: float = 0.0,
        burst: float = 1.0, team_burst: float = 1.0, team_fixed_share: float = 1.0, least_share: float = 0.0,
    ) -> None:  # fmt: skip
        """Take the options of `AdaptiveChunks`."""
        self.model = model
        self.config = config
        self.feedback = Feedback(gain, config.num_instances)
        self.aim = aim
        self.burst = burst if config.pp == 1 else 1.0  # a pipeline's stages would wait for the largest chunk
        self.team_burst = team_burst if config.pp == 1 else 1.0
        self.team_fixed_share = team_fixed_share
        self.least_share = least_share
        self.pace = Pace(aim, self.burst, self.team_burst)
        self.pace_s = aim * config.tpot_slo_s
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
        """Return the seconds that an iteration may take, as predictions go.

        tightest_gap_s: of its decodes, see `Gaps`; None without any. scale: actual over predicted. Where nobody decodes
        it is as long as fixed costs ask for. Never less than leaves these their greatest share, however wrong
        predictions are: weights are read in every iteration, and one that hardly does more would only stretch every
        prefill.
        """
        if tightest_gap_s is None:
            return max(self.pace_s / scale, self.least_idle_target)
        return max(tightest_gap_s / (self.feedback.pace * scale), self.least_target)

    def wait(self, running: RunBatch, alike: int, decodes: int, context: int, now: float) -> float:
        """Return how much later a prompt's chunk ends, as predictions go, that waits until a batch is over.

        alike: batches like it that are queued behind it. decodes, context: of the requests that decode there
        afterwards, which lengthen the chunk's own iteration; their tokens together.
        """
        left_s = self.feedback.left(running, alike, now)
        if left_s is None:
            return self.target()
        beside_s = self.model.decode(decodes, context, 1, 1) - self._fixed_s if decodes else 0.0
        return left_s / self.feedback.typical("prefill") + max(0.0, beside_s)

    def least_beside(self, decodes_s: float, pace_s: float, scale: float) -> float:
        """Return the seconds, as predictions go, that an iteration may take whatever the pace of its decodes.

        decodes_s: that these take alone. Where that is longer than their TPOT nothing keeps it, and chunks get a part
        of the iteration all the same: with less, prompts would hardly ever end. Decodes that can keep it do.
        """
        if not self.least_share or self.aim * decodes_s * self.feedback.pace * scale <= pace_s:
            return 0.0
        return decodes_s / (1.0 - self.least_share)

    def tpot(self, request: Request) -> float:
        return self.config.tpot_slo_s if request.service.tpot_s is None else request.service.tpot_s

    def left(self, request: Request, now: float) -> tuple[float, float]:
        """Return the TPOT of a request that decodes, and the seconds until it falls behind its pace.

        `pace.gaps` makes of that in how many seconds it should get its next token: a share of its TPOT. With a `burst`
        more, as long as its tokens are ahead of that pace, so that chunks may be larger and fewer; and with a
        `team_burst` more still beside a team's.
        """
        tpot_s = self.tpot(request)
        begun = self.feedback.first_at.get(request.id)
        if begun is None:
            return tpot_s, self.aim * tpot_s
        return tpot_s, self.pace.left(tpot_s, request.num_output_tokens, now - begun)

    def least_left(self, requests: Iterable[Request], now: float) -> dict[float, float]:
        """Return what `left` does, of many: for each TPOT the least, for who has least left has the tightest gaps."""
        first_at, tpot = self.feedback.first_at, self.tpot
        least, lines = dict[float, float](), dict[float, tuple[float, float]]()
        for request in requests:
            tpot_s, begun = tpot(request), first_at.get(request.id)
            if tpot_s not in lines:
                lines[tpot_s] = self.pace.line(tpot_s)
            each_s, debt_s = lines[tpot_s]
            left_s = each_s if begun is None else each_s * request.num_output_tokens + debt_s - (now - begun)
            if left_s < least.get(tpot_s, math.inf):
                least[tpot_s] = left_s
        return least

    def team_target(self, size: int, longest_s: float) -> float:
        """Return the seconds of the shortest iteration in which a team of so many computes a chunk, beside decodes.

        longest_s: of an iteration when these are as far ahead of their pace as is of use.
        """
        return min(longest_s, self.model.prefill((), size) / self.team_fixed_share)

    def saves_up(self, size: int, limit: float, pace_s: float, scale: float) -> bool:
        """Tell whether a team does better to let decodes go on alone, until they are ahead of their pace.

        limit: of an iteration now, seconds as predicted. pace_s: of the tightest decode. scale: actual over predicted.
        """
        most_s = self.target(self.team_burst * pace_s, scale)
        return self.team_burst > 1.0 and limit < self.team_target(size, most_s)

    def gets_ahead(self, predicted_s: float, actual_s: float, pace_s: float) -> bool:
        """Tell whether decodes get ahead of their pace by iterations that take so long: if not, they are not waited
        for."""
        return predicted_s < self.sparing(pace_s) and actual_s < CATCHING_UP * pace_s

    def sparing(self, pace_s: float) -> float:
        """Return the seconds of an iteration after which decodes of such a pace are well ahead of it."""
        return _SPARING * pace_s

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
        if request.num_cached_at_first:
            total = max(remaining, total - self.whole_prefill(request.num_cached_at_first))
        return Standing(now, request.arrived, self.deadline(request), remaining, total, max(total, 1e-9), 0.0, 0.0, 0.0)

    def remaining(self, request: Request) -> float:
        """Return the seconds of what is left of its prefill, alone on one instance. What is cached counts as done."""
        total, known = self.whole_prefill(request.num_tokens), request.num_known
        return total - self.whole_prefill(known) if known else total

    def deadline(self, request: Request) -> float:
        """Return seconds from arrival to the first token: what the request asks, else in proportion to its work."""
        if request.service.ttft_s is not None:
            return request.service.ttft_s
        alone_s = self.prompt_alone(request)
        return max(self.config.ttft_slo_factor * alone_s, self.config.ttft_slo_floor_s)

    def prompt_alone(self, request: Request) -> float:
        """Return the seconds that its prompt took if it had everything for itself, but for what was cached when it
        came."""
        alone_s, cached = self.alone(request.num_prompt_tokens), request.num_cached_at_first
        return max(0.0, alone_s - self.alone(cached)) if cached else alone_s

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
