"""What this machine can do at most, measured by machine_peak.cpp: the yardsticks of kernel.py."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from longspan.native.build import built_library
from longspan.native.isa import Isa
from longspan.native.library import openmp_parallel

_SOURCE = Path(__file__).with_name("machine_peak.cpp")


class MachinePeak:
    """Both give up the GIL while they run."""

    def __init__(self, isa: Isa) -> None:
        library = ctypes.CDLL(str(built_library(isa, _SOURCE)))
        library.longspan_peak_use_openmp.argtypes = [ctypes.c_void_p]
        library.longspan_peak_use_openmp.restype = None
        library.longspan_peak_use_openmp(openmp_parallel())
        self._multiply = library.longspan_peak_multiply
        self._multiply.argtypes = [ctypes.c_int64, ctypes.c_int]
        self._multiply.restype = None
        self._read = library.longspan_peak_read
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_int]
        self._read.restype = ctypes.c_float
        library.longspan_peak_flops.restype = ctypes.c_int64
        self.flops_per_round: int = library.longspan_peak_flops()

    def multiply(self, rounds: int, threads: int) -> None:
        """The instruction set's multiply-adds (bf16 pairs where it has them) out of registers, on every thread."""
        self._multiply(rounds, threads)

    def read(self, x: torch.Tensor, threads: int, *, prefetched: bool) -> None:
        """Sum all of a contiguous tensor's bytes as if they were fp32."""
        self._read(x.data_ptr(), x.numel() * x.element_size() // 4, prefetched, threads)
