"""Requests that decode, all of a batch at once: they are most of what there is, and a batch is much like the last."""

from __future__ import annotations

from collections.abc import Sequence

from longspan.config import SchedulerConfig
from longspan.core.actions import Segment
from longspan.core.books.claims.repairs import Repairs
from longspan.core.books.cluster import Cluster
from longspan.core.books.request import Request, RequestStatus
from longspan.core.decision import EVICTED, Decision
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.prefixes.cache import PrefixCache

Decodes = Sequence[tuple[Request, int]]
"""Requests that decode, each with its master."""


class DecodeSteps(Repairs):
    """The part of the books in which they begin a step, and are ready for the next.

    decisions: why things were decided as they are in this call. num_prefills: batches issued that were not pure decode
    iterations.
    """

    def __init__(
        self, config: SchedulerConfig, cluster: Cluster, placement: KVPlacement, prefixes: PrefixCache
    ) -> None:
        super().__init__(config, cluster, placement, prefixes)
        self.decisions: list[Decision] = []
        self.num_prefills = 0
        self._ready_moments = 0

    def enter_decodes(self, decodes: Decodes) -> list[Segment]:
        """Have ready requests enter a batch, each with one more token at its master: slots are taken at once."""
        requests, masters = [request for request, _ in decodes], [master for _, master in decodes]
        holders = self.cluster.unlist_decodes(requests)
        segments = self.placement.grow([request.id for request in requests], masters, holders)
        self._take_each(decodes)
        headroom, own = self.config.decode_headroom, self.placement.own
        for request, master, segment in zip(requests, masters, segments, strict=True):
            request.in_flight += 1
            request.num_scheduled += 1
            if request.reserved:
                self.use_reservation(request)
            left = request.num_prompt_tokens + request.max_tokens - 2 - segment.start
            if request.home != master or request.promised != headroom or left < headroom or request.reserved:
                self.renew_promise(request, own[request.id])  # else it is the same again
        return segments

    def take(self, instance: int, tokens: int, request_id: str) -> None:
        """Take slots of an instance for a request; cached tokens go where they are in the way."""
        there = self.cluster[instance]
        if there.cached and there.vacant < tokens and (evicted := self.prefixes.make_room(instance, tokens)):
            told = {"tokens": sum(evicted.values())} | {f"tokens of {name}": count for name, count in evicted.items()}
            self.decisions.append(Decision(EVICTED, (request_id, *evicted), (instance,), told))
        self.cluster.take(instance, tokens)

    def _take_each(self, decodes: Decodes) -> None:
        """Take a slot for each, in order; cached tokens go where they are in the way."""
        instances = {master: self.cluster[master] for master in {master for _, master in decodes}}
        for request, master in decodes:
            there = instances[master]
            if there.used + there.cached < there.capacity:
                there.used += 1
            else:
                self.take(master, 1, request.id)

    def make_ready(self, *requests: Request) -> None:
        """Note that nothing touches them any more, in this order: they are free to run, move or be preempted."""
        listed, decoding = list[Request](), RequestStatus.DECODING
        for request in requests:
            if request.flowing:
                self.stop_flowing(request)
            if self.repairing and self.repairing.pop(request.id, None) is not None and request.prefix_keys:
                self.prefixes.register(request)
                self.prefixes.coming.note(request)
            if self.keeps_on_one_instance and self.is_apart(request):
                self.part(request)
                continue
            if request.status is not decoding:
                request.become(request.resting_status)
            request.ready_order = self._ready_moments
            request.prefills_seen = self.num_prefills
            self._ready_moments += 1
            listed.append(request)
        self.cluster.list_ready(listed, self.placement.holders_of([request.id for request in listed]))

    def stop_flowing(self, request: Request) -> None:
        if request.flowing:
            request.flowing = False
            self.cluster.unlist_flowing(request, self.placement.holders(request.id))
