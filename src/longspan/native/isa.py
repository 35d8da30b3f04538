"""Instruction sets that the kernels are written for, and which of them this machine has."""

from __future__ import annotations

import os
from enum import Enum

import torch

from longspan.errors import ConfigError

ISA_VARIABLE = "LONGSPAN_CPU_ISA"
_AVX512 = ("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mfma")


class Isa(Enum):
    """Instruction sets, by rising speed. number: LONGSPAN_ISA in csrc/library.cpp; flags: what a compiler needs."""

    AVX2 = ("avx2", 1, ("-mavx2", "-mfma", "-mf16c"))
    AVX512 = ("avx512", 2, _AVX512)
    AVX512_BF16 = ("avx512_bf16", 3, (*_AVX512, "-mavx512bf16"))

    def __init__(self, label: str, number: int, flags: tuple[str, ...]) -> None:
        self.label = label
        self.number = number
        self.flags = flags


def available_isas() -> list[Isa]:
    """Return what this processor and system can run, fastest first; nothing on machines other than x86-64."""
    capability = torch.backends.cpu.get_cpu_capability()
    isas = []
    if capability == "AVX512" and torch.cpu._is_avx512_supported():
        if torch.cpu._is_avx512_bf16_supported():
            isas.append(Isa.AVX512_BF16)
        isas.append(Isa.AVX512)
    if capability in ("AVX512", "AVX2"):
        isas.append(Isa.AVX2)
    return isas


def wanted_isas() -> list[Isa]:
    """Return the available ones, or what the environment variable LONGSPAN_CPU_ISA leaves of them (`torch`: none)."""
    isas = available_isas()
    wanted = os.environ.get(ISA_VARIABLE)
    known = [*(isa.label for isa in Isa), "torch"]
    if wanted and wanted not in known:
        raise ConfigError(f"{ISA_VARIABLE} is {wanted!r}, but must be one of {', '.join(known)}")
    return isas if not wanted else [isa for isa in isas if isa.label == wanted]
