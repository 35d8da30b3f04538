"""The one-call kernels between matrix products, against the functions of layers/ and of the KV pool."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.layers.activation import silu_and_mul
from longspan.layers.norm import rms_norm
from longspan.layers.rotary import rotate
from longspan.native.build import BuildError
from longspan.native.elementwise import NativeElementwise
from longspan.native.isa import available_isas
from longspan.native.library import load

DTYPES = st.sampled_from([torch.bfloat16, torch.float32])
ROWS = st.one_of(st.just(1), st.integers(1, 60), st.integers(1, 2000))
# Sums in another order may round to the neighbour, twice: two steps of bf16.
RELATIVE = {torch.float32: 1e-5, torch.bfloat16: 1.6e-2}


@pytest.fixture(scope="module", params=available_isas(), ids=lambda isa: isa.label)
def native(request: pytest.FixtureRequest) -> NativeElementwise:
    try:
        return NativeElementwise(load(request.param))
    except BuildError as error:
        pytest.skip(str(error))


def normal(seed: int, *shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.is_contiguous()
    torch.testing.assert_close(got, expected, rtol=RELATIVE[expected.dtype], atol=1e-5)


@settings(max_examples=60)
@given(rows=ROWS, dtype=DTYPES, width=st.sampled_from([32, 576, 2048]), seed=st.integers(0, 1000))
def test_norms(native: NativeElementwise, rows: int, dtype: torch.dtype, width: int, seed: int) -> None:
    x, delta = normal(seed, rows, width + 32, dtype=dtype)[:, :width], normal(seed + 1, rows, width, dtype=dtype)
    weight = normal(seed + 2, width, dtype=dtype)
    close(native.rms_norm(x, weight, 1e-5), rms_norm(x, weight, 1e-5))
    for residual in (x, x.float()):  # the residual stream may be more exact than the rest
        total, normed = native.add_and_norm(residual, delta, weight, 1e-5)
        torch.testing.assert_close(total, residual + delta, rtol=0, atol=0)
        close(normed, rms_norm(residual + delta, weight, 1e-5))


@settings(max_examples=60)
@given(rows=ROWS, dtype=DTYPES, head_dim=st.sampled_from([64, 128]), seed=st.integers(0, 1000))
def test_heads_are_normalised_and_rotated(
    native: NativeElementwise, rows: int, dtype: torch.dtype, head_dim: int, seed: int
) -> None:
    qk_ThK = normal(seed, rows, 8, head_dim, dtype=dtype)[:, :5]  # a view of q, k and v together
    weight_hK = normal(seed + 1, 5, head_dim, dtype=dtype)
    close(native.rms_norm(qk_ThK, weight_hK, 1e-6), rms_norm(qk_ThK, weight_hK, 1e-6))
    angles = normal(seed + 2, rows, 1, head_dim // 2, dtype=torch.float32) * 100
    got, expected = (f(qk_ThK, angles.cos(), angles.sin()) for f in (native.rotate, rotate))
    torch.testing.assert_close(got, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-5)


@settings(max_examples=60)
@given(rows=ROWS, dtype=DTYPES, width=st.sampled_from([32, 1536]), seed=st.integers(0, 1000))
def test_swiglu(native: NativeElementwise, rows: int, dtype: torch.dtype, width: int, seed: int) -> None:
    gate_up = normal(seed, rows, 2 * width, dtype=dtype) * 30  # so that some gates are far below -88
    close(native.silu_and_mul(gate_up), silu_and_mul(gate_up))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_kv_write(native: NativeElementwise, dtype: torch.dtype) -> None:
    x = normal(0, 20, 9, 64, dtype=dtype)[:, 4:7]
    pool, expected = (torch.zeros(3, 100, 64, dtype=dtype) for _ in range(2))
    slots = torch.randperm(100)[:20]
    native.write_slots(pool, slots, x)
    expected.index_copy_(1, slots, x.transpose(0, 1))
    torch.testing.assert_close(pool, expected, rtol=0, atol=0)


@pytest.mark.parametrize("slot", [-1, 100])
def test_a_write_outside_the_pool_is_refused(native: NativeElementwise, slot: int) -> None:
    pool = torch.zeros(3, 100, 64)
    with pytest.raises(IndexError, match="outside the pool's 100"):
        native.write_slots(pool, torch.tensor([5, slot]), torch.ones(2, 3, 64))
    assert not pool.any()
