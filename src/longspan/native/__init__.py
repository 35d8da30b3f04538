"""Kernels in C++ for CPUs, compiled for this machine's processor on first use: attention, linear layers, what lies
between, and exchange through shared memory.

Each has a plain twin where it is used, which serves wherever no instruction set fits or no compiler is found:
attention/native.py, layers/linear.py, layers/elementwise.py, worker/kv_pool.py, distributed/shared_memory.py.
"""
