"""Which requests could run at once, if their instances can: listed where they hold KV."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from longspan.core.books.instance import Instance
from longspan.core.books.request import Request, RequestStatus


class RestingRequests:
    """The part of the cluster that lists them: for each instance, and for all together, so that who wants to look at
    each once need not go through the lists of all its holders.

    ready_decodes, ready_prefills: those that are ready, by id, in any order; only for reading. decode_holders: the
    instances that hold KV of each of the former, in the same order.
    """

    def __init__(self, instances: Iterable[Instance]) -> None:
        """Begin without any. instances: all of them idle."""
        self._numbered = {instance.id: instance for instance in instances}
        self._idle_numbers = set(self._numbered)
        self._resting: set[int] = set()
        self.ready_decodes: dict[str, Request] = {}
        self.ready_prefills: dict[str, Request] = {}
        self.decode_holders: dict[str, tuple[int, ...]] = {}

    def prefills(self) -> list[Request]:
        """Return the prefills that are ready or flow, each once, in any order."""
        found = dict(self.ready_prefills)
        for instance in self._numbered.values():
            found |= instance.flowing
        return list(found.values())

    def resting_prefills(self) -> list[Request]:
        """Return the prefills that are ready or flow, of which an instance is idle, in a certain order."""
        found: dict[str, Request] = {}
        prefills = self.ready_prefills
        for instance in [self._numbered[number] for number in sorted(self._resting)]:
            found |= {name: request for name, request in instance.ready.items() if name in prefills}
            found |= instance.flowing
        return list(found.values())

    def list_ready(self, requests: Sequence[Request], holders: Sequence[tuple[int, ...]]) -> None:
        """List them, in this order. holders: of each."""
        named = {request.id: request for request in requests}
        prefills = [request for request in requests if request.status is not RequestStatus.DECODING]
        self.ready_decodes |= named
        self.decode_holders |= zip(named, holders, strict=True)
        for request in prefills:
            self.ready_prefills[request.id] = self.ready_decodes.pop(request.id)
            del self.decode_holders[request.id]
        for number, here in _by_holder(named, holders):
            self._numbered[number].ready |= here
            if number in self._idle_numbers:
                self._resting.add(number)

    def unlist_decodes(self, requests: Sequence[Request]) -> list[tuple[int, ...]]:
        """List many no more, which are ready to decode; returns the holders of each."""
        named = {request.id: request for request in requests}
        holders = list(map(self.decode_holders.pop, named))
        _drop(named, self.ready_decodes)
        for number, here in _by_holder(named, holders):
            instance = self._numbered[number]
            _drop(here, instance.ready)
            if not instance.ready and not instance.flowing:
                self._resting.discard(number)
        return holders

    def list_ready_again(self, request: Request, holders: tuple[int, ...]) -> None:
        """List a request that has become ready before, in its place."""
        self.list_ready([request], [holders])
        for number in holders:
            instance = self._numbered[number]
            instance.ready = dict(sorted(instance.ready.items(), key=lambda entry: entry[1].ready_order))

    def unlist_ready(self, request: Request, holders: Callable[[str], Iterable[int]]) -> None:
        """List it no more, if it is listed. holders: of a request, the instances that hold its KV."""
        name, numbered = request.id, self._numbered
        known: Iterable[int] | None = self.decode_holders.pop(name, None)
        if known is None:
            self.ready_prefills.pop(name, None)
            known = holders(name)
        else:
            del self.ready_decodes[name]
        for number in known:
            instance = numbered[number]
            instance.ready.pop(name, None)
            if not instance.ready and not instance.flowing:
                self._resting.discard(number)

    def list_flowing(self, request: Request, holders: Iterable[int]) -> None:
        for number in holders:
            instance = self._numbered[number]
            instance.flowing[request.id] = request
            if number in self._idle_numbers:
                self._resting.add(number)

    def unlist_flowing(self, request: Request, holders: Iterable[int]) -> None:
        for number in holders:
            instance = self._numbered[number]
            del instance.flowing[request.id]
            if not instance.ready and not instance.flowing:
                self._resting.discard(number)


def _by_holder(
    named: Mapping[str, Request], holders: Sequence[tuple[int, ...]]
) -> list[tuple[int, Mapping[str, Request]]]:
    """Which of them each instance holds, in order. holders: of each."""
    apart = set(holders)
    if len(apart) == 1:  # as nearly always
        return [(number, named) for number in apart.pop()]
    found = {number: dict[str, Request]() for number in sorted(set().union(*apart))}
    for (name, request), each in zip(named.items(), holders, strict=True):
        for number in each:
            found[number][name] = request
    return list(found.items())


def _drop(names: Collection[str], listed: dict[str, Request]) -> None:
    """List these, which are listed, no more."""
    if len(names) == len(listed):
        listed.clear()
        return
    for name in names:
        del listed[name]
