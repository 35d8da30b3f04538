"""Context that is lent: where one instance holds most of it, others attend to some of that themselves.

As a rule an instance answers for the context that it holds, to all who compute (attention/elastic.py). Of a turn of a
conversation all context may lie on the instance that decoded before, which would then attend alone while the others
wait. So it lends them keys and values, which they meet with their own queries. Who lends whom how much follows from the
segment alone, and both ends work it out.
"""

from __future__ import annotations

from longspan.core.actions import Segment

MANY_ROWS = 32
"""Rows of a borrower from which a loan pays: to copy a token's keys and values takes as long as some rows take to
attend to them."""
MOST_TOKENS = 65_536
"""Of a loan. Its keys and values in one layer are in the memory of both ends: 50 MB of a model like SmolLM2-135M, and
270 MB of one like Llama-3-8B."""


def loans(segment: Segment) -> dict[tuple[int, int], int]:
    """Return how many tokens of the segment's context who lends to whom: {(holder, borrower): tokens}.

    Who holds more than one and a half times its fair share lends what is above that to those who compute and hold less
    than theirs, in proportion to what they lack. Each token lent moves the work of the borrower's rows. What is left to
    ask for is lent as well, if it is no more tokens than rows: it is less to send than queries and their results.
    """
    computing = segment.computing
    size = len(computing)
    rows = segment.length // size
    if size == 1 or rows < MANY_ROWS:
        return {}
    held, context = dict(segment.context), segment.start
    parties = len(held.keys() | set(computing))
    above = {
        holder: parties * tokens - context for holder, tokens in held.items() if 2 * parties * tokens > 3 * context
    }
    below = {borrower: max(0, context - parties * held.get(borrower, 0)) for borrower in computing}
    most = parties * max(1, sum(above.values()), sum(below.values()))
    lent = {}
    for holder, tokens in held.items():
        for borrower in computing:
            loan = min(tokens, MOST_TOKENS, size * above.get(holder, 0) * below[borrower] // most)
            if tokens - loan <= rows:
                loan = tokens
            if loan and borrower != holder:
                lent[holder, borrower] = loan
    return lent
