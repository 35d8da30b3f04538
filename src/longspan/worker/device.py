"""What a worker's device is and can do."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

import torch

from longspan.config import DType, Quantization, TransportName
from longspan.distributed import shared_memory
from longspan.errors import ConfigError
from longspan.layers.quantized_linear import quantized_kernels_serve
from longspan.models.weights import WeightFormat
from longspan.native.library import best_library
from longspan.worker.spec import WorkerSpec

_KV_SHARE_CPU = 0.4  # of the free memory; the rest is the system's, activations', and other programs'
_KV_SHARE_CUDA = 0.85
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # from malloc.h


def resolve_device(spec: WorkerSpec) -> torch.device:
    """Return the device; `auto` is a GPU where there is one.

    Each process has a GPU of its own: ConfigError where there are fewer. Instances that are threads of one process are
    on the same GPUs, whose weights they share.
    """
    if spec.device == "cpu" or (spec.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device is cuda, but torch finds no GPU here; use --device cpu")
    found = torch.cuda.device_count()
    if spec.devices_wanted > found and not spec.shares_devices:
        raise ConfigError(
            f"{spec.num_instances} instances of pp {spec.pp} and tp {spec.tp} need {spec.devices_wanted} GPUs, but "
            f"here are {found}; use fewer, --device cpu, or --executor inproc for several instances on one GPU"
        )
    return torch.device("cuda", spec.local_rank % spec.devices_wanted % found)


def workers_on_device(spec: WorkerSpec, device: torch.device) -> int:
    """Return how many workers have this one's device, at most."""
    devices = min(spec.devices_wanted, torch.cuda.device_count()) if device.type == "cuda" else 1
    return -(-spec.local_size // devices)


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """Return the dtype; `auto` is bfloat16 where the device multiplies it natively, float32 elsewhere."""
    if dtype == "auto":
        native = device.type == "cuda" or bool(torch.cpu._is_avx512_bf16_supported())
        return torch.bfloat16 if native else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[dtype]


def resolve_quantization(
    quantization: Quantization, device: torch.device, dtype: torch.dtype, *, is_gguf: bool
) -> WeightFormat:
    """Return the format; `auto` keeps GGUF weights as they are in bfloat16 on CPUs: faster, and no less exact."""
    if quantization == "none":
        return "none"
    serves = quantized_kernels_serve(device, dtype)
    if quantization == "auto":
        return "gguf" if serves and is_gguf and dtype == torch.bfloat16 else "none"
    if quantization == "gguf" and not is_gguf:
        raise ConfigError("quantization is gguf, but the model is no .gguf file; use --quantization int8")
    if not serves:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(
            f"quantization is {quantization}, but no kernels for it run here on {device.type} in {name}: they need an "
            "x86-64 CPU with AVX2 or AVX-512 (bfloat16: AVX512-BF16) and a C++ compiler; use --quantization none, or "
            "another --device or --dtype"
        )
    return quantization


def resolve_transport(transport: TransportName, device: torch.device) -> TransportName:
    """Return the transport; `auto` is NCCL between GPUs, and shared memory on CPUs, or gloo where that cannot be."""
    if (transport == "nccl") != (device.type == "cuda") and transport != "auto":
        raise ConfigError(f"transport is {transport}, but the device is {device.type}; use --transport auto")
    if transport == "shared_memory" and not shared_memory.usable():
        raise ConfigError("transport is shared_memory, which needs x86-64 and Linux; use --transport auto")
    if transport != "auto":
        return transport
    if device.type == "cuda":
        return "nccl"
    return "shared_memory" if shared_memory.usable() else "gloo"


def memory_for_kv(device: torch.device, workers_on_device: int) -> int:
    """Return how many bytes of the device's free memory one worker may take for KV."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free * _KV_SHARE_CUDA / workers_on_device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return int(free * _KV_SHARE_CPU / workers_on_device)


def processor_name(device: torch.device) -> str:
    """Return what the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def kernels_name(device: torch.device) -> str:
    """Return the instruction set of our own kernels, or "torch" where its kernels serve."""
    library = best_library() if device.type == "cpu" else None
    return library.isa.label if library else "torch"


def keep_freed_memory() -> None:
    """Let glibc reuse large buffers instead of returning them to the system after each operator.

    Fresh pages are zeroed by the kernel one by one: a tenth of a long prefill on a CPU.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
