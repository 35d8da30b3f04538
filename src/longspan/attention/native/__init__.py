"""Attention and elementwise kernels in C++, compiled for this machine's processor on first use.

`backend.NativeCpuBackend` stands behind the seam of `attention/backend.py`; its plain twin is `CpuBackend`, which
serves wherever no instruction set fits or no compiler is found.
"""
