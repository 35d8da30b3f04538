"""What goes before a request where tenants have fair shares: no more of another's work than that one's share."""

from __future__ import annotations

import numpy as np

from longspan.core.books.request import Request
from longspan.core.policies.chunked.priority import Floats
from longspan.core.policies.longspan.eta import Kin, Kinds, Unserved
from longspan.core.policies.longspan.tenants import TenantShares

_, _WORK, _KEY, _, _TAG = range(len(Unserved._fields))
_MOST_TENANTS = 256


def limited(rivals: Floats, places: Floats, mine: Unserved, place: int, shares: TenantShares) -> Floats:
    """Return those that may go before it, others' tenants with so much work as is served before it.

    rivals: requests of its priority, as for `time_to_first_token`. places: of their tenants; place: of its own.
    """
    own = places == place
    own_s = mine.work_s + float(rivals[_WORK, own & (rivals[_KEY] < mine.key)].sum())
    found, parts = [rivals[:, own]], shares.parts
    for other in np.unique(places[~own]).astype(int).tolist():
        theirs = rivals[:, places == other]
        theirs = theirs[:, np.argsort(theirs[_KEY], kind="stable")]
        before_s = np.cumsum(theirs[_WORK]) - theirs[_WORK]
        theirs[_WORK] = np.clip(shares.allowance(place, other, own_s) - before_s, 0.0, theirs[_WORK])
        if parts[place] > parts[other]:
            theirs[[_KEY, _TAG]] = -np.inf
        found.append(theirs[:, theirs[_WORK] > 0.0])
    return np.concatenate(found, axis=1)


class TenantKinds:
    """The arrivals of late, by tenant and size."""

    def __init__(self) -> None:
        self._kinds: dict[str | None, Kinds] = {}

    def of(self, request: Request) -> Kinds:
        """Return those of its tenant."""
        tenant = request.service.tenant
        kinds = self._kinds.pop(tenant) if tenant in self._kinds else Kinds()
        self._kinds[tenant] = kinds  # the last to have come is the last
        if len(self._kinds) > _MOST_TENANTS:
            del self._kinds[next(iter(self._kinds))]
        return kinds

    def now(self, now: float, request: Request, shares: TenantShares, rate: float) -> list[Kin]:
        """Return what comes beside a request: of each other tenant no more than its share.

        All of that overtakes a request whose tenant is over its own. rate: seconds of work served in one.
        """
        tenant, is_over = request.service.tenant, shares.is_over(request)
        weight, found = shares.weight(tenant), list[Kin]()
        for other, kinds in self._kinds.items():
            coming = kinds.now(now)
            if other != tenant:
                share = rate * shares.weight(other) / (shares.weight(other) + weight)
                part = min(1.0, share / max(sum([kin.work for kin in coming]), 1e-9))
                coming = [Kin(part * kin.work, -np.inf if is_over else kin.reach_s) for kin in coming]
            found += coming
        return found
