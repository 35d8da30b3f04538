"""What a request asks of the server's timeliness, and for whom."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

from longspan.errors import RequestError

IfLate = Literal["refuse", "serve"]

MOST_TENANT_CHARS = 64
_TENANT = re.compile(rf"[A-Za-z0-9._@-]{{1,{MOST_TENANT_CHARS}}}")


@dataclass(frozen=True, slots=True)
class ServiceLevel:
    """What a request asks of the server's timeliness; None stands for the server's default.

    ttft_s: seconds from arrival to the first token.
    tpot_s: seconds for each further token.
    priority: requests with a higher one go first, whatever other deadlines; 0 is ordinary.
    if_late: whether it is to be refused, or served all the same, if its first token would come later than is promised.
        By default the engine refuses it, for a server's client can come again; `LLM` serves it, for a batch cannot.
    tenant: for whom it is: requests of one name have one share of the service, where policies keep shares. It stands
        in event logs, so it must be no secret. None is a tenant, too.

    Raises:
        RequestError: a time is no number above 0, the priority no whole number, or the tenant no such name.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    priority: int = 0
    if_late: IfLate | None = None
    tenant: str | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("ttft_s", self.ttft_s), ("tpot_s", self.tpot_s)):
            if seconds is not None and not (isinstance(seconds, int | float) and 0.0 < seconds < math.inf):
                raise RequestError(f"{name} is {seconds}, but must be a number of seconds above 0", param=name)
        if type(self.priority) is not int:
            raise RequestError(f"priority is {self.priority!r}, but must be a whole number", param="priority")
        if self.if_late not in (None, *get_args(IfLate)):
            raise RequestError(f"if_late is {self.if_late!r}, but must be refuse or serve", param="if_late")
        if self.tenant is not None:
            check_tenant(self.tenant)


def check_tenant(tenant: object) -> None:
    """Raises RequestError unless it is the name of a tenant."""
    if not isinstance(tenant, str) or not _TENANT.fullmatch(tenant):
        raise RequestError(
            f"the tenant {repr(tenant)[:80]} is no name of 1 to {MOST_TENANT_CHARS} letters, digits, and . _ @ -",
            param="tenant",
        )


DEFAULT_SERVICE = ServiceLevel()
