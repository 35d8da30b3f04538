"""The KV pool: what is written comes back, whether its memory is small or in large pages."""

from __future__ import annotations

import pytest
import torch

from longspan.worker.kv_pool import KVPool


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("slots", [100, 20_000])
def test_what_is_written_comes_back(slots: int, dtype: torch.dtype) -> None:
    pool = KVPool(2, 3, slots, 64, dtype, torch.device("cpu"))
    assert pool.k_LGNK.shape == pool.v_LGNK.shape == (2, 3, slots, 64)
    assert pool.k_LGNK.dtype == pool.v_LGNK.dtype == dtype
    assert not pool.k_LGNK.any() and not pool.v_LGNK.any()
    assert pool.k_LGNK.data_ptr() != pool.v_LGNK.data_ptr()
    k, v = torch.randn(2, 2, slots, 3, 64).to(dtype)
    taken = pool.allocate(7, 0, slots)
    for layer in range(2):
        pool.write(layer, taken, k[layer], v[layer])
    got = pool.read(7, [(0, slots)])
    torch.testing.assert_close(got, torch.stack([k, v]).transpose(2, 3), rtol=0, atol=0)
