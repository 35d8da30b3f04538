"""Which kernels of attention run on a device."""

from __future__ import annotations

import torch

from longspan.attention.backend import AttentionBackend


def backend_for(device: torch.device, dtype: torch.dtype) -> AttentionBackend:
    """Return the fastest backend that runs there."""
    if device.type == "cuda" and dtype != torch.float32:  # torch's flash attention on CUDA has no fp32
        from longspan.attention.cuda import CudaBackend

        return CudaBackend()
    if device.type == "cpu":
        from longspan.attention.native import cpu_backend

        return cpu_backend()
    from longspan.attention.reference import ReferenceBackend

    return ReferenceBackend()
