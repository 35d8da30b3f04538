"""Rows of this instance and of its peers that attend to the same keys here, in one pass over these.

A chunk that a team computes has rows on each of its instances, and each row meets the context on all of them. A
kernel reads and packs a key once for all rows that it is given together; late in a very long prompt, when a chunk has
few rows, that is a large part of its work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longspan.attention.backend import AttentionBackend, PagedSegment
from longspan.attention.layout import BatchLayout
from longspan.attention.partial import Partial


class JoinedAttention:
    """Attention to the pool of all rows that this instance computes or answers for. Made once for a batch."""

    def __init__(self, layout: BatchLayout, backend: AttentionBackend) -> None:
        """Plan it. Own rows come first, then those of each peer that asks, in the layout's order."""
        sides = [(0, layout.local)]
        first = layout.num_rows
        for answers in layout.answers:
            sides.append((first, answers.segments))
            first += answers.num_rows
        self._lengths = [layout.num_rows, *[answers.num_rows for answers in layout.answers]]
        by_keys: dict[int, list[tuple[int, PagedSegment]]] = {}
        for begin, segments in sides:
            for segment in segments:
                by_keys.setdefault(id(segment.slots), []).append((begin, segment))
        rows, joined, stop = [], [], 0
        for parts in by_keys.values():
            start = stop
            for begin, segment in parts:
                rows.append(torch.arange(begin + segment.start, begin + segment.stop))
                stop += segment.stop - segment.start
            joined.append(PagedSegment(start, stop, parts[0][1].slots))
        self._rows = torch.cat(rows).to(joined[0].slots.device)
        self._plan = backend.plan_paged(joined)

    def attend(
        self, queries: Sequence[torch.Tensor], k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float
    ) -> list[Partial]:
        """Return the results of own queries and of each peer's, fp32; rows without keys here are empty partials."""
        q_THK = torch.cat(list(queries))
        part = self._plan.attend(q_THK[self._rows], k_GNK, v_GNK, scale)
        out_THK = torch.zeros(q_THK.shape, device=q_THK.device)
        lse_TH = torch.full(q_THK.shape[:2], -torch.inf, device=q_THK.device)
        out_THK[self._rows] = part.out_THK.float()
        lse_TH[self._rows] = part.lse_TH
        sides = zip(torch.split(out_THK, self._lengths), torch.split(lse_TH, self._lengths), strict=True)
        return [Partial(out, lse) for out, lse in sides]


def shares_keys(layout: BatchLayout) -> bool:
    """Tell whether rows of this instance and of a peer attend to the same keys here."""
    own = {id(segment.slots) for segment in layout.local}
    return any([id(segment.slots) in own for answers in layout.answers for segment in answers.segments])
