"""`Residence` against the plainest model there is: the owner of each token, by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import KVRange
from longspan.core.internal_error import InternalError
from longspan.core.kv.residence import Residence

Owners = dict[int, int | None]
instances = st.integers(0, 3)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), instances, st.integers(1, 6)),
        st.tuples(st.just("move"), instances, instances),
        st.tuples(st.just("lose"), instances, st.just(0)),
        st.tuples(st.just("fill"), instances, st.integers(0, 2**30)),
        st.tuples(st.just("truncate"), st.just(0), st.integers(0, 2**30)),
        st.tuples(st.just("split"), st.just(0), st.integers(0, 2**30)),
    ),
    max_size=12,
)


def stretches(positions: Iterable[int]) -> list[tuple[int, int]]:
    """[start, end) of positions side by side."""
    found: list[list[int]] = []
    for position in sorted(positions):
        if found and found[-1][1] == position:
            found[-1][1] += 1
        else:
            found.append([position, position + 1])
    return [(start, end) for start, end in found]


@given(steps, st.integers(0, 100))
def test_it_agrees_with_the_owner_of_each_token(steps: list[tuple[str, int, int]], begin: int) -> None:
    parts: list[tuple[Residence, Owners]] = [(Residence(0, begin), {})]
    for kind, first, second in steps:
        residence, owners = parts[-1]
        mine = stretches(token for token, owner in owners.items() if owner == first)
        missing = stretches(token for token, owner in owners.items() if owner is None)
        if kind == "append":
            end = residence.end + second
            residence.grow(first) if second == 1 else residence.append([KVRange(first, residence.end, end)])
            owners |= dict.fromkeys(range(residence.end - second, residence.end), first)
        elif kind == "move" and mine:
            residence.move(first, second, mine[::2])
            owners |= {token: second for start, end in mine[::2] for token in range(start, end)}
        elif kind == "lose":
            residence.lose(first)
            owners |= {token: None for start, end in mine for token in range(start, end)}
        elif kind == "fill" and missing:
            start, end = missing[second % len(missing)]
            start += second % (end - start)
            residence.fill(KVRange(first, start, end))
            owners |= dict.fromkeys(range(start, end), first)
        elif kind == "truncate":
            end = residence.begin + second % (residence.end - residence.begin + 1)
            residence.truncate(end)
            for token in [token for token in owners if token >= end]:
                del owners[token]
        elif kind == "split" and residence.end - residence.begin > 1:
            at = residence.begin + 1 + second % (residence.end - residence.begin - 1)
            tail = residence.split(at, len(parts))
            assert residence.sealed and not tail.sealed
            parts.append((tail, {token: owners.pop(token) for token in sorted(owners) if token >= at}))
    for number, (residence, owners) in enumerate(parts):
        agree(residence, owners)
        assert residence.number == number
        assert residence.begin == (parts[number - 1][0].end if number else begin)


def agree(residence: Residence, owners: Owners) -> None:
    assert list(range(residence.begin, residence.end)) == sorted(owners)
    held = {token: owner for token, owner in owners.items() if owner is not None}
    pieces = residence.ranges()
    assert {token: piece.instance for piece in pieces for token in range(piece.start, piece.end)} == held
    assert all(piece.length for piece in pieces)
    assert all(one.end < other.start or one.instance != other.instance for one, other in pairwise(pieces))
    for instance in range(4):
        assert residence.held(instance) == stretches(token for token, owner in held.items() if owner == instance)
    assert list(residence.missing()) == stretches(token for token, owner in owners.items() if owner is None)
    assert residence.counts == dict(residence.context) == Counter(held.values())
    assert residence.holders == tuple(sorted(set(held.values())))


def of(*owners: int) -> Residence:
    residence = Residence(3)
    for owner in owners:
        residence.append([KVRange(owner, residence.end, residence.end + 10)])
    return residence


def test_what_is_sealed_does_not_grow() -> None:
    residence = of(0)
    residence.seal()
    with pytest.raises(InternalError, match="residence 3 is sealed"):
        residence.append([KVRange(0, 10, 20)])
    with pytest.raises(InternalError, match="residence 3 is sealed"):
        residence.grow(0)


@pytest.mark.parametrize("new", [KVRange(2, 5, 12), KVRange(2, 10, 25), KVRange(2, 30, 31), KVRange(2, 12, 12)])
def test_only_what_is_missing_is_filled(new: KVRange) -> None:
    residence = of(0, 1, 0)
    residence.lose(1)
    with pytest.raises(InternalError, match="is not missing"):
        residence.fill(new)


def test_it_is_cut_inside_only() -> None:
    residence = of(0, 1)
    for at in (0, 20, 25):
        with pytest.raises(InternalError, match=f"cannot be split at {at}"):
            residence.split(at, 4)
    with pytest.raises(InternalError, match="cannot end at 21"):
        residence.truncate(21)


@given(*[st.lists(st.integers(0, 1), min_size=1, max_size=8)] * 2, st.integers(0, 3), st.integers(0, 3), st.data())
def test_where_two_are_alike_is_found_from_the_end(
    mine: list[int], theirs: list[int], begin: int, other_begin: int, data: st.DataObject
) -> None:
    one, two = Residence(0, begin), Residence(1, other_begin)
    for residence, owners in ((one, mine), (two, theirs)):
        for position, owner in enumerate(owners, start=residence.begin):
            residence.append([KVRange(owner, position, position + 1)])
        lost = data.draw(st.integers(0, 4))
        if lost in residence.holders:
            residence.lose(lost)
    end = data.draw(st.integers(0, min(one.end, two.end)))
    position = end
    while position > max(begin, other_begin):
        held = [residence.between(position - 1, position) for residence in (one, two)]
        if not held[0] or held[0] != held[1]:
            break
        position -= 1
    assert one.alike_from(two, end) == position
