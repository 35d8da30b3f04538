"""Who lends whom how much context, against a count of what each instance then has to do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from longspan.core.actions import KVRange, Segment
from longspan.core.loans import MANY_ROWS, loans

Context = tuple[tuple[int, int], ...]


def segment(context: Context, compute: tuple[int, ...], length: int = 400) -> Segment:
    start = sum(tokens for _, tokens in context)
    return Segment("a", start, length, compute, (KVRange(compute[0], start, start + length),), context)


def work(of: Segment, lent: dict[tuple[int, int], int]) -> dict[int, int]:
    """Pairs of a new token and one of the context, by the instance that attends."""
    pairs: dict[int, int] = {}
    for holder, tokens in of.context:
        for asker in of.computing:
            rows = sum(count for _, count, _ in of.pieces(asker))
            borrowed = lent.get((holder, asker), 0)
            pairs[holder] = pairs.get(holder, 0) + rows * (tokens - borrowed)
            pairs[asker] = pairs.get(asker, 0) + rows * borrowed
    return pairs


@pytest.mark.parametrize(
    ("context", "compute", "wanted"),
    [
        pytest.param(((0, 6000),), (0, 1), {(0, 1): 6000}, id="all on one of two"),
        pytest.param(((1, 6000),), (0, 1, 2, 3), dict.fromkeys([(1, 0), (1, 2), (1, 3)], 6000), id="on one of four"),
        pytest.param(((2, 6000),), (0, 1), {(2, 0): 4000, (2, 1): 4000}, id="on one that does not compute"),
        pytest.param(((0, 4800), (1, 1200)), (0, 1), {(0, 1): 3600}, id="most of it on one"),
        pytest.param(((0, 3600), (1, 2400)), (0, 1), {}, id="nearly even"),
        pytest.param(((0, 5900), (1, 100)), (0, 1), {(0, 1): 5900, (1, 0): 100}, id="rests that are less than queries"),
        pytest.param(((0, 6000),), (1,), {}, id="one that computes"),
    ],
)
def test_examples(context: Context, compute: tuple[int, ...], wanted: dict[tuple[int, int], int]) -> None:
    assert loans(segment(context, compute)) == wanted


def test_few_rows_ask() -> None:
    few, enough = (segment(((0, 6000),), (0, 1), length=length) for length in (2 * MANY_ROWS - 1, 2 * MANY_ROWS))
    assert not loans(few) and loans(enough)


@st.composite
def segments(draw: st.DrawFn) -> Segment:
    compute = draw(st.permutations(range(4)))[: draw(st.integers(1, 4))]
    held = draw(st.dictionaries(st.integers(0, 5), st.one_of(st.integers(1, 300), st.integers(1, 20_000)), min_size=1))
    rows = draw(st.integers(1, 4 * MANY_ROWS))
    return segment(tuple(held.items()), tuple(compute), rows * len(compute))


@given(one=segments())
def test_loans_even_out_the_work(one: Segment) -> None:
    """Nobody gets more to do than somebody had. Where all who hold something compute, who has much more than a fair
    share is left with that, or has lent all that it holds.

    Rests that are lent since they are no more tokens than rows come on top.
    """
    lent, held, rows = loans(one), dict(one.context), one.length // len(one.compute)
    for (holder, borrower), tokens in lent.items():
        assert holder != borrower and borrower in one.compute and 0 < tokens <= held[holder]
    before, after = work(one, {}), work(one, lent)
    parties = len({*held, *one.compute})
    fair, rests = one.length * one.start / parties, rows * rows * len(held) * len(one.compute)
    assert sum(after.values()) == sum(before.values()) == one.length * one.start
    assert max(after.values()) <= max(before.values()) + rests
    if len(one.compute) > 1 and rows >= MANY_ROWS and set(held) <= set(one.compute):
        left = {holder for holder, tokens in held.items() if tokens not in [lent.get((holder, b)) for b in one.compute]}
        assert all(after[holder] <= max(1.5 * fair, fair + one.length) + rests for holder in left)
    assert loans(replace(one, context=tuple(reversed(one.context)))) == lent, "both ends find the same"
