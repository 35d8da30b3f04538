"""The fit on synthetic measurements."""

from __future__ import annotations

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from longspan.core.costs.batch_shape import BatchShape
from longspan.core.costs.cost_model import Chunk, DecodeCoefficients, FittedCostModel, PrefillCoefficients
from longspan.errors import ConfigError
from longspan.profiler.check import check_predictions
from longspan.profiler.fit import fit_cost_model, nonnegative_least_squares
from longspan.profiler.grid import numbers_measured
from longspan.sib import MeasuredIteration, MeasuredMigration, Measurements
from tests.core.cost_models import scaling_model

LENGTHS = (16, 64, 256, 1024, 4096)
BATCHES = (1, 2, 4, 8, 16, 32)
MASTERS = [(1, 1), (2, 1), (2, 2)]

SHAPES = [
    *(BatchShape(num_instances=n, chunks=(Chunk(length),)) for n, length in product((1, 2), LENGTHS)),
    *(BatchShape(num_instances=n, chunks=(Chunk(128, length),) * 3) for n, length in product((1, 2), LENGTHS)),
    *(
        BatchShape(num_instances=n, num_requests=batch, context_tokens=batch * context, num_masters=m)
        for (n, m), batch, context in product(MASTERS, BATCHES, LENGTHS)
    ),
]


def measure(model: FittedCostModel, noise: float = 0.0, seed: int = 0) -> Measurements:
    """What a machine that behaves as `model` says would show, every time off by up to this share."""
    draw = random.Random(seed)

    def seen(seconds: float) -> float:
        return seconds * (1 + draw.uniform(-noise, noise))

    return Measurements(
        iterations=tuple(MeasuredIteration(shape=s, seconds=seen(s.predict(model)), samples=1) for s in SHAPES),
        migrations=tuple(
            MeasuredMigration(num_tokens=tokens, seconds=seen(model.migration(tokens)), samples=1)
            for tokens in LENGTHS
        ),
    )


def times(low: float, high: float) -> st.SearchStrategy[float]:
    """Some coefficients are nothing at all, as fits like to have it."""
    return st.one_of(st.just(0.0), st.floats(low, high))


@st.composite
def models(draw: st.DrawFn) -> FittedCostModel:
    return FittedCostModel(
        prefill_coefficients=tuple(
            PrefillCoefficients(
                num_instances=n, fixed=draw(st.floats(1e-3, 0.1)), per_token=draw(times(1e-5, 1e-3)),
                per_pair=draw(times(1e-9, 1e-7)),
            )
            for n in (1, 2)
        ),
        decode_coefficients=tuple(
            DecodeCoefficients(
                num_instances=n, num_masters=m, fixed=draw(st.floats(1e-3, 0.1)),
                per_request=draw(st.floats(1e-4, 1e-2)), per_context_token=draw(times(1e-8, 1e-5)),
                free_requests=float(draw(st.integers(0, 15))),
            )
            for n, m in MASTERS
        ),
        migration_fixed=draw(st.floats(1e-4, 1e-2)),
        migration_per_token=draw(times(1e-7, 1e-4)),
    )  # fmt: skip


@given(model=models())
def test_a_machine_that_is_as_the_model_says_is_found_again(model: FittedCostModel) -> None:
    fitted = fit_cost_model(measure(model), 2)
    for shape in SHAPES:
        assert shape.predict(fitted) == pytest.approx(shape.predict(model), rel=1e-6)
    assert fitted.migration(700) == pytest.approx(model.migration(700), rel=1e-6)
    for found, true in zip(fitted.prefill_coefficients, model.prefill_coefficients, strict=True):
        assert found.fixed == pytest.approx(true.fixed, rel=1e-5)
        assert found.per_token == pytest.approx(true.per_token, rel=1e-5, abs=1e-9)
        assert found.per_pair == pytest.approx(true.per_pair, rel=1e-5, abs=1e-13)


