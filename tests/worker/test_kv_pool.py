"""The KV pool: what is written comes back, whether its memory is small or in large pages."""

from __future__ import annotations

import random

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


def test_what_is_computed_again_in_an_earlier_residence_is_seen() -> None:
    """By who has adopted it, though it has looked before; token by token or several at once, where some of it was
    before or nothing."""
    pool = KVPool(1, 1, 100, 8, torch.float32, torch.device("cpu"))
    pool.allocate(1, 16, 20)
    assert len(pool.held(1, 20, ((0, 16),))) == 4
    pool.allocate(0, 10, 16)
    assert len(pool.held(1, 20, ((0, 16),))) == 10
    pool.allocate(0, 0, 9)
    assert len(pool.held(1, 20, ((0, 16),))) == 19
    pool.allocate_each([(0, 9)])
    assert len(pool.held(1, 20, ((0, 16),))) == len(set(pool.held(1, 20, ((0, 16),)).tolist())) == 20


def test_slots_of_several_residences_come_together_as_they_are_now() -> None:
    """Whatever grows, shrinks or moves between two looks: all that lies before the position, and nothing else."""
    draw = random.Random(5)
    pool = KVPool(1, 1, 4000, 8, torch.float32, torch.device("cpu"))
    ends = dict.fromkeys(range(4), 0)

    def naive(number: int, below: int) -> list[int]:
        holding = pool.holdings.get(number)
        return [] if holding is None else holding.slots[holding.positions < below].tolist()

    for _ in range(600):
        number = draw.randrange(4)
        match draw.randrange(12):
            case 0:
                pool.free(number)
                ends[number] = 0
            case 1 if ends[number] > 3 and number in pool.holdings:
                ends[number] -= 3
                held = pool.holdings[number].positions
                gone = [(place, place + 1) for place in range(ends[number], ends[number] + 3) if place in held]
                pool.release(number, gone)
            case 2:
                pool.insert(number, [(ends[number], ends[number] + 2)], torch.zeros(2, 1, 1, 2, 8))
                ends[number] += 2
            case _:
                pool.allocate_each([(number, ends[number])])
                ends[number] += 1
        earlier = ((0, ends[0]), (1, ends[1] // 2))
        below = draw.choice([ends[2], ends[2], ends[2] // 2])
        wanted = naive(0, ends[0]) + naive(1, ends[1] // 2) + naive(2, below)
        assert pool.held(2, below, earlier).tolist() == wanted
