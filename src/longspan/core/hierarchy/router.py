"""To which node an arrival goes: to the one that has least to do before it.

What a node has to do is what policies predict: the seconds of its prompts that are still to be computed, and those of
the tokens that its requests will probably generate. Of prompts only those count that are no longer than the arrival's,
to the next power of two, for longer ones will mostly let it pass. So every node gets its share of the short and of the
long, and no short one comes to where many others are (Grosof, Scully and Harchol-Balter, Load Balancing Guardrails,
2019). As few nodes as there are, all are looked at.

Where a prompt has keys, a node that has some of it cached has less to compute: it is preferred by so many seconds, and
no more.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from longspan.core.actions import RunBatch
from longspan.core.costs.cost_model import CostModel
from longspan.core.events import RequestArrived

_FIRST_OUTPUT = 128.0  # tokens, as long as nothing has finished
_MANY, _LONG = 512, 1 << 20  # requests and context tokens, to tell what one more costs


@dataclass(slots=True)
class NodeLoad:
    """What one node has to do, in predicted seconds of one instance.

    instances, kv_tokens: what it has. prompts_s: of prompts that are not computed, by the power of two that bounds
    their whole work. decodes_s: of tokens to come. tokens: what its requests will probably hold, once they have grown.
    """

    instances: int
    kv_tokens: int
    prompts_s: defaultdict[int, float] = field(default_factory=lambda: defaultdict(float))
    decodes_s: float = 0.0
    tokens: float = 0.0

    def before(self, kind: int) -> float:
        """Return the seconds, shared out over its instances, that a prompt of this kind would wait for."""
        prompts_s = [seconds for other, seconds in self.prompts_s.items() if other <= kind]
        return (sum(prompts_s) + self.decodes_s) / self.instances if self.instances else math.inf

    @property
    def total(self) -> float:
        return (sum(self.prompts_s.values()) + self.decodes_s) / self.instances if self.instances else math.inf


@dataclass(slots=True)
class _Placed:
    """A request's part in its node's load: the prompt's seconds that are left, and all of them; the decodes'."""

    load: NodeLoad
    kind: int
    left_s: float
    whole_s: float
    decodes_s: float
    tokens: float


class Choice(NamedTuple):
    """A node; the seconds that are before the request there, and at the node where there are most.

    cached: tokens of its prompt that the node has; most_cached: that the one has which has most.
    """

    node: int
    before_s: float
    most_s: float
    cached: int = 0
    most_cached: int = 0


class Router:
    """Keeps account of what every node has to do, and chooses."""

    def __init__(self, sizes: Sequence[int], kv_tokens: int, model: CostModel | None) -> None:
        """Begin with nothing to do. sizes: instances of each node. kv_tokens: of an instance. model: without one,
        prompts' tokens count in place of seconds, and decodes do not."""
        self.loads = [NodeLoad(size, size * kv_tokens) for size in sizes]
        self._model = model
        self._placed: dict[str, _Placed] = {}
        self._token_s = self._context_s = 0.0
        if model is not None:
            self._token_s = (model.decode(2 * _MANY, 0, 1, 1) - model.decode(_MANY, 0, 1, 1)) / _MANY
            self._context_s = (model.decode(1, _LONG, 1, 1) - model.decode(1, 0, 1, 1)) / _LONG

    def choose(self, request: RequestArrived, finished: tuple[int, int], cached: Sequence[int] = ()) -> Choice:
        """Place an arrival: where there will be room for it, if anywhere, and of those where least is before its end.

        finished: how many requests have ended, and the tokens that they generated. cached: of its prompt, by node.
        """
        prompt, (count, generated) = request.num_prompt_tokens, finished
        output = min(float(request.max_tokens), (generated + _FIRST_OUTPUT) / (count + 1))
        cached = cached or [0] * len(self.loads)
        left_s = [self._work(prompt - found, found) for found in cached]
        least_s = min(left_s)
        decodes_s = output * (self._token_s + self._context_s * (prompt + output / 2))
        kinds, tokens, limit = [math.frexp(each)[1] for each in left_s], prompt + output, prompt + request.max_tokens
        before_s = [load.before(kind) for load, kind in zip(self.loads, kinds, strict=True)]

        def rank(node: int) -> tuple[float, ...]:
            load = self.loads[node]
            lacks_room = limit > load.kv_tokens, load.tokens + tokens > load.kv_tokens
            return (*lacks_room, before_s[node] + (left_s[node] - least_s), load.total, node)

        node = min(range(len(self.loads)), key=rank)
        load, kind, whole_s = self.loads[node], kinds[node], left_s[node]
        load.prompts_s[kind] += whole_s
        load.decodes_s += decodes_s
        load.tokens += tokens
        self._placed[request.request_id] = _Placed(load, kind, whole_s, whole_s, decodes_s, tokens)
        return Choice(node, before_s[node], max(before_s), cached[node], max(cached))

    def resize(self, node: int, instances: int, kv_tokens: int) -> None:
        """Note that a node has so many instances that serve, with so many slots."""
        self.loads[node].instances, self.loads[node].kv_tokens = instances, kv_tokens

    def ran(self, batch: RunBatch) -> None:
        """Note that a batch has come to its end: so much less is to do."""
        for segment in batch.segments:
            placed = self._placed.get(segment.request_id) if segment.length > 1 or not segment.start else None
            if placed is not None:
                left_s = 0.0 if segment.emits else placed.left_s - self._work(segment.length, segment.start)
                self._set_left(placed, max(0.0, left_s))

    def begin_anew(self, request_id: str) -> None:
        """Note that the request has lost its KV: its prompt is to be computed again."""
        placed = self._placed[request_id]
        self._set_left(placed, placed.whole_s)

    def end(self, request_id: str) -> None:
        """Note that the request has ended, or was refused."""
        placed = self._placed.pop(request_id, None)
        if placed is not None:
            self._set_left(placed, 0.0)
            placed.load.decodes_s -= placed.decodes_s
            placed.load.tokens -= placed.tokens

    def _set_left(self, placed: _Placed, left_s: float) -> None:
        placed.load.prompts_s[placed.kind] += left_s - placed.left_s
        placed.left_s = left_s

    def _work(self, length: int, context: int) -> float:
        return float(length) if self._model is None else self._model.work(length, context, 1)
