"""`KVPlacement` against the plainest model there is: a list with the owner of each token."""

from __future__ import annotations

from collections import Counter
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import KVRange
from longspan.core.internal_error import InternalError
from longspan.core.kv.adopted import Adopted
from longspan.core.kv.kv_placement import KVPlacement
from longspan.core.kv.residence import Residence

instances = st.integers(0, 3)
adds = st.tuples(st.just("add"), st.integers(0, 3), st.integers(1, 6), st.just(0))
moves = st.tuples(st.just("move"), st.integers(0, 3), st.integers(0, 3), st.integers(0, 2**30))


def runs(owners: list[int]) -> list[tuple[int, int, int]]:
    """(owner, start, end) of each stretch with one owner."""
    found, position = [], 0
    for owner, stretch in groupby(owners):
        length = len(list(stretch))
        found.append((owner, position, position + length))
        position += length
    return found


@given(st.lists(st.one_of(adds, moves), min_size=1))
def test_it_agrees_with_a_list_of_owners(steps: list[tuple[str, int, int, int]]) -> None:
    placement, owners = KVPlacement(), list[int]()
    for kind, first, second, bits in steps:
        if kind == "add":
            placement.add("r", [KVRange(first, len(owners), len(owners) + second)])
            owners += [first] * second
        elif first != second:
            chosen = [start + bits % (end - start) for owner, start, end in runs(owners) if owner == first]
            if chosen:
                placement.move("r", first, second, [(token, token + 1) for token in chosen])
                for token in chosen:
                    owners[token] = second
    assert [(r.instance, r.start, r.end) for r in placement.ranges("r")] == runs(owners)
    assert placement.counts("r") == dict(placement.context("r")) == Counter(owners)
    assert placement.holders("r") == tuple(sorted(set(owners)))
    assert [placement.total(instance) for instance in range(4)] == [owners.count(i) for i in range(4)]
    if owners:
        assert placement.last_holder("r") == owners[-1]
        residence, adopted = placement.release("r")
        assert residence is not None and residence.counts == Counter(owners) and adopted is None
    assert len(placement) == 0 and placement.context("r") == () and placement.ranges("r") == ()


@pytest.mark.parametrize("new", [KVRange(0, 4, 6), KVRange(0, 6, 8), KVRange(0, 5, 5)])
def test_tokens_are_added_in_order_without_gaps(new: KVRange) -> None:
    placement = KVPlacement()
    placement.add("r", [KVRange(1, 0, 5)])
    with pytest.raises(InternalError, match=r"residence 0 ends at 5: .* cannot be appended"):
        placement.add("r", [new])


@given(
    st.lists(
        st.tuples(st.lists(instances, min_size=1, max_size=3), st.lists(instances, max_size=2), instances), max_size=5
    )
)
def test_many_requests_grow_as_each_would_alone(requests: list[tuple[list[int], list[int], int]]) -> None:
    """Also behind what they have adopted, and on instances that held nothing of them."""
    placement, names = KVPlacement(), [f"r{number}" for number in range(len(requests))]
    masters = [master for _, _, master in requests]
    for name, (own, adopted, _) in zip(names, requests, strict=True):
        earlier = Residence(100 + len(placement))
        earlier.append([KVRange(owner, 4 * place, 4 * place + 4) for place, owner in enumerate(adopted)])
        if adopted:
            placement.adopted[name] = Adopted([(earlier, earlier.end)])
        begin = earlier.end
        placement.add(name, [KVRange(owner, begin + 2 * at, begin + 2 * at + 2) for at, owner in enumerate(own)])
    for _ in range(3):
        expected = [placement.decode_segment(name, master) for name, master in zip(names, masters, strict=True)]
        assert placement.holders_of(names) == [placement.holders(name) for name in names]
        assert placement.grow(names, masters, placement.holders_of(names)) == expected
