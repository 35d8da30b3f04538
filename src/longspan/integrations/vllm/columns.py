"""Requests that decode, in columns: hundreds do in each step, and hardly ever others than in the step before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from longspan.core.books.request import Request
from longspan.core.policies.parts.pace import Floats, Gaps, Pace


@dataclass(frozen=True, slots=True)
class DecodeColumns:
    """What stays as it is while these decode, each a place.

    default_s: the TPOT of who asks for none. begun: when they got their first tokens; no number where that is not known
    yet, of one or several, which they are said to `lack`.
    """

    requests: list[Request]
    default_s: float
    tpot_s: Floats
    begun: Floats
    lack: bool

    def holds(self, requests: list[Request], default_s: float) -> bool:
        """Tell whether these are still the columns of these requests."""
        return not self.lack and self.default_s == default_s and self.requests == requests

    def gaps(self, pace: Pace, now: float) -> Gaps:
        """Return the tightest of all gaps, of a step that begins at `now`."""
        tokens = np.array([request.num_output_tokens for request in self.requests], dtype=float)
        since_s = now - (np.where(np.isnan(self.begun), now, self.begun) if self.lack else self.begun)
        return pace.tightest(self.tpot_s, tokens, since_s)


NOBODY = DecodeColumns([], 0.0, np.empty(0), np.empty(0), lack=False)


def columns(requests: list[Request], default_s: float, first_at: Mapping[str, float]) -> DecodeColumns:
    """Return the columns of these. first_at: by id, when who has a token got the first."""
    tpot_s = np.array([request.service.tpot_s or default_s for request in requests])
    begun = np.array([first_at.get(request.id, np.nan) for request in requests])
    return DecodeColumns(requests, default_s, tpot_s, begun, lack=bool(np.isnan(begun).any()))
