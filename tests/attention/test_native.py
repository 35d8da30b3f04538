"""Our CPU kernels against the plain formula: every instruction set of this machine, any shape, any slots."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from longspan.attention.backend import PagedSegment
from longspan.attention.cpu import CpuBackend
from longspan.attention.native import NativeCpuBackend, cpu_backend
from longspan.attention.partial import Partial
from longspan.attention.reference import ReferenceBackend
from longspan.native.build import BuildError
from longspan.native.isa import Isa, available_isas
from longspan.native.library import best_library, load, openmp_parallel

# A weight is rounded to bf16 before it meets V, by a relative 2^-9; the exponential's polynomial is good to 1e-4.
OUT_TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 1.2e-2}
LSE_TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-4}
DTYPES = st.sampled_from([torch.bfloat16, torch.float32])
HEADS = st.sampled_from([(1, 1), (2, 2), (3, 1), (4, 2), (8, 1), (9, 3), (14, 2), (16, 1)])
HEAD_DIMS = st.sampled_from([32, 64, 96, 128, 160, 256])
THREADS = st.sampled_from([1, 2, 3])

pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module", params=available_isas(), ids=lambda isa: isa.label)
def native(request: pytest.FixtureRequest) -> NativeCpuBackend:
    try:
        return NativeCpuBackend.for_isa(request.param)
    except BuildError as error:
        pytest.skip(str(error))


def draw_strided(generator: torch.Generator, *shape: int, dtype: torch.dtype, strided: bool) -> torch.Tensor:
    """Normal numbers; `strided`: a view into something larger, as q, k and v are views of one product."""
    rows, heads, head_dim = shape
    if not strided:
        return torch.randn(*shape, generator=generator).to(dtype)
    return torch.randn(rows, heads + 2, head_dim + 32, generator=generator).to(dtype)[:, 1:-1, :head_dim]


def draw_slots(data: st.DataObject, generator: torch.Generator, length: int, pool_slots: int) -> torch.Tensor:
    """So many slots of the pool: scattered, one run, or runs of one length with gaps or leaps between them."""
    run = data.draw(st.one_of(st.just(1), st.just(length), st.integers(1, 100), st.sampled_from([15, 16, 47, 48, 49])))
    starts = torch.randint(0, pool_slots, (-(-length // run),), generator=generator)
    slots = (starts[:, None] + torch.arange(run)).flatten()[:length]
    return slots % pool_slots  # a run that goes over the pool's end begins again at its first slot


def assert_agree(got: Partial, expected: Partial, dtype: torch.dtype) -> None:
    assert got.out_THK.dtype == got.lse_TH.dtype == torch.float32
    torch.testing.assert_close(got.lse_TH, expected.lse_TH, atol=LSE_TOLERANCE[dtype], rtol=1e-5)
    torch.testing.assert_close(got.out_THK, expected.out_THK, atol=OUT_TOLERANCE[dtype], rtol=0)


@settings(max_examples=150)
@given(st.data())
def test_a_block_is_what_the_formula_says(native: NativeCpuBackend, data: st.DataObject) -> None:
    heads, kv_heads = data.draw(HEADS)
    head_dim, dtype, causal = data.draw(HEAD_DIMS), data.draw(DTYPES), data.draw(st.booleans())
    rows = data.draw(st.one_of(st.integers(1, 40), st.integers(1, 700)))
    keys = rows if causal else data.draw(st.one_of(st.integers(1, 40), st.integers(1, 1500)))
    torch.set_num_threads(data.draw(THREADS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    strided = data.draw(st.booleans())
    q, k, v = (
        draw_strided(generator, n, h, head_dim, dtype=dtype, strided=strided)
        for n, h in ((rows, heads), (keys, kv_heads), (keys, kv_heads))
    )
    scale = head_dim**-0.5 * data.draw(st.sampled_from([1.0, 2.0]))
    got = native.block(q, k, v, causal=causal, scale=scale)
    assert_agree(got, ReferenceBackend().block(q, k, v, causal=causal, scale=scale), dtype)


@settings(max_examples=150)
@given(st.data())
def test_rows_meet_any_slots_of_the_pool(native: NativeCpuBackend, data: st.DataObject) -> None:
    heads, kv_heads = data.draw(HEADS)
    head_dim, dtype = data.draw(HEAD_DIMS), data.draw(DTYPES)
    torch.set_num_threads(data.draw(THREADS))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    slots = data.draw(st.integers(1, 3000))
    segments, row = [], 0
    for _ in range(data.draw(st.integers(0, 5))):
        row += data.draw(st.integers(0, 2))  # rows that no segment has
        rows = data.draw(st.one_of(st.just(1), st.integers(1, 20), st.integers(1, 300)))
        length = data.draw(st.integers(1, slots))
        segments.append(PagedSegment(row, row + rows, draw_slots(data, generator, length, slots)))
        row += rows
    row += data.draw(st.integers(0, 2))
    q = draw_strided(generator, row, heads, head_dim, dtype=dtype, strided=data.draw(st.booleans()))
    k, v = (torch.randn(kv_heads, slots, head_dim, generator=generator).to(dtype) for _ in range(2))
    got = native.plan_paged(segments).attend(q, k, v, head_dim**-0.5)
    expected = ReferenceBackend().plan_paged(segments).attend(q, k, v, head_dim**-0.5)
    assert_agree(got, expected, dtype)
    for token in range(row):
        if not any(s.start <= token < s.stop for s in segments):
            assert bool((got.out_THK[token] == 0).all()) and bool((got.lse_TH[token] == -torch.inf).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [1, 50])
def test_a_long_context_split_over_threads_gives_one_result(
    native: NativeCpuBackend, dtype: torch.dtype, rows: int
) -> None:
    torch.manual_seed(0)
    q, pool = torch.randn(rows, 9, 64).to(dtype), torch.randn(2, 3, 20_000, 64).to(dtype)
    plan = native.plan_paged([PagedSegment(0, rows, torch.randperm(20_000)[:17_001])])
    torch.set_num_threads(4)
    first = plan.attend(q, pool[0], pool[1], 0.125)
    again = plan.attend(q, pool[0], pool[1], 0.125)
    torch.testing.assert_close(first, again, atol=0, rtol=0)  # whoever finishes last merges in the same order
    torch.set_num_threads(1)
    assert_agree(first, plan.attend(q, pool[0], pool[1], 0.125), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("size", [1e-30, 100.0, 1e4])
def test_extreme_scores_neither_overflow_nor_vanish(
    native: NativeCpuBackend, dtype: torch.dtype, size: float
) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(n, h, 64).to(dtype) for n, h in ((70, 4), (70, 2), (70, 2)))
    got = native.block(q * size, k * size, v, causal=True, scale=0.125)
    expected = ReferenceBackend().block(q * size, k * size, v, causal=True, scale=0.125)
    assert bool(got.out_THK.isfinite().all())
    torch.testing.assert_close(got.lse_TH, expected.lse_TH, atol=1e-3, rtol=1e-5)
    # Scores of 1e8 differ by more than 1 in their last bit, so that near ties may fall either way.
    if size < 1e4:
        torch.testing.assert_close(got.out_THK, expected.out_THK, atol=2e-2, rtol=0)


def test_one_key_gives_its_value_back(native: NativeCpuBackend) -> None:
    q, k = torch.randn(5, 6, 64, dtype=torch.bfloat16), torch.randn(1, 3, 64, dtype=torch.bfloat16)
    got = native.block(q, k, k, causal=False, scale=0.125)
    expected = k.float().repeat_interleave(2, dim=1).expand(5, 6, 64)
    torch.testing.assert_close(got.out_THK, expected, atol=1e-6, rtol=5e-3)


def test_scores_that_rise_along_the_keys_are_rescaled(native: NativeCpuBackend) -> None:
    """Every block of keys brings a new largest score."""
    q = torch.ones(7, 1, 64)
    k = torch.arange(3000.0)[:, None, None].expand(3000, 1, 64) / 10_000
    v = torch.randn(3000, 1, 64)
    expected = ReferenceBackend().block(q, k, v, causal=False, scale=1.0)
    assert_agree(native.block(q, k, v, causal=False, scale=1.0), expected, torch.float32)


@pytest.mark.parametrize("keys", [1, 15, 16, 17, 47, 48, 49, 95, 96, 97, 511, 512, 513])
@pytest.mark.parametrize("rows", [1, 5, 16, 17])  # in place up to 16, packed from 17 on
def test_blocks_end_anywhere(native: NativeCpuBackend, keys: int, rows: int) -> None:
    torch.manual_seed(0)
    for head_dim, dtype in ((64, torch.bfloat16), (96, torch.bfloat16), (128, torch.bfloat16), (96, torch.float32)):
        q, pool = torch.randn(rows, 2, head_dim).to(dtype), torch.randn(2, 2, 600, head_dim).to(dtype)
        pool[:, :, keys:] = torch.nan  # what lies after the context must not be seen
        segments = [PagedSegment(0, rows, torch.randperm(keys))]
        got = native.plan_paged(segments).attend(q, *pool, 0.1)
        assert_agree(got, ReferenceBackend().plan_paged(segments).attend(q, *pool, 0.1), dtype)


@pytest.mark.parametrize("slot", [-1, 100, 2**62])
def test_a_slot_outside_the_pool_is_refused(native: NativeCpuBackend, slot: int) -> None:
    q, pool = torch.randn(2, 4, 64), torch.randn(2, 2, 100, 64)
    fine = PagedSegment(0, 1, torch.tensor([0, 99]))
    wrong = PagedSegment(1, 2, torch.tensor([3, slot, 4]))
    native.plan_paged([fine]).attend(q, *pool, 0.1)
    with pytest.raises(IndexError, match="outside the pool's 100"):
        native.plan_paged([fine, wrong]).attend(q, *pool, 0.1)


def test_a_plan_is_checked_against_each_pool(native: NativeCpuBackend) -> None:
    q, pool = torch.randn(1, 4, 64), torch.randn(2, 2, 100, 64)
    plan = native.plan_paged([PagedSegment(0, 1, torch.tensor([0, 99]))])
    plan.attend(q, *pool, 0.1)
    with pytest.raises(IndexError, match="outside the pool's 99"):
        plan.attend(q, *pool[:, :, :99], 0.1)


def test_uncovered_head_dims_go_to_the_twin(native: NativeCpuBackend) -> None:
    q, k = torch.randn(5, 4, 24), torch.randn(5, 2, 24)
    got, expected = (b.block(q, k, k, causal=True, scale=0.2) for b in (native, CpuBackend()))
    torch.testing.assert_close(got, expected)
    segments = [PagedSegment(0, 5, torch.tensor([2, 0, 3]))]
    pool = torch.randn(2, 4, 24)
    got, expected = (b.plan_paged(segments).attend(q, pool, pool, 0.2) for b in (native, CpuBackend()))
    torch.testing.assert_close(got, expected)


def test_two_threads_of_the_process_do_not_disturb_each_other(native: NativeCpuBackend) -> None:
    """Instances of the inproc executor call at the same time."""
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    cases = [torch.randn(n, 3, 64) for n in (300, 200, 100, 400)]

    def run(x: torch.Tensor) -> list[Partial]:
        torch.set_num_threads(2)
        return [native.block(x, x, x, causal=True, scale=0.125) for _ in range(10)]

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, cases))
    for x, parts in zip(cases, results, strict=True):
        expected = ReferenceBackend().block(x, x, x, causal=True, scale=0.125)
        for part in parts:
            assert_agree(part, expected, torch.float32)


def test_threads_of_its_own_where_torch_has_no_openmp(native: NativeCpuBackend) -> None:
    assert openmp_parallel() is not None, "torch's wheels bring an OpenMP runtime"
    x = torch.randn(600, 3, 64)
    torch.set_num_threads(3)
    native.library.use_openmp(None)
    try:
        got = native.block(x, x, x, causal=True, scale=0.125)
    finally:
        native.library.use_openmp(openmp_parallel())
    torch.testing.assert_close(got, native.block(x, x, x, causal=True, scale=0.125), atol=0, rtol=0)


def test_without_a_compiler_the_twin_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LONGSPAN_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    load.cache_clear()
    best_library.cache_clear()
    try:
        with caplog.at_level("INFO"):
            assert isinstance(cpu_backend(), CpuBackend)
            cpu_backend()
        assert sum("torch's own attention serves" in message for message in caplog.messages) == 1
    finally:
        load.cache_clear()
        best_library.cache_clear()


@pytest.mark.parametrize("label", ["torch", *(isa.label for isa in Isa)])
def test_the_environment_chooses_the_instruction_set(monkeypatch: pytest.MonkeyPatch, label: str) -> None:
    monkeypatch.setenv("LONGSPAN_CPU_ISA", label)
    best_library.cache_clear()
    try:
        library = best_library()
    finally:
        best_library.cache_clear()
    assert library is None or library.isa.label == label
