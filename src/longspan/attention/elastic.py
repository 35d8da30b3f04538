"""The elastic attention operator: exact attention between where queries are computed and where KV lives.

One operator runs every technique (see core/actions.py). Between instances it moves

- new KV around a ring, for segments that several instances compute (striped ring attention; the retention plan
  says what of a passing block stays here, so scaling down costs no further traffic: LoongServe section 4.1), and
- queries to the holders of context, with (output, log-sum-exp) back (multi-master decoding: LoongServe section 4.2;
  KV-cache parallelism: Medha section 4.4), and
- keys and values of context, where one instance holds most of what several compute behind: it lends them, so that
  the others attend, too (core/loans.py).

All travel while this instance computes on what it has. Results are merged in fp32 by log-sum-exp.

Shapes: T rows of this instance, P of a peer's, B tokens of a ring block, S lent ones, H query heads, G KV heads, K
head_dim.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from longspan.attention.backend import AttentionBackend, PagedPlan
from longspan.attention.context_layout import Asks
from longspan.attention.joined import JoinedAttention, shares_keys
from longspan.attention.layout import BatchLayout
from longspan.attention.native import NativePlan
from longspan.attention.partial import Accumulator, Partial
from longspan.attention.ring_layout import RingLayout
from longspan.distributed.shared_memory import SharedMemoryTransport
from longspan.distributed.transport import Exchange, Transport
from longspan.native.decoder import LoneTokens
from longspan.native.library import AnswersStruct, AsksStruct
from longspan.native.mail import NativeMail


class KVStore(Protocol):
    """The pool's side of attention: KV by layer and slot."""

    def layer(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return k_GNK and v_GNK of the layer, over all N slots."""
        ...

    def write(self, layer: int, slots: torch.Tensor, k_TGK: torch.Tensor, v_TGK: torch.Tensor) -> None:
        """Put the rows into the slots."""
        ...


class ElasticAttention:
    """Attention of one batch on one instance; called once in each layer, in order.

    rank_of: the rank of an instance's device with this device's tensor-parallel rank.
    on_layer: called at every layer; a sign of progress.
    """

    def __init__(
        self,
        layout: BatchLayout,
        store: KVStore,
        backend: AttentionBackend,
        transport: Transport,
        rank_of: Callable[[int], int],
        scale: float,
        on_layer: Callable[[], None] = lambda: None,
    ) -> None:
        self.layout = layout
        self.store = store
        self.backend = backend
        self.transport = transport
        self.rank_of = rank_of
        self.scale = scale
        self.on_layer = on_layer
        self.local: PagedPlan | None = backend.plan_paged(layout.local) if layout.local else None
        self.answers = [(a, backend.plan_paged(a.segments)) for a in layout.answers]
        self.joined = JoinedAttention(layout, backend) if shares_keys(layout) else None
        self.borrowed = [backend.plan_paged(b.segments) for b in layout.borrows]
        self.buffers: _Buffers | None = None

    def lone_tokens(self) -> LoneTokens | None:
        """Return this instance's whole part, if it is one token of each request at most; for kernels that take it so.

        None elsewhere, and where another backend or transport is at work. What peers see is the same either way.
        """
        layout = self.layout
        if layout.solo or layout.ring or layout.lends or len(layout.own_slots) != layout.num_rows:
            return None
        own = [self.local] if self.local else []
        plans = [*own, *(plan for _, plan in self.answers)]
        natives = [plan for plan in plans if isinstance(plan, NativePlan)]
        if not plans or len(natives) != len(plans):
            return None
        mail = None
        if layout.asks or layout.answers:
            if not isinstance(self.transport, SharedMemoryTransport) or not isinstance(self.transport.mail, NativeMail):
                return None
            mail = self.transport.mail.handle
        k_GNK, _ = self.store.layer(0)
        for plan in natives:
            plan.check_slots(k_GNK.shape[1])
        asks = [_asks_struct(ask, self.rank_of(ask.peer)) for ask in layout.asks]
        answers = [
            AnswersStruct(self.rank_of(a.peer), a.num_rows, ctypes.addressof(plan.structs), len(plan.structs))
            for a, plan in zip(layout.answers, natives[len(own) :], strict=True)
        ]
        return LoneTokens(
            pool=self.store,
            slots_T=layout.own_slots,
            segments=natives[0].structs if own else None,
            scale=self.scale,
            mail=mail,
            asks=(AsksStruct * len(asks))(*asks),
            answers=(AnswersStruct * len(answers))(*answers),
            keep=(natives, layout),
        )

    def __call__(
        self, layer: int, q_THK: torch.Tensor, k_TGK: torch.Tensor, v_TGK: torch.Tensor
    ) -> torch.Tensor:
        """Return out_THK: attention of the rows' queries over their whole context, in q's dtype."""
        self.on_layer()
        layout = self.layout
        self._write_own(layer, k_TGK, v_TGK)
        k_GNK, v_GNK = self.store.layer(layer)

        if self.buffers is None:
            self.buffers = _Buffers.of(layout, q_THK, k_GNK)
        queries = self.transport.exchange(
            [(q_THK[a.rows].contiguous(), self.rank_of(a.peer)) for a in layout.asks],
            [(q, self.rank_of(a.peer)) for q, a in zip(self.buffers.asked_PHK, layout.answers, strict=True)],
        )
        loans = self._lend(self.buffers, k_GNK, v_GNK)

        result = Accumulator(q_THK, self.backend.merge_rows_)
        for rows in layout.solo:
            block = self.backend.block(q_THK[rows], k_TGK[rows], v_TGK[rows], causal=True, scale=self.scale)
            result.set(rows, block)
        if layout.ring:
            self._ring(layer, layout.ring, result, q_THK, k_TGK, v_TGK)
        loans.wait()  # a large one gets on only while both ends wait
        if self.joined:
            queries.wait()
            own, *parts = self.joined.attend([q_THK, *self.buffers.asked_PHK], k_GNK, v_GNK, self.scale)
            self._add_own(result, own)
        else:
            if self.local:
                self._add_own(result, self.local.attend(q_THK, k_GNK, v_GNK, self.scale))
            queries.wait()
            asked = zip(self.buffers.asked_PHK, self.answers, strict=True)
            parts = [plan.attend(q_PHK, k_GNK, v_GNK, self.scale) for q_PHK, (_, plan) in asked]
        for plan, (k_GSK, v_GSK) in zip(self.borrowed, self.buffers.borrowed_2GSK, strict=True):
            self._add_own(result, plan.attend(q_THK, k_GSK, v_GSK, self.scale))
        if layout.asks or layout.answers:
            self._answer(self.buffers, result, parts)
        return result.out_THK.to(q_THK.dtype)

    def _lend(self, buffers: _Buffers, k_GNK: torch.Tensor, v_GNK: torch.Tensor) -> Exchange:
        """Start to send keys and values to those that borrow, and to get what is borrowed."""
        layout = self.layout
        for lends, lent_2GSK in zip(layout.lends, buffers.lent_2GSK, strict=True):
            for cache_GNK, lent_GSK in zip((k_GNK, v_GNK), lent_2GSK, strict=True):
                torch.index_select(cache_GNK, 1, lends.slots, out=lent_GSK)
        return self.transport.exchange(
            [(kv, self.rank_of(lends.peer)) for kv, lends in zip(buffers.lent_2GSK, layout.lends, strict=True)],
            [(kv, self.rank_of(b.peer)) for kv, b in zip(buffers.borrowed_2GSK, layout.borrows, strict=True)],
        )

    def _add_own(self, result: Accumulator, part: Partial) -> None:
        every = slice(0, self.layout.num_rows)
        if self.layout.solo or self.layout.ring:
            result.add(every, part)
        else:  # the first result of every row that has one
            result.set(every, part)

    def _answer(self, buffers: _Buffers, result: Accumulator, parts: Sequence[Partial]) -> None:
        """Send the peers that ask what their queries met here, and merge what they send. parts: of each that asks."""
        sends, receives = [], []
        for part, answers in zip(parts, self.layout.answers, strict=True):
            sends += [(x.float().contiguous(), self.rank_of(answers.peer)) for x in part]
        for ask, reply in zip(self.layout.asks, buffers.replies, strict=True):
            receives += [(x, self.rank_of(ask.peer)) for x in reply]
        self.transport.exchange(sends, receives).wait()
        for ask, reply in zip(self.layout.asks, buffers.replies, strict=True):
            result.add(ask.rows, reply)

    def _write_own(self, layer: int, k_TGK: torch.Tensor, v_TGK: torch.Tensor) -> None:
        rows, slots = self.layout.own_rows, self.layout.own_slots
        if len(slots) == k_TGK.shape[0] > 0:
            self.store.write(layer, slots, k_TGK, v_TGK)
        elif len(slots):
            self.store.write(layer, slots, k_TGK[rows], v_TGK[rows])

    def _ring(
        self,
        layer: int,
        ring: RingLayout,
        result: Accumulator,
        q_THK: torch.Tensor,
        k_TGK: torch.Tensor,
        v_TGK: torch.Tensor,
    ) -> None:
        """Attend to each block of new KV as it passes; the next one is on its way meanwhile."""
        rows = ring.own_rows
        visiting = torch.stack([k_TGK[rows], v_TGK[rows]])  # [2, B, G, K]: keys and values travel as one
        last = len(ring.rounds) - 1
        for number, round_ in enumerate(ring.rounds):
            if number < last:
                coming = visiting.new_empty(2, ring.rounds[number + 1].block_tokens, *visiting.shape[2:])
                hop = self.transport.exchange(
                    [(visiting, self.rank_of(ring.next))] if visiting.numel() else [],
                    [(coming, self.rank_of(ring.previous))] if coming.numel() else [],
                )
            k_BGK, v_BGK = visiting
            if round_.keep_rows is not None and round_.keep_slots is not None:
                kept = (k_BGK[round_.keep_rows], v_BGK[round_.keep_rows])
                self.store.write(layer, round_.keep_slots, *kept)
            for tile in round_.tiles:
                part = self.backend.block(
                    q_THK[tile.q], k_BGK[tile.k], v_BGK[tile.k], causal=tile.causal, scale=self.scale
                )
                if number == 0 and tile.causal:  # the first result of these rows: of each other and before
                    result.set(tile.q, part)
                else:
                    result.add(tile.q, part)
            if number < last:
                hop.wait()
                visiting = coming
                self.on_layer()


def _asks_struct(asks: Asks, rank: int) -> AsksStruct:
    if isinstance(asks.rows, slice):
        return AsksStruct(rank, None, asks.rows.start, asks.num_rows)
    return AsksStruct(rank, asks.rows.data_ptr(), 0, asks.num_rows)


@dataclass(frozen=True, slots=True)
class _Buffers:
    """What comes in from peers, and what is lent to them: made in the first layer, used in all of them."""

    asked_PHK: list[torch.Tensor]
    replies: list[Partial]
    lent_2GSK: list[torch.Tensor]
    borrowed_2GSK: list[torch.Tensor]

    @classmethod
    def of(cls, layout: BatchLayout, q_THK: torch.Tensor, k_GNK: torch.Tensor) -> _Buffers:
        heads, head_dim = q_THK.shape[1:]

        def keys_and_values(tokens: int) -> torch.Tensor:
            return k_GNK.new_empty(2, k_GNK.shape[0], tokens, head_dim)

        exact = partial(torch.empty, dtype=torch.float32, device=q_THK.device)
        return cls(
            asked_PHK=[q_THK.new_empty(answers.num_rows, heads, head_dim) for answers in layout.answers],
            replies=[Partial(exact(ask.num_rows, heads, head_dim), exact(ask.num_rows, heads)) for ask in layout.asks],
            lent_2GSK=[keys_and_values(len(lends.slots)) for lends in layout.lends],
            borrowed_2GSK=[keys_and_values(borrows.num_tokens) for borrows in layout.borrows],
        )
