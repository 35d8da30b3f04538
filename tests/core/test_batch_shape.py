"""What of a batch a cost model is asked about, and how the answers hang together."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.actions import KVRange, RunBatch, Segment
from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk, DecodeCoefficients, FittedCostModel, PrefillCoefficients

MODEL = FittedCostModel(
    prefill_coefficients=tuple(
        PrefillCoefficients(num_instances=n, fixed=0.01 * n, per_token=1e-3 / n, per_pair=1e-7 / n) for n in (1, 2, 3)
    ),
    decode_coefficients=tuple(
        DecodeCoefficients(
            num_instances=n, num_masters=m, fixed=0.02 + 0.001 * n, per_request=2e-3 / m, per_context_token=1e-6 / n,
            free_requests=4.0 * m,
        )
        for n in (1, 2, 3)
        for m in sorted({1, n})
    ),
    migration_fixed=1e-3,
    migration_per_token=1e-6,
)  # fmt: skip


def segment(request: str, start: int, length: int, compute: tuple[int, ...], context: dict[int, int]) -> Segment:
    return Segment(
        request, start, length, compute, (KVRange(compute[0], start, start + length),), tuple(context.items())
    )


def test_the_shape_of_a_batch() -> None:
    batch = RunBatch(
        7,
        (0, 1, 2),
        (
            segment("prompt", 0, 50, (0, 1, 2), {}),
            segment("chunk", 100, 30, (0, 1, 2), {2: 100}),
            segment("prompt of one token", 0, 1, (0,), {}),
            segment("decode", 40, 1, (1,), {0: 40}),
            segment("another", 60, 1, (1,), {0: 30, 1: 30}),
            segment("a third", 5, 1, (2,), {2: 5}),
        ),
    )
    assert BatchShape.of(batch) == BatchShape(
        num_instances=3, chunks=(Chunk(50, 0), Chunk(30, 100), Chunk(1, 0)), num_requests=3, context_tokens=105,
        num_masters=2,
    )  # fmt: skip


@given(
    chunks=st.lists(st.builds(Chunk, st.integers(1, 5000), st.integers(0, 5000)), max_size=4).map(tuple),
    requests=st.integers(0, 64),
    context=st.integers(0, 10_000),
    instances=st.integers(1, 3),
)
def test_predictions_are_the_models(
    chunks: tuple[Chunk, ...], requests: int, context: int, instances: int
) -> None:
    context *= min(1, requests)
    if not chunks and not requests:
        return
    shape = BatchShape(
        num_instances=instances, chunks=chunks, num_requests=requests, context_tokens=context,
        num_masters=min(1, requests),
    )  # fmt: skip
    seconds = shape.predict(MODEL)
    assert seconds == pytest.approx(MODEL.mixed(chunks, requests, context, instances))
    if shape.kind == "prefill":
        assert seconds == MODEL.prefill(chunks, instances)
    elif shape.kind == "decode":
        assert seconds == MODEL.decode(requests, context, instances, 1)
    else:
        apart = MODEL.prefill(chunks, instances) + MODEL.decode(requests, context, instances, 1)
        assert seconds >= MODEL.prefill(chunks, instances)
        if requests >= 4:
            assert seconds < apart + 4 * 2e-3  # one fixed cost is saved, the free requests are paid for


def test_requests_decode_for_free_while_weights_are_read() -> None:
    assert MODEL.decode(1, 0, 1, 1) == MODEL.decode(4, 0, 1, 1) < MODEL.decode(5, 0, 1, 1)
    assert MODEL.decode(8, 0, 2, 2) == MODEL.decode(1, 0, 2, 2)
