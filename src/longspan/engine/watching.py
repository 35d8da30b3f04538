"""Who looks on while the engine decides: what a page shows is worked out only meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from longspan.engine.engine_core import EngineCore
from longspan.engine.observer.messages import Watch
from longspan.engine.observer.observation import ObservedView
from longspan.engine.request import EngineRequest
from longspan.metrics.fleet.lives import Known


@contextmanager
def watching(core: EngineCore) -> Iterator[ObservedView]:
    """Keep a fleet up to date meanwhile, beginning with what is there. Raises OSError."""
    observation, now = core.records.observation, core.clock()
    opening, records = core.records.recent.all()
    inventory = core.scheduler.inventory()
    slim = [replace(request, prefix_keys=bytearray()) for request in inventory.requests]
    watch = Watch(
        observation.next_number(), core.scheduler.config.num_instances, replace(inventory, requests=slim),
        _known(core.requests), now, time.time() - now,
        (opening, records[0].now, records[-1].now) if records else None,
    )  # fmt: skip
    with observation.watching(watch, records, core.records.catch_up, core.clock) as view:
        yield view


def _known(requests: Mapping[str, EngineRequest]) -> dict[str, Known]:
    found: dict[str, Known] = {}
    for request_id, request in requests.items():
        times, quote = request.times, request.quote
        told = None if quote is None else (quote.median_s, quote.quote_s, quote.promised_s, quote.deadline_s)
        found[request_id] = Known(times.scheduled, times.first_token, times.last_token, told)
    return found
