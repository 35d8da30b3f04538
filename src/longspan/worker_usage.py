"""What a worker says of itself, twice a second, beside its sign of life."""

from __future__ import annotations

from msgspec import Struct


class WorkerUsage(Struct, frozen=True, gc=False):
    """One worker's own figures, since it began.

    instance, worker: whose device it drives, and its rank among all. cpu_s: processor time of its process; of its
    thread alone, where workers are threads. rss_bytes: resident memory of its process. busy_s: seconds in which it
    carried out commands, waits for its peers inside batches included. kv_slots_used: of its part of the KV pool; as
    the worker counts them, so a moment behind the scheduler.
    """

    instance: int = 0
    worker: int = 0
    cpu_s: float = 0.0
    rss_bytes: int = 0
    busy_s: float = 0.0
    kv_slots_used: int = 0
