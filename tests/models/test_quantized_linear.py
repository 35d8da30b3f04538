"""Weights in few bits: kernels of every instruction set of this machine against the plain twin, any shape."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.layers.quantized_linear import PlainQuantizedLinear, QuantizedMatrix, quantised_int8
from longspan.native.build import BuildError
from longspan.native.isa import available_isas
from longspan.native.library import Library, load
from longspan.native.quantized_linear import NativeQuantizedLinear, covers

# Few rows multiply by the quants themselves, whose sums only fp32 rounds. For more a weight is rounded to x's dtype.
FEW = 18
BITS = st.sampled_from([4, 8])
OUTPUTS = st.one_of(st.integers(1, 40), st.integers(1, 300))
GROUPS = st.one_of(st.integers(1, 8), st.sampled_from([64, 65, 130]))  # 64 groups are 2,048 inputs, turned at once
ROWS = st.one_of(st.integers(0, 45), st.sampled_from([95, 384, 400]))

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module", params=available_isas(), ids=lambda isa: isa.label)
def library(request: pytest.FixtureRequest) -> Library:
    try:
        return load(request.param)
    except BuildError as error:
        pytest.skip(str(error))


def draw_matrix(generator: torch.Generator, outputs: int, groups: int, bits: int) -> QuantizedMatrix:
    """Every quant that there is, minima of either sign, and scales too, as other programs write them."""
    scales_ON = (0.02 * torch.randn(outputs, groups, generator=generator)).half()
    shape = outputs, 32 * groups
    if bits == 8:
        return QuantizedMatrix(torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8), scales_ON)
    quants_OI = torch.randint(0, 16, shape, generator=generator, dtype=torch.uint8)
    return QuantizedMatrix(quants_OI, scales_ON, (0.2 * torch.randn(outputs, groups, generator=generator)).half())


def native(
    library: Library, weight: QuantizedMatrix, dtype: torch.dtype, bias_O: torch.Tensor | None = None
) -> NativeQuantizedLinear:
    return NativeQuantizedLinear(library, weight.quants_OI, weight.scales_ON, weight.minima_ON, dtype, bias_O)


@settings(max_examples=150)
@given(st.data())
def test_kernels_compute_what_the_twin_does(library: Library, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([d for d in (torch.bfloat16, torch.float32) if covers(library, d)]))
    outputs, groups, rows = data.draw(OUTPUTS), data.draw(GROUPS), data.draw(ROWS)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    weight = draw_matrix(generator, outputs, groups, data.draw(BITS))
    bias_O = torch.randn(outputs, generator=generator).to(dtype) if data.draw(st.booleans()) else None
    inputs = 32 * groups
    x_TI = torch.randn(rows, 2 * inputs, generator=generator).to(dtype)
    x_TI = x_TI[:, :inputs] if data.draw(st.booleans()) else x_TI[:, :inputs].contiguous()  # callers pass views
    torch.set_num_threads(data.draw(st.sampled_from([1, 2, 3])))
    twin, ours = PlainQuantizedLinear(weight, bias_O), native(library, weight, dtype, bias_O)
    typical_sum = 1 + weight.dequantised().abs().mean().item() * inputs**0.5
    for result in (torch.float32, dtype):
        got, expected = ours(x_TI, result), twin(x_TI, result)
        assert got.dtype == result
        is_exact = dtype == torch.float32 or (result == torch.float32 and rows <= FEW)
        tolerance = 2e-5 if is_exact else 2e-2
        torch.testing.assert_close(got, expected, atol=tolerance * typical_sum, rtol=tolerance)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 7, 40])
def test_two_threads_of_the_process_do_not_disturb_each_other(library: Library, bits: int, rows: int) -> None:
    """Instances of the inproc executor share weights and call at the same time."""
    generator = torch.Generator().manual_seed(0)
    ours = native(library, draw_matrix(generator, 200, 6, bits), torch.float32)
    inputs = [torch.randn(rows, 192, generator=generator) for _ in range(4)]
    expected = [ours(x) for x in inputs]

    def run(i: int) -> list[torch.Tensor]:
        torch.set_num_threads(2)
        return [ours(inputs[i]) for _ in range(20)]

    with ThreadPoolExecutor(4) as pool:
        for results, wanted in zip(pool.map(run, range(4)), expected, strict=True):
            assert all(torch.equal(result, wanted) for result in results)


@settings(max_examples=50)
@given(outputs=st.integers(1, 20), groups=st.integers(1, 5), size=st.sampled_from([1e-9, 1e-3, 1.0, 1e3]),
       seed=st.integers(0, 2**31))  # fmt: skip
def test_int8_is_half_a_step_from_the_weight_at_most(outputs: int, groups: int, size: float, seed: int) -> None:
    weight_OI = size * torch.randn(outputs, 32 * groups, generator=torch.Generator().manual_seed(seed))
    weight_OI[0, :32] = 0
    kept = quantised_int8(weight_OI)
    assert kept.quants_OI.dtype == torch.int8 and kept.minima_ON is None
    largest_ON1 = weight_OI.view(outputs, groups, 32).abs().amax(-1, keepdim=True)
    # A scale is rounded to fp16, by 2^-11 of itself or, among its smallest numbers, by 2^-25.
    allowed_ON1 = largest_ON1 / 127 * 0.51 + 127 * (largest_ON1 / 127 * 2**-11 + 2**-25)
    error_OI = (kept.dequantised() - weight_OI).abs()
    assert bool((error_OI.view(outputs, groups, 32) <= allowed_ON1).all())


def test_matrices_of_one_format_stack_and_others_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [draw_matrix(generator, outputs, 3, 4) for outputs in (5, 2, 7)]
    stacked = QuantizedMatrix.stacked(parts)
    assert stacked is not None and stacked.shape == (14, 96)
    assert torch.equal(stacked.dequantised(), torch.cat([part.dequantised() for part in parts]))
    assert QuantizedMatrix.stacked([*parts, draw_matrix(generator, 4, 3, 8)]) is None
