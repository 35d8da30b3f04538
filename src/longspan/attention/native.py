"""Attention on a CPU through our own kernels.

Shapes as in attention/backend.py.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch

from longspan.attention.backend import AttentionBackend, PagedPlan, PagedSegment
from longspan.attention.cpu import CpuBackend
from longspan.attention.partial import Partial
from longspan.native.isa import Isa
from longspan.native.library import Library, SegmentStruct, best_library, load

_HEAD_DIM_STEP, _HEAD_DIM_MOST = 32, 256  # csrc/kv_rows.h
_DTYPES = (torch.bfloat16, torch.float32)


def cpu_backend() -> AttentionBackend:
    """Return the fastest backend of this CPU: native, or its twin."""
    library = best_library()
    return NativeCpuBackend(library) if library else CpuBackend()


class NativeCpuBackend:
    """`AttentionBackend` for x86-64. Outputs are fp32. What the kernels do not cover goes to the twin.

    bf16 with AVX512-BF16: weights are rounded to bf16 before they meet V, as everywhere; the log-sum-exp is good to
    1e-4. All else is computed in fp32.
    """

    def __init__(self, library: Library) -> None:
        self.library = library
        self.twin = CpuBackend()

    @classmethod
    def for_isa(cls, isa: Isa) -> NativeCpuBackend:
        """Raises BuildError."""
        return cls(load(isa))

    def block(
        self, q_THK: torch.Tensor, k_SGK: torch.Tensor, v_SGK: torch.Tensor, *, causal: bool, scale: float
    ) -> Partial:
        assert q_THK.shape[0] and k_SGK.shape[0], "empty block"
        assert not causal or q_THK.shape[0] == k_SGK.shape[0], "causal blocks are square"
        if not _covers(q_THK, k_SGK, v_SGK):
            return self.twin.block(q_THK, k_SGK, v_SGK, causal=causal, scale=scale)
        segments = (SegmentStruct * 1)(SegmentStruct(0, q_THK.shape[0], k_SGK.shape[0], None))
        result = _uninitialised(q_THK)
        self._attend(
            result, q_THK, k_SGK.transpose(0, 1), v_SGK.transpose(0, 1), segments, causal=causal, scale=scale
        )
        return result

    def plan_paged(self, segments: Sequence[PagedSegment]) -> PagedPlan:
        return NativePlan(self, segments)

    def merge_rows_(self, result: Partial, rows: slice | torch.Tensor, part: Partial) -> None:
        tensors = (*result, *part)
        if any(x.dtype != torch.float32 or not x.is_contiguous() for x in tensors):
            self.twin.merge_rows_(result, rows, part)
            return
        index, first = (None, rows.start) if isinstance(rows, slice) else (rows.data_ptr(), 0)
        self.library.merge_rows(
            *(x.data_ptr() for x in tensors), index, first, *part.out_THK.shape, torch.get_num_threads()
        )

    def _attend(
        self,
        result: Partial,
        q_THK: torch.Tensor,
        k_GNK: torch.Tensor,
        v_GNK: torch.Tensor,
        segments: ctypes.Array[SegmentStruct],
        *,
        causal: bool,
        scale: float,
    ) -> None:
        q_THK, k_GNK, v_GNK = _dense_rows(q_THK), _dense_rows(k_GNK), _dense_rows(v_GNK)
        failed = self.library.attend(
            q_THK.data_ptr(), k_GNK.data_ptr(), v_GNK.data_ptr(), result.out_THK.data_ptr(), result.lse_TH.data_ptr(),
            q_THK.stride(0), q_THK.stride(1),
            k_GNK.stride(1), k_GNK.stride(0), v_GNK.stride(1), v_GNK.stride(0),
            q_THK.shape[1], k_GNK.shape[0], q_THK.shape[2],
            ctypes.addressof(segments), len(segments), causal, q_THK.dtype == torch.bfloat16, scale,
            torch.get_num_threads(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for attention's scratch")


class NativePlan:
    """The segments as the kernel reads them; the slots' tensors are kept alive here."""

    def __init__(self, backend: NativeCpuBackend, segments: Sequence[PagedSegment]) -> None:
        self.backend = backend
        self.segments = segments
        self.slots = [s.slots.contiguous() for s in segments]
        self.structs = (SegmentStruct * len(segments))(
            *(
                SegmentStruct(s.start, s.stop, len(slots), slots.data_ptr())
                for s, slots in zip(segments, self.slots, strict=True)
            )
        )
        self.num_rows = sum(s.stop - s.start for s in segments)
        self.pool_slots: int | None = None  # of the pool against which the slots were checked
        self.twin: PagedPlan | None = None

    def attend(self, q_THK: torch.Tensor, k_GNK: torch.Tensor, v_GNK: torch.Tensor, scale: float) -> Partial:
        if not _covers(q_THK, k_GNK, v_GNK):
            self.twin = self.twin or self.backend.twin.plan_paged(self.segments)
            return self.twin.attend(q_THK, k_GNK, v_GNK, scale)
        self.check_slots(k_GNK.shape[1])
        result = _uninitialised(q_THK)
        if self.num_rows < len(q_THK):  # rows outside every segment
            result.out_THK.zero_()
            result.lse_TH.fill_(-torch.inf)
        if self.num_rows:
            self.backend._attend(result, q_THK, k_GNK, v_GNK, self.structs, causal=False, scale=scale)
        return result

    def check_slots(self, pool_slots: int) -> None:
        """Check slots, which the kernels follow unchecked: once for each plan, in its first layer.

        Raises IndexError, as the twin does, where one is outside the pool.
        """
        if pool_slots == self.pool_slots:
            return
        if not self.backend.library.slots_within(ctypes.addressof(self.structs), len(self.structs), pool_slots):
            raise IndexError(f"a slot of the context is outside the pool's {pool_slots}")
        self.pool_slots = pool_slots


def _covers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    head_dim = q.shape[-1]
    return (
        q.dtype == k.dtype == v.dtype
        and q.dtype in _DTYPES
        and head_dim % _HEAD_DIM_STEP == 0
        and head_dim <= _HEAD_DIM_MOST
    )


def _dense_rows(x: torch.Tensor) -> torch.Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _uninitialised(q_THK: torch.Tensor) -> Partial:
    """The kernel writes every row of every segment."""
    return Partial(
        torch.empty(q_THK.shape, dtype=torch.float32), torch.empty(q_THK.shape[:2], dtype=torch.float32)
    )
