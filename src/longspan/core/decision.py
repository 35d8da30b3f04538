"""Why a policy decided as it did: for `longspan explain`, never for the machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROMISED = "promise"
"""The step of a policy that predicts at its arrival when a request gets its first token: `median_s`, `quote_s`,
`promised_s` and `deadline_s`, all seconds from then."""
SERVED_LATE = "late"
"""The step of a policy that serves a request though its first token will come later than is promised."""

OVER_SHARE, WITHIN_SHARE = "over its share", "within its share"
"""The steps of a policy that has a tenant's requests go behind those of tenants within their shares, and lets them go
back. One request stands for all that its tenant has, and will have, at its priority."""
EVICTED = "evict"
"""The step that says whose cached KV went for want of slots: of an instance, for the first of the requests; the others
had computed it. It tells all `tokens`, and the `tokens of` each."""
COPIED = "copy"
"""The step that says that a prefix is copied, from the first instance to the second, and for whom, which wait for it:
the `tokens` of this piece, the `copy_s` that it takes, and the `saved_s` that anything else would have taken longer."""
EXTRAPOLATED = "extrapolated"
"""The step that says that more `instances` serve than were `measured`: predictions for so many follow from those."""
ROUTED = "node"
"""The step that says to which node an arrival goes, where there are several: `first` and `instances` tell its own."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One choice of one step of a policy, with the numbers that it was made by.

    step: the step's name, such as "dispatch" or "scale up". request_ids: the requests that it is about.
    instances: what it chose. predicted: name -> seconds, tokens or a gain; names carry their unit, as in "prefill_s".

    It goes into the event log beside the actions, and is no part of them: a replay compares actions alone.
    """

    step: str
    request_ids: tuple[str, ...]
    instances: tuple[int, ...] = ()
    predicted: Mapping[str, float] = field(default_factory=dict)
