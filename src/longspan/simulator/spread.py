"""A batch of a given shape, with all KV spread evenly: what a profile measures, and published timings hold for."""

from __future__ import annotations

from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.core.costs.batch_shape import BatchShape


def evenly_spread(shape: BatchShape) -> RunBatch:
    """Stripe chunks over all instances; deal decodes out over the first masters, each with the same context."""
    group = tuple(range(shape.num_instances))
    segments = [
        _segment(f"chunk {place}", length, context, group[place % len(group) :] + group[: place % len(group)], group)
        for place, (length, context) in enumerate(shape.chunks)
    ]
    for place in range(shape.num_requests):
        share = shape.context_tokens * (place + 1) // shape.num_requests
        context = share - shape.context_tokens * place // shape.num_requests
        master = place % max(1, shape.num_masters)
        segments.append(_segment(f"decode {place}", 1, context, (master,), group))
    return RunBatch(0, group, tuple(segments))


def _segment(name: str, length: int, context: int, compute: tuple[int, ...], group: tuple[int, ...]) -> Segment:
    return Segment(
        request_id=name,
        start=context,
        length=length,
        compute=compute,
        store=_ranges(context, length, compute),
        context=tuple((n, tokens) for n, tokens in zip(group, _shares(context, len(group)), strict=True) if tokens),
    )


def _ranges(start: int, length: int, keepers: tuple[int, ...]) -> tuple[KVRange, ...]:
    ranges = []
    for keeper, tokens in zip(keepers, _shares(length, len(keepers)), strict=True):
        if tokens:
            ranges.append(KVRange(keeper, start, start + tokens))
        start += tokens
    return tuple(ranges)


def _shares(tokens: int, parts: int) -> list[int]:
    """What `share_evenly` returns where there is room for all everywhere: the last ones get what is over."""
    share, over = divmod(tokens, parts)
    return [share] * (parts - over) + [share + 1] * over