def test_numbers_between_those_measured_are_interpolated() -> None:
    """Exactly, where what is fixed grows by the same for each instance and work is divided by their number."""
    true = scaling_model(40)
    assert {17, 22, 30} - set(numbers_measured(40)) == {17, 22, 30} and numbers_measured(40)[-1] == 40
    shapes = [
        *(BatchShape(num_instances=n, chunks=(Chunk(length),)) for n in numbers_measured(40) for length in LENGTHS),
        *(
            BatchShape(num_instances=n, num_requests=batch, context_tokens=batch * context, num_masters=m)
            for n in numbers_measured(40)
            for m, batch, context in product({1, n}, (1, 4, 40, 160), LENGTHS)
        ),
    ]
    measured = [MeasuredIteration(shape=shape, seconds=shape.predict(true), samples=1) for shape in shapes]
    fitted = fit_cost_model(Measurements(iterations=tuple(measured), migrations=()), 40)
    for n in range(1, 41):
        assert fitted.prefill([Chunk(700, 50)], n) == pytest.approx(true.prefill([Chunk(700, 50)], n), rel=1e-6)
        for masters in (1, n):
            assert fitted.decode(99, 5000, n, masters) == pytest.approx(true.decode(99, 5000, n, masters), rel=1e-6)


@given(model=models(), seed=st.integers(0, 1000))
def test_noise_does_no_more_harm_than_it_must(model: FittedCostModel, seed: int) -> None:
    """No coefficient is below zero, and the fit is at least as close to what was measured as the truth is."""
    measurements = measure(model, noise=0.1, seed=seed)
    fitted = fit_cost_model(measurements, 2)
    for row in (*fitted.prefill_coefficients, *fitted.decode_coefficients):
        assert all(getattr(row, name) >= 0 for name in row.__dataclass_fields__)
    assert fitted.migration_fixed >= 0 and fitted.migration_per_token >= 0

    def squared_error(of: FittedCostModel, kind: str) -> float:
        return sum(c.relative_error**2 for c in check_predictions(of, measurements).comparisons if c.kind == kind)

    for kind in ("prefill", "decode", "migration"):
        # relative_error is over the measured time, as in the fit
        assert squared_error(fitted, kind) <= squared_error(model, kind) + 1e-9


@given(
    rows=st.lists(st.tuples(*[st.integers(0, 100)] * 3), min_size=1, max_size=8),
    others=st.lists(st.tuples(*[st.floats(0, 50)] * 3), min_size=1, max_size=20),
    data=st.data(),
)
def test_no_other_point_without_negative_coordinates_is_better(
    rows: list[tuple[float, ...]], others: list[tuple[float, ...]], data: st.DataObject
) -> None:
    targets = data.draw(st.lists(st.integers(1, 100), min_size=len(rows), max_size=len(rows)))

    def error(x: tuple[float, ...]) -> float:
        return float((((np.array(rows) @ np.array(x) - targets) / targets) ** 2).sum())

    fit = nonnegative_least_squares(rows, targets)
    assert min(fit.coefficients) >= 0
    assert error(fit.coefficients) == pytest.approx(fit.error, abs=1e-6)
    for other in others:
        assert fit.error <= error(other) + 1e-6
        for step in (0.5, 0.01):  # nor any on the way there
            nearby = tuple(x + step * (y - x) for x, y in zip(fit.coefficients, other, strict=True))
            assert fit.error <= error(nearby) + 1e-6


def test_errors_count_relative_to_their_times() -> None:
    """One line cannot pass through all three points; a plain least squares would sacrifice the shortest."""
    rows, targets = [(1.0, 1.0), (1.0, 1000.0), (1.0, 2000.0)], [1.0, 100.0, 205.0]
    fixed, slope = nonnegative_least_squares(rows, targets).coefficients
    assert fixed + slope == pytest.approx(1.0, rel=0.02)
    plain = np.linalg.lstsq(np.array(rows), np.array(targets), rcond=None)[0]
    assert abs(plain.sum() - 1.0) > 0.5


def test_what_was_not_measured_is_named() -> None:
    nothing = Measurements(iterations=(), migrations=())
    with pytest.raises(ConfigError, match="no prefill on 1 instances was measured: the KV pool is too small"):
        fit_cost_model(nothing, 1)
    prefills = Measurements(
        iterations=tuple(MeasuredIteration(shape=s, seconds=1.0, samples=1) for s in SHAPES if s.chunks), migrations=()
    )
    with pytest.raises(ConfigError, match="no decode on 1 instances with 1 masters was measured"):
        fit_cost_model(prefills, 1)
